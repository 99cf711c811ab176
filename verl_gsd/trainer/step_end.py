"""The end of a step: records of the groups that left in it, and the only place where saved state changes."""

from __future__ import annotations

import pyarrow as pa

from verl_gsd import records
from verl_gsd.trainer.metrics import with_prediction
from verl_gsd.trainer.seam import Seam

#: Default half-life: a visit this many steps ago has half the weight in the estimate of a prompt's solve rate.
HALF_LIFE = 100.0


def rated_sources(seam: Seam) -> frozenset[str]:
    """The data sources that have accuracies, by the memory of prompts and the groups that left in the step."""
    groups = [group for group, _ in seam.left]
    return records.rated_sources(groups, rated=seam.prompts.rated, unrated=seam.prompts.unrated)


def step_table(
    seam: Seam, *, step: int, attempt: int, alpha: float | None, kl_in_reward: bool = False
) -> tuple[list[records.LeftGroup], pa.Table]:
    """The groups that left in the step, and their records. No state changes.

    Args:
        alpha, kl_in_reward: see ``records.step_records``.
    """
    left = [records.LeftGroup(group, fate, seam.record(group), seam.mass.get(group.uid)) for group, fate in seam.left]
    table = records.step_records(
        left,
        step=step,
        attempt=attempt,
        alpha=alpha,
        kl_in_reward=kl_in_reward,
        rated=seam.prompts.rated,
        unrated=seam.prompts.unrated,
    )
    return left, with_prediction(table, seam.prompts, step, seam.prompts.prior)


def end_step(seam: Seam, step: int) -> dict[str, float]:
    """Add the step's groups to the memory of prompts, end the step of all extensions, and return their metrics."""
    rated = rated_sources(seam)
    for source in sorted(records.unrated_sources(group for group, _ in seam.left)):
        seam.prompts.leave_out(source)
    for group, _ in seam.left:
        accuracies = records.valid_accuracies(group, rated)
        if len(accuracies):
            correct, partial = float(accuracies.sum()), float((accuracies * (1 - accuracies)).sum())
            seam.prompts.observe((group.data_source, group.index), correct, len(accuracies), step, partial)
    return seam.prompts.metrics() | seam.end_step()
