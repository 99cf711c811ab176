"""verl's data loader, with a sampler of an extension in the place of its own."""

from __future__ import annotations

import logging
from typing import Any

from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader

logger = logging.getLogger(__name__)


def loader_with(loader: StatefulDataLoader, sampler: Sampler[int]) -> StatefulDataLoader:
    """``loader`` with ``sampler`` in the place of its own."""
    return StatefulDataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        drop_last=loader.drop_last,
    )


def drop_position_of_another_sampler(loader: StatefulDataLoader) -> None:
    """Drop what ``loader`` was given of a checkpoint if another sampler wrote it: its place means nothing to this one.

    torchdata fails on it, at the first batch and without saying why. The pass then starts anew, with a warning. A
    sampler of an extension says in ``state_dict()["rows"]`` how many rows it draws from; verl's own say no such thing.
    """
    given = loader.next_iter_state
    if given is None:
        return
    written = ((given.get("_sampler_iter_state") or {}).get("sampler_state") or {}).get("rows")
    if written != _rows(loader.sampler):
        logger.warning("the checkpoint's place in the data is not this sampler's: a pass over the data starts anew")
        loader.next_iter_state = None


def _rows(sampler: Any) -> Any:
    """How many rows a sampler of an extension draws from; None for one of verl's."""
    state = sampler.state_dict() if hasattr(sampler, "state_dict") else {}
    return state.get("rows") if isinstance(state, dict) else None
