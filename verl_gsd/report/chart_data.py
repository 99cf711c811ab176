"""Aggregates the data of a run for charts: steps are averaged in spans, groups are counted in cells and bins."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa

from verl_gsd.records import float_column, gradient_mass, is_silent
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import (
    USES,
    column,
    group_accuracies,
    is_one_of,
)

#: Maximum number of points of a line.
MAX_POINTS = 200
#: Share of a line's points from which each point of its smoothed line is computed, and the minimum number of them.
_SPAN, _LEAST = 0.2, 9
#: Columns and rows of the heat map, and bins of accuracy.
MAP_COLUMNS, MAP_ROWS, ACCURACY_BINS = 100, 20, 10


def averaged_in_spans(table: Columns, names: list[str], max_spans: int = MAX_POINTS) -> Columns:
    """Average the columns ``names`` over at most ``max_spans`` spans of consecutive steps.

    Steps without a value in any of the columns are left out first. The mean of a span is over the steps that have a
    value. Returns one row per span: the columns, the mean ``step``, and the span's bounds ``low`` and ``high``.
    """
    has_value: np.ndarray = np.zeros(len(table["step"]), dtype=bool)
    for name in names:
        has_value |= ~np.isnan(column(table, name))
    step = table["step"][has_value]
    width = max(1, -(-len(step) // max_spans))
    span: np.ndarray = np.arange(len(step)) // width
    spans = {"step": _span_means(step.astype(float), span), "low": step[::width] - 0.5}
    spans["high"] = np.append(spans["low"][1:], step[-1:] + 0.5)[: len(spans["low"])]
    return spans | {name: _span_means(column(table, name)[has_value], span) for name in names}


def smoothed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth a line by local linear regression with tricube weights. Unlike a moving average, it keeps the ends.

    Args:
        x: (n,) float64, ascending without duplicates.
        y: (n,) float64. Values that are not finite stay as they are, and do not count for others.

    Returns:
        (n,) float64, between the smallest and the largest finite ``y``. Lines with fewer points than ``_LEAST`` stay as
        they are.
    """
    known = np.isfinite(y)
    if known.sum() < _LEAST:
        return y
    at, values = x[known], y[known]
    unit = np.abs(values).max() or 1.0  # sums of values near the largest float would overflow
    values = values / unit
    distance = np.abs(at[:, None] - at)
    nearest = max(_LEAST, math.ceil(_SPAN * len(at)))
    reach = np.sort(distance, axis=1)[:, nearest - 1, None] * 1.001
    weight = (1 - np.minimum(distance / reach, 1) ** 3) ** 3
    offset = (at - at[:, None]) / reach
    w, wx, wxx = (np.sum(weight * offset**power, axis=1) for power in (0, 1, 2))
    wy, wxy = weight @ values, np.sum(weight * offset * values, axis=1)
    fitted = (wxx * wy - wx * wxy) / (w * wxx - wx**2)
    result = y.copy()
    result[known] = np.clip(fitted, values.min(), values.max()) * unit
    return result


def first_and_last_fifth(values: np.ndarray) -> list[np.ndarray]:
    """The indices of the first and of the last fifth of the values that are not NaN, at least one each.

    The mean of a fifth hides the noise of single steps. One list if there is a single value, none without a value.
    """
    known = np.flatnonzero(~np.isnan(values))
    size = max(1, len(known) // 5)
    return [known[:size], known[-size:]] if len(known) > 1 else [known] * len(known)


def sigma_cells(records: pa.Table) -> Columns:
    """Count the groups by span of steps and by range of sigma, the standard deviation of a group's rewards.

    Silent groups have a row of their own, below 0. Cells without groups are left out.

    Returns:
        One row per cell: ``low``, ``high`` (steps), ``below``, ``above`` (sigma), and ``share`` of the span's groups.
    """
    sigma, silent = float_column(records, "std"), is_silent(records)
    has_responses = ~np.isnan(sigma)
    steps, step_number = np.unique(records["step"].to_numpy()[has_responses], return_inverse=True)
    sigma, silent = sigma[has_responses], silent[has_responses]
    width = max(1, -(-len(steps) // MAP_COLUMNS))
    height = (sigma.max(initial=0.0) or 1.0) / MAP_ROWS
    levels = MAP_ROWS + 1
    level = np.where(silent, 0, np.clip((sigma / height).astype(int), 0, MAP_ROWS - 1) + 1)
    span = step_number // width
    counts = np.bincount(span * levels + level, minlength=(span.max(initial=-1) + 1) * levels).reshape(-1, levels)
    cell_span, cell_level = np.nonzero(counts)
    low = steps[::width] - 0.5
    high = np.append(low[1:], steps[-1:] + 0.5)
    return {
        "low": low[cell_span],
        "high": high[cell_span],
        "below": (cell_level - 1) * height,
        "above": cell_level * height,
        "share": counts[cell_span, cell_level] / counts.sum(axis=1)[cell_span],
    }


def accuracy_bins(records: pa.Table) -> Columns:
    """Count the groups that were trained on by their accuracy.

    Returns:
        One row per bin: ``low``, ``high``, the shares ``groups`` and ``gain_share``, and the mean ``gain``. The last
        bin includes 1. ``gain_share`` is the share of the gradient mass. It and ``gain`` are NaN if the estimator has
        no gain.
    """
    rate, gain = group_accuracies(records), float_column(records, "gain")
    known = is_one_of(records, "fate", "trained") & ~np.isnan(rate)
    # 1e-9 because of rounding: a rate on the edge of two bins belongs to the upper one.
    group_bin = np.minimum((rate[known] * ACCURACY_BINS + 1e-9).astype(int), ACCURACY_BINS - 1)
    groups = np.bincount(group_bin, minlength=ACCURACY_BINS).astype(float)
    sums = np.bincount(group_bin, gain[known], minlength=ACCURACY_BINS)
    masses = np.bincount(group_bin, gradient_mass(records)[known], minlength=ACCURACY_BINS)
    edges = np.arange(ACCURACY_BINS) / ACCURACY_BINS
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {"groups": groups / groups.sum(), "gain_share": masses / masses.sum(), "gain": sums / groups}
    return {"low": edges, "high": edges + 1 / ACCURACY_BINS} | shares


def totals_by_use(table: Columns) -> dict[str, dict[str, float]]:
    """The numbers of ``rollouts`` and ``tokens`` of all steps, each by use (``steps.USES``)."""
    return {
        unit: {use: float(np.nansum(column(table, f"{unit}_{use}"))) for use in USES} for unit in ("rollouts", "tokens")
    }


def _span_means(values: np.ndarray, span: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    size = span.max(initial=-1) + 1
    with np.errstate(invalid="ignore"):
        sums = np.bincount(span[known], values[known], minlength=size)
        return sums / np.bincount(span[known], minlength=size)
