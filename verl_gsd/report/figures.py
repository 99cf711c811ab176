"""Tables small enough to draw: a run's steps thinned, its groups counted in cells."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import USES, accuracies, column, is_any, numbers

#: Points a line has at most; columns and rows of a heat map; bins of accuracy.
POINTS, ACROSS, UP, BINS = 200, 100, 20, 10


def thinned(table: Columns, names: list[str], at_most: int = POINTS) -> Columns:
    """``step``, its mean, ``low`` and ``high``, and the columns, over at most ``at_most`` runs of consecutive steps.

    A value is the mean over the steps that have one. Steps without any of ``names`` are left out first.
    """
    some: np.ndarray = np.zeros(len(table["step"]), dtype=bool)
    for name in names:
        some |= ~np.isnan(column(table, name))
    step = table["step"][some]
    width = max(1, -(-len(step) // at_most))
    part: np.ndarray = np.arange(len(step)) // width
    found = {"step": _means(step.astype(float), part), "low": step[::width] - 0.5}
    found["high"] = np.append(found["low"][1:], step[-1:] + 0.5)[: len(found["low"])]
    return found | {name: _means(column(table, name)[some], part) for name in names}


def sigma_cells(records: pa.Table) -> Columns:
    """Shares of the groups of each span of steps by sigma: ``low, high`` (steps), ``below, above`` (sigma), ``share``.

    Silent groups have a row of their own, below 0. Cells without a group are left out.
    """
    sigma, mixed = numbers(records, "std"), is_any(records, "kind", "mixed")
    whole = ~np.isnan(sigma)
    steps, row = np.unique(records["step"].to_numpy()[whole], return_inverse=True)
    sigma, mixed = sigma[whole], mixed[whole]
    width = max(1, -(-len(steps) // ACROSS))
    height = (sigma.max(initial=0.0) or 1.0) / UP
    up = np.where(mixed, np.clip((sigma / height).astype(int), 0, UP - 1) + 1, 0)
    across = row // width
    counts = np.bincount(across * (UP + 1) + up, minlength=(across.max(initial=-1) + 1) * (UP + 1)).reshape(-1, UP + 1)
    place, level = np.nonzero(counts)
    low = steps[::width] - 0.5
    high = np.append(low[1:], steps[-1:] + 0.5)
    return {
        "low": low[place],
        "high": high[place],
        "below": (level - 1) * height,
        "above": level * height,
        "share": counts[place, level] / counts.sum(axis=1)[place],
    }


def by_accuracy(records: pa.Table) -> Columns:
    """Of the groups trained on, by accuracy: ``low, high``, the shares ``groups`` and ``gain_share``, mean ``gain``.

    ``BINS`` rows, of which the last includes 1; ``gain_share`` and ``gain`` are NaN where the estimator has no gain.
    """
    rate, gain = accuracies(records), numbers(records, "gain")
    known = is_any(records, "fate", "trained") & ~np.isnan(rate)
    place = np.minimum((rate[known] * BINS + 1e-9).astype(int), BINS - 1)
    groups = np.bincount(place, minlength=BINS).astype(float)
    sums = np.bincount(place, gain[known], minlength=BINS)
    edges = np.arange(BINS) / BINS
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {"groups": groups / groups.sum(), "gain_share": sums / sums.sum(), "gain": sums / groups}
    return {"low": edges, "high": edges + 1 / BINS} | shares


def by_use(table: Columns) -> dict[str, dict[str, float]]:
    """``rollouts`` and ``tokens`` of all steps, each by use (``steps.USES``)."""
    return {
        unit: {use: float(np.nansum(column(table, f"{unit}_{use}"))) for use in USES} for unit in ("rollouts", "tokens")
    }


def _means(values: np.ndarray, part: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    size = part.max(initial=-1) + 1
    with np.errstate(invalid="ignore"):
        sums = np.bincount(part[known], values[known], minlength=size)
        return sums / np.bincount(part[known], minlength=size)
