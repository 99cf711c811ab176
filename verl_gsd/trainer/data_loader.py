"""Replaces the sampler of verl's data loader with the sampler of an extension."""

from __future__ import annotations

import logging
from typing import Any

from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

logger = logging.getLogger(__name__)


def replace_sampler(loader: StatefulDataLoader, sampler: Sampler[int]) -> StatefulDataLoader:
    """A copy of ``loader`` that samples with ``sampler``."""
    return StatefulDataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
    )


def discard_foreign_sampler_state(loader: StatefulDataLoader) -> None:
    """Discard the state that ``loader`` restored from a checkpoint if another sampler saved it.

    torchdata would fail on such a state, at the first batch and without an explanation. Instead, a new pass over the
    data starts, with a warning. The sampler of an extension stores the number of rows that it draws from in
    ``state_dict()["rows"]``. verl's own samplers have no such entry.
    """
    state = loader.next_iter_state
    if state is None:
        return
    saved_rows = ((state.get("_sampler_iter_state") or {}).get("sampler_state") or {}).get("rows")
    if saved_rows != _rows(loader.sampler):
        logger.warning("another sampler saved the data position in the checkpoint: a new pass over the data starts")
        loader.next_iter_state = None


def _rows(sampler: Any) -> Any:
    """The number of rows that an extension's sampler draws from; None for one of verl's samplers."""
    state = sampler.state_dict() if hasattr(sampler, "state_dict") else {}
    return state.get("rows") if isinstance(state, dict) else None
