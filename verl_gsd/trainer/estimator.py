"""The estimator ``gsd``: the chain of ``chain.py`` as an advantage function of verl.

It also works under verl's stock trainers. They pass the rows' uids and the ``algorithm`` config, which is all that the
dial needs. Our trainers provide more information about the batch through ``batch_context``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import register_adv_est

from verl_gsd import chain, extension
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.verl_hooks import reject_if_failed


@dataclass
class _BatchContext:
    """Information about the current batch that verl does not pass to the estimator, and the estimator's result.

    Attributes:
        representative: (N,) number of the row that represents each row's session; None if every session has one row.
        columns: see ``chain.Rows.columns``.
        extensions: the extensions of the run; None under verl's own trainers, where they are built from the config.
        advantages: (N,), one per row; the estimator sets it.
        metrics: those of the division by sigma; the estimator sets them.
    """

    representative: torch.Tensor | None
    columns: Mapping[str, Any]
    extensions: Mapping[str, extension.Extension] | None
    advantages: torch.Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)


_BATCH: ContextVar[_BatchContext | None] = ContextVar("_BATCH", default=None)


@contextmanager
def batch_context(
    keys: Sequence[str], columns: Mapping[str, Any], extensions: Mapping[str, extension.Extension]
) -> Iterator[_BatchContext]:
    """In this context, the estimator uses the rows' sessions, ``columns`` and the run's ``extensions``.

    An agent loop may put several outputs of one session into the batch, all with the session's reward. A session is one
    response: its last output counts in the group, and the other outputs get the same advantage.

    Args:
        keys: verl's N row keys, ``<uid>_<session>_<output>``.
        columns: columns for the chain, (N,) each.
        extensions: by name, in their order.
    """
    session, output = zip(*(key.rsplit("_", 1) for key in keys), strict=True)
    last: dict[str, tuple[int, int]] = {}
    for row, name in enumerate(session):
        last[name] = max(last.get(name, (-1, -1)), (int(output[row]), row))
    has_several_outputs = len(last) < len(keys)
    representative = torch.tensor([last[name][1] for name in session]) if has_several_outputs else None
    batch = _BatchContext(representative, columns, extensions)
    token = _BATCH.set(batch)
    try:
        yield batch
    finally:
        _BATCH.reset(token)


@register_adv_est("gsd")
def gsd_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: DictConfig,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of a batch of N responses of at most T tokens.

    Args:
        token_level_rewards: (N, T) float; their sum over tokens is the reward of a response.
        response_mask: (N, T), 1 on the response's tokens. Rollout correction rejects a row by emptying its mask. Such a
            row still counts in its group.
        index: (N,), verl's ``uid``. Padding rows, whose uid starts with ``pad``, belong to no group.
        config: the config section ``algorithm``; ``config.gsd`` describes the chain.

    Returns:
        Advantages and returns, which are the same (N, T) tensor: the response's advantage on each of its tokens.

    Raises:
        ConfigError: a part of this package does not fit the installed verl.
        ValueError: ``config.gsd`` is missing or incomplete, or one of its extensions needs one of our trainer modes.
        ValueError, ExtensionError: see ``chain.advantages``.
    """
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1)
        gsd, batch = (config and config.get("gsd")) or {}, _BATCH.get()
        if batch is None:
            reject_if_failed()
            _require_no_groups(gsd)
            batch = _BatchContext(None, {}, None)
        mask, representative = not_padding(index), batch.representative
        if representative is not None:
            represents_itself = representative == torch.arange(len(representative))
            mask = represents_itself if mask is None else mask & represents_itself
        row_advantages = chain.advantages(
            rewards,
            index,
            gsd,
            mask=mask,
            columns=batch.columns,
            extensions=batch.extensions,
            metrics=batch.metrics,
        )
        if representative is not None:
            row_advantages = row_advantages[representative]
        batch.advantages = row_advantages
        # Copying the mask to the advantages' dtype and multiplying in place takes half the time of float times int64.
        advantages = response_mask.to(row_advantages.dtype, copy=True).mul_(row_advantages.unsqueeze(-1))
    return advantages, advantages


def _require_no_groups(gsd: Mapping[str, Any]) -> None:
    for declaration in extension.active(gsd):
        if declaration.needs_groups:
            raise ValueError(
                f"algorithm.gsd.{declaration.name} needs whole groups, which verl's own trainer modes do not provide. "
                f"Set trainer.v1.trainer_mode to the one of {', '.join(OUR_MODES.values())} that matches your mode."
            )


def not_padding(uids: np.ndarray) -> torch.Tensor | None:
    """(N,) bool, False for verl's padding rows; None if there are none."""
    padding = [uid for uid in set(uids) if str(uid).startswith("pad")]
    return torch.from_numpy(~np.isin(uids, padding)) if padding else None
