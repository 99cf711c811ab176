"""What a policy loss knows of its rows beyond what verl passes it.

verl gives a registered policy loss log-probabilities, advantages and a mask. What else a loss must know of its rows,
such as their groups, are columns that extensions put beside them (``Extension.loss_columns``), and what a worker's
extension made of the whole mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDict

from verl_gsd.extension import WorkerExtension


@dataclass(frozen=True)
class LossContext:
    """The micro-batch at hand.

    Attributes:
        rows: with all their columns.
        extensions: the worker's, by name.
    """

    rows: TensorDict
    extensions: Mapping[str, WorkerExtension]

    def has(self, column: str) -> bool:
        """Whether the rows have this column. A TensorDict takes ``in`` for something else."""
        return column in self.rows.keys()  # noqa: SIM118


_CONTEXT: ContextVar[LossContext | None] = ContextVar("_CONTEXT", default=None)


def loss_context() -> LossContext | None:
    """Of the micro-batch whose loss is being computed; None under a worker of verl's own."""
    return _CONTEXT.get()


def with_context(
    loss_fn: Callable,
    extensions: Mapping[str, WorkerExtension],
    *,
    model_output: Any,
    data: TensorDict,
    dp_group: Any = None,
) -> Any:
    """verl's loss function ``loss_fn``, within which ``loss_context`` has the micro-batch."""
    token = _CONTEXT.set(LossContext(data, extensions))
    try:
        return loss_fn(model_output=model_output, data=data, dp_group=dp_group)
    finally:
        _CONTEXT.reset(token)
