"""Robust statistics of a figure over steps, for findings.

A heavy tail is normal in training: single steps with extreme values must raise no alarm. Medians and median deviations
ignore them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verl_gsd.report.findings.finding import THRESHOLDS, errors_in_parts, known_values, window_size
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

#: The standard deviation of normal values divided by their median absolute deviation.
_NORMAL = 1.4826
#: The variance of the median of many normal values divided by that of their mean. It is smaller for few values.
_OF_MEDIAN = np.pi / 2
#: Steps before and after a shift. It must be as large between the NEAR as between the FAR steps on both sides, because
#: a figure that grows steadily changes less between the near ones.
_NEAR, _FAR = 3, 8
#: Steps that ``sudden_shift`` needs.
SHIFT_STEPS = 2 * _FAR
_SUDDEN = 0.8
#: Standard deviations of a step's noise that a shift must exceed.
_SHIFT_SPREADS = 6.0
#: Values that ``lasting_fall`` needs if their error is known, and if it must estimate the error from them.
FALL_VALUES, FALL_VALUES_WITHOUT_ERROR = 4, 12
#: Values in a window of ``lasting_fall``, and standard errors that a fall must exceed.
_FALL_WINDOW, _FALL_ERRORS = 5, 4.0


@dataclass(frozen=True)
class Shift:
    """A sudden, lasting change of a figure.

    Attributes:
        step: the first step with the new level.
        before, after: medians of the steps before, and from ``step`` on.
    """

    step: int
    before: float
    after: float


def spread(values: np.ndarray) -> float:
    """Robust standard deviation: the median absolute deviation, scaled for normal values."""
    return _NORMAL * float(np.median(np.abs(values - np.median(values))))


def noise_of_step(values: np.ndarray) -> float:
    """Standard deviation of single values from the differences between consecutive ones, which trends hardly change."""
    return float(np.sqrt(np.mean(np.diff(values) ** 2) / 2))


@dataclass(frozen=True)
class LevelEstimate:
    """A level of a figure, and its standard error."""

    value: float
    error: float


def start_levels(values: np.ndarray) -> list[LevelEstimate]:
    """Levels at the start of a run: medians of the first values, from ``THRESHOLDS.start`` to half a window of them.

    A fault that begins at the first step can be complete after a few. Only the shortest start then has the level before
    the fault. A longer run has all starts of a shorter one, so that a finding that follows from a start remains. A mean
    of three values would follow a single extreme one.

    The first values are too few to estimate a standard error from their deviation, and can include a part of the
    change. It is therefore the largest of what follows from the differences between consecutive values, of the whole
    run and of its first window; from the deviation of the last window; and from the deviation of medians of so many
    values in the second half of the run, which is larger if a figure drifts without a fault.

    Args:
        values: (K,) of the steps from the first on, without NaN, at least ``THRESHOLDS.trend``.
    """
    size, late = window_size(values), values[len(values) // 2 :]
    of_step = max(noise_of_step(values), noise_of_step(values[:size]), float(values[-size:].std(ddof=1)))
    levels = []
    for count in range(THRESHOLDS.start, max(THRESHOLDS.start, size // 2) + 1):
        of_late = np.median(np.lib.stride_tricks.sliding_window_view(late, count), axis=1)
        error = max(of_step * np.sqrt(_OF_MEDIAN / count), float(of_late.std(ddof=1)))
        levels.append(LevelEstimate(float(np.median(values[:count])), error))
    return levels


def sudden_shift(table: Columns, name: str, least: float, *, n_parts: int | None = None) -> Shift | None:
    """Return the largest sudden shift of a column, or None if none exceeds ``least`` and the noise of a step.

    The noise is that of the differences between consecutive steps, which neither trends nor a few shifts change.

    Args:
        n_parts: the column is one of so many parts of a figure, which are all compared. The limit is then as unlikely
            to be exceeded in any of them as it is in one. A part has few groups per step, so that its median deviation
            can be 0 although it is noisy. Its standard deviation then counts.
    """
    values = known_values(table, name)
    if len(values) < SHIFT_STEPS:
        return None
    steps = table["step"][~np.isnan(column(table, name))]
    differences = np.diff(values)
    noise, spreads = spread(differences), _SHIFT_SPREADS
    if n_parts is not None:
        others = np.sort(np.abs(differences))[:-1]  # the largest may be the shift
        noise = max(noise, float(np.sqrt(np.mean(others**2))))
        spreads = errors_in_parts(spreads, n_parts)
    limit = max(least, spreads * noise / np.sqrt(2))
    near, far = (_changes(values, size)[_FAR - size : len(values) - _FAR - size + 1] for size in (_NEAR, _FAR))
    # ``far`` may be larger by the noise alone; a steady growth is larger by the ratio of the distances.
    is_shift = (np.abs(near) > limit) & (np.abs(far) > limit) & (np.abs(near) >= _SUDDEN * np.abs(far))
    if not is_shift.any():
        return None
    at = int(np.argmax(np.where(is_shift, np.abs(far), 0.0))) + _FAR
    return Shift(int(steps[at]), float(np.median(values[at - _FAR : at])), float(np.median(values[at : at + _FAR])))


@dataclass(frozen=True)
class Fall:
    """A figure that was higher before than it is now.

    Attributes:
        step: the last step of the window from which the figure fell.
        best, last: means of that window and of the last one.
        size, last_size: numbers of values in these windows.
    """

    step: int
    best: float
    last: float
    size: int
    last_size: int


def lasting_fall(
    steps: np.ndarray, values: np.ndarray, least: float, error_at: Callable[[float], float] | None
) -> Fall | None:
    """Return the fall from an earlier window to the last one, or None if it is smaller than ``least`` or than chance.

    A window has a quarter of the values, and at most ``_FALL_WINDOW``. The best of many windows lies above the true
    level by chance. The limit is therefore ``_FALL_ERRORS`` standard errors of the difference of two windows.

    If the standard error is known, the first value alone, the first two, and so on count as windows, too. The first
    value is often that of the base model, and all others can lie after the fall. Of several falls, it is the largest.

    Args:
        steps, values: (K,), without NaN.
        error_at: the standard error of one value at a given level. None if it is not known. It is then estimated from
            the differences between consecutive values, which needs ``FALL_VALUES_WITHOUT_ERROR`` of them. A
            steady change makes this estimate larger and the comparison less sensitive.
    """
    if len(values) < (FALL_VALUES if error_at else FALL_VALUES_WITHOUT_ERROR):
        return None
    size = min(_FALL_WINDOW, len(values) // 4)
    means = np.lib.stride_tricks.sliding_window_view(values, size).mean(axis=1)
    at, last = int(means[:-size].argmax()), float(means[-1])
    starts = range(1, size) if error_at else ()
    earlier = [
        Fall(int(steps[at + size - 1]), float(means[at]), last, size, size),
        *(Fall(int(steps[count - 1]), float(values[:count].mean()), last, count, size) for count in starts),
    ]

    def is_large(fall: Fall) -> bool:
        of_value = error_at((fall.best + last) / 2) if error_at else noise_of_step(values)
        return fall.best - last > max(least, _FALL_ERRORS * of_value * np.sqrt(1 / fall.size + 1 / size))

    return max(filter(is_large, earlier), key=lambda fall: fall.best, default=None)


@dataclass(frozen=True)
class Rise:
    """A figure that has risen since the start of the run.

    Attributes:
        first: mean or median at the start.
        last: mean over the recent steps.
    """

    first: float
    last: float


def rise(table: Columns, name: str, least: float, *, n_parts: int = 1) -> Rise | None:
    """Return the largest rise of a column since the start of the run; None if it is below ``least``, or noise.

    The initial mean and each of ``start_levels`` are compared with the recent mean. The noise of a window's mean is
    estimated from the values of the window.

    Args:
        n_parts: the column is one of so many parts of a figure, which are all compared.
    """
    values = known_values(table, name)
    if len(values) < THRESHOLDS.trend:
        return None
    size = window_size(values)
    initial, recent = _mean_level(values[:size]), _mean_level(values[-size:])
    errors = errors_in_parts(THRESHOLDS.growth_errors, n_parts)
    lower = [
        first.value
        for first in (initial, *start_levels(values))
        if recent.value - first.value > max(least, errors * np.hypot(first.error, recent.error))
    ]
    return Rise(min(lower), recent.value) if lower else None


def growth(table: Columns, name: str) -> float:
    """Recent mean minus initial mean of a column; 0 if noise explains it, or if there are too few steps.

    The noise of a window's mean is estimated from the values of the window.
    """
    values = known_values(table, name)
    if len(values) < THRESHOLDS.trend:
        return 0.0
    size = window_size(values)
    initial, recent = _mean_level(values[:size]), _mean_level(values[-size:])
    difference = recent.value - initial.value
    is_large = abs(difference) > THRESHOLDS.growth_errors * np.hypot(initial.error, recent.error)
    return difference if is_large else 0.0


def _mean_level(values: np.ndarray) -> LevelEstimate:
    return LevelEstimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def _changes(values: np.ndarray, size: int) -> np.ndarray:
    """Median of ``size`` values minus the median of the ``size`` values before, for each position that has both."""
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, size), axis=1)
    return medians[size:] - medians[:-size]
