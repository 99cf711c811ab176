"""Runs in numbers: where the first update goes, how far the hard prompts come, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verl_gsd.lab.simulation import Run

#: Edges of solve rates: at the start, and in the end. A rate on an edge belongs to the interval above.
START_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
FINAL_EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
#: What a quarter has learned when its mean solve rate is there; and the mean of all at which paces are compared.
LEARNED, MEAN = 0.5, 0.8


@dataclass(frozen=True)
class Line:
    """One run in numbers.

    Attributes:
        final: mean solve rate in the end, and of the hardest and the easiest quarter.
        steps, rollouts: until the hardest quarter's mean solve rate reached ``LEARNED``; None where it did not.
            ``rollouts`` a prompt.
        all_rollouts: a prompt, in the whole run.
        at_mean: the hardest quarter's solve rate when the mean of all reached ``MEAN``: whom an algorithm serves first,
            whatever its pace; between two steps, linearly. None where the mean did not.
    """

    final: float
    final_hardest: float
    final_easiest: float
    steps: int | None
    rollouts: float | None
    all_rollouts: float
    at_mean: float | None


def line_of(run: Run) -> Line:
    """The numbers of a run."""
    hardest, mean = run.quarters[:, 0], run.quarters.mean(axis=1)
    learned = int((hardest >= LEARNED).argmax()) if (hardest >= LEARNED).any() else None
    return Line(
        final=float(run.final.mean()),
        final_hardest=float(hardest[-1]),
        final_easiest=float(run.quarters[-1, -1]),
        steps=learned,
        rollouts=None if learned is None else float(run.rollouts[learned]),
        all_rollouts=float(run.rollouts[-1]),
        at_mean=float(np.interp(MEAN, mean, hardest)) if mean[0] <= MEAN <= mean[-1] else None,
    )


def shares(rates: np.ndarray, edges: Sequence[float], weights: np.ndarray | None = None) -> np.ndarray:
    """(len(edges) - 1,): the share of ``weights``, (P,), whose rates lie in each interval; of the prompts where None.

    All 0 where the weights are.
    """
    mass, _ = np.histogram(rates, bins=np.asarray(edges), weights=weights)
    return mass / (mass.sum() or 1)
