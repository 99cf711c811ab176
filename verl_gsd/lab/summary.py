"""Runs in numbers: where the first update goes, how far the hard prompts rise, and how many rollouts that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_gsd.lab.simulation import SimulatedRun

#: Edges of intervals of solve rates, at the start and at the end. A rate on an edge belongs to the interval above it.
START_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
FINAL_EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
#: A quarter is learned when its mean solve rate reaches the first; ``at_mean`` compares runs when the mean solve rate
#: of all prompts reaches the second.
LEARNED, MEAN = 0.5, 0.8


@dataclass(frozen=True)
class RunSummary:
    """One run in numbers.

    Attributes:
        final, final_hardest, final_easiest: mean solve rate at the end, of all prompts, of the hardest quarter and of
            the easiest quarter.
        steps, rollouts: until the mean solve rate of the hardest quarter reached ``LEARNED``; None if it did not.
            ``rollouts`` are per prompt.
        all_rollouts: rollouts per prompt in the whole run.
        at_mean: the hardest quarter's solve rate when the mean of all prompts reached ``MEAN``, interpolated linearly
            between two steps. It shows which prompts an algorithm improves first, whatever its pace. None if the mean
            did not reach ``MEAN``.
    """

    final: float
    final_hardest: float
    final_easiest: float
    steps: int | None
    rollouts: float | None
    all_rollouts: float
    at_mean: float | None


def summarize(run: SimulatedRun) -> RunSummary:
    """The numbers of a run."""
    hardest, mean = run.quarters[:, 0], run.quarters.mean(axis=1)
    learned = int((hardest >= LEARNED).argmax()) if (hardest >= LEARNED).any() else None
    return RunSummary(
        final=float(run.final.mean()),
        final_hardest=float(hardest[-1]),
        final_easiest=float(run.quarters[-1, -1]),
        steps=learned,
        rollouts=None if learned is None else float(run.rollouts[learned]),
        all_rollouts=float(run.rollouts[-1]),
        at_mean=float(np.interp(MEAN, mean, hardest)) if mean[0] <= MEAN <= mean[-1] else None,
    )


def shares(rates: np.ndarray, edges: Sequence[float], weights: np.ndarray | None = None) -> np.ndarray:
    """(len(edges) - 1,): the share of ``weights``, (P,), that belongs to rates in each interval.

    Without weights it is the share of the prompts. If the weights sum to 0, all shares are 0.
    """
    mass, _ = np.histogram(rates, bins=np.asarray(edges), weights=weights)
    return mass / (mass.sum() or 1)
