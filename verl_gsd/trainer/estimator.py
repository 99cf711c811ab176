"""The estimator ``gsd``: the chain of ``chain.py`` as an advantage function of verl.

Works under verl's stock trainers too. There it is called with the rows' uids and the ``algorithm`` config and nothing
else, which is all that the dial needs. Our own trainers say more, in the same process (``batch_of``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from verl.trainer.ppo.core_algos import register_adv_est

from verl_gsd import chain, extension
from verl_gsd.errors import OUR_MODES


@dataclass
class _Batch:
    """What our trainers know of the batch at hand, beyond what verl passes on, and what they want to know in turn.

    Attributes:
        speaker: (N,) the row that speaks for each row's session; None where every session has one row.
        columns: see ``chain.Rows.columns``.
        extensions: those of the run; None under a trainer of verl's own, where they are built from the config.
        advantages: (N,), one a row, once the estimator has run.
    """

    speaker: torch.Tensor | None
    columns: Mapping[str, Any]
    extensions: Mapping[str, extension.Extension] | None
    advantages: torch.Tensor | None = None


_BATCH: ContextVar[_Batch | None] = ContextVar("_BATCH", default=None)


@contextmanager
def batch_of(
    keys: Sequence[str], columns: Mapping[str, Any], extensions: Mapping[str, extension.Extension]
) -> Iterator[_Batch]:
    """Within it, the estimator knows the rows' sessions, ``columns`` and the run's ``extensions``.

    An agent loop may put several outputs of one session into the batch, all with the session's reward. One response is
    one session: its last output counts in the group, and the others get its advantage.

    Args:
        keys: N row keys of verl's, ``<uid>_<session>_<output>``.
        columns: (N,) each, for the chain.
        extensions: by name, in their order.
    """
    session, output = zip(*(key.rsplit("_", 1) for key in keys), strict=True)
    last: dict[str, tuple[int, int]] = {}
    for row, name in enumerate(session):
        last[name] = max(last.get(name, (-1, -1)), (int(output[row]), row))
    several = len(last) < len(keys)
    speaker = torch.tensor([last[name][1] for name in session]) if several else None
    batch = _Batch(speaker, columns, extensions)
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
        token_level_rewards: (N, T) float; a response's reward is their sum.
        response_mask: (N, T), 1 on the response's tokens. A row whose mask was emptied (rollout correction rejects rows
            that way) still counts in its group.
        index: (N,), verl's ``uid``. Padding rows, whose uid starts with ``pad``, belong to no group.
        config: the config section ``algorithm``; ``config.gsd`` describes the chain.

    Returns:
        Advantages and returns, one and the same (N, T) tensor: the response's advantage on each of its tokens.

    Raises:
        ValueError: ``config.gsd`` is missing or incomplete, or one of its extensions needs a trainer mode of ours.
        ValueError, ExtensionError: as ``chain.advantages``.
    """
    with torch.no_grad():
        rewards = token_level_rewards.sum(dim=-1)
        gsd, batch = (config and config.get("gsd")) or {}, _BATCH.get()
        if batch is None:
            _require_no_groups(gsd)
            batch = _Batch(None, {}, None)
        mask, speaker = not_padding(index), batch.speaker
        if speaker is not None:
            speaks = speaker == torch.arange(len(speaker))
            mask = speaks if mask is None else mask & speaks
        row = chain.advantages(rewards, index, gsd, mask=mask, columns=batch.columns, extensions=batch.extensions)
        if speaker is not None:
            row = row[speaker]
        batch.advantages = row
        # A copy in the advantages' dtype and a product in place: half the time of a product of float and int64.
        advantages = response_mask.to(row.dtype, copy=True).mul_(row.unsqueeze(-1))
    return advantages, advantages


def _require_no_groups(gsd: Mapping[str, Any]) -> None:
    for declaration in extension.active(gsd):
        if declaration.needs_groups:
            raise ValueError(
                f"algorithm.gsd.{declaration.name} needs to see whole groups, and verl's own trainer modes do not. "
                f"Write trainer.v1.trainer_mode={', '.join(OUR_MODES.values())}, whichever yours is."
            )


def not_padding(uids: np.ndarray) -> torch.Tensor | None:
    """(N,) bool, False for the rows verl pads a batch with, or None where there are none."""
    padding = [uid for uid in set(uids) if str(uid).startswith("pad")]
    return torch.from_numpy(~np.isin(uids, padding)) if padding else None
