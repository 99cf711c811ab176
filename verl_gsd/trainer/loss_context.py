"""Gives a policy loss access to the columns of its rows and to the worker's extensions.

verl passes log-probabilities, advantages and a mask to a registered policy loss. A loss that needs more, for example
the groups of its rows, reads columns that extensions added (``Extension.loss_columns``), and figures that the worker's
extensions computed from the whole mini-batch.
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
    """The current micro-batch.

    Attributes:
        rows: its rows with all columns.
        extensions: the worker's extensions by name.
    """

    rows: TensorDict
    extensions: Mapping[str, WorkerExtension]

    def has(self, column: str) -> bool:
        """Whether the rows have this column. (``in`` on a TensorDict does not look up keys.)"""
        return column in self.rows.keys()  # noqa: SIM118


_CONTEXT: ContextVar[LossContext | None] = ContextVar("_CONTEXT", default=None)


def loss_context() -> LossContext | None:
    """The context of the micro-batch whose loss is being computed; None under verl's own workers."""
    return _CONTEXT.get()


def with_context(
    loss_fn: Callable,
    extensions: Mapping[str, WorkerExtension],
    *,
    model_output: Any,
    data: TensorDict,
    dp_group: Any = None,
) -> Any:
    """Call verl's loss function ``loss_fn``. Inside the call, ``loss_context`` returns the micro-batch."""
    token = _CONTEXT.set(LossContext(data, extensions))
    try:
        return loss_fn(model_output=model_output, data=data, dp_group=dp_group)
    finally:
        _CONTEXT.reset(token)
