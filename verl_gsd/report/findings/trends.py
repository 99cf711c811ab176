"""Robust statistics of a figure over steps, for findings.

A heavy tail is normal in training: single steps with extreme values must raise no alarm. Medians and median deviations
ignore them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verl_gsd.report.findings.finding import THRESHOLDS, errors_in_parts, known_values
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

#: The standard deviation of normal values divided by their median absolute deviation.
_NORMAL = 1.4826
#: Steps before and after a shift. It must be as large between the NEAR as between the FAR steps on both sides, because
#: a figure that grows steadily changes less between the near ones.
_NEAR, _FAR = 3, 8
_SUDDEN = 0.8
#: Standard deviations of a step's noise that a shift must exceed.
_SHIFT_SPREADS = 6.0
#: Values in a window of ``lasting_fall``, values that it needs to estimate their error, and standard errors that a fall
#: must exceed.
_FALL_WINDOW, _FALL_VALUES, _FALL_ERRORS = 5, 12, 4.0


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


def sudden_shift(table: Columns, name: str, least: float, *, n_parts: int | None = None) -> Shift | None:
    """Return the largest sudden shift of a column, or None if none exceeds ``least`` and the noise of a step.

    The noise is that of the differences between consecutive steps, which neither trends nor a few shifts change.

    Args:
        n_parts: the column is one of so many parts of a figure, which are all compared. The limit is then as unlikely
            to be exceeded in any of them as it is in one. A part has few groups per step, so that its median deviation
            can be 0 although it is noisy. Its standard deviation then counts.
    """
    values = known_values(table, name)
    if len(values) < 2 * _FAR:
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
        step: the last step of the window with the highest mean.
        best, last: means of that window and of the last one.
        size: number of values in a window.
    """

    step: int
    best: float
    last: float
    size: int


def lasting_fall(
    steps: np.ndarray, values: np.ndarray, least: float, error_at: Callable[[float], float] | None
) -> Fall | None:
    """Return the fall from the best window to the last one, or None if it is smaller than ``least`` or than chance.

    A window has a quarter of the values, and at most ``_FALL_WINDOW``. The best of many windows lies above the true
    level by chance. The limit is therefore ``_FALL_ERRORS`` standard errors of the difference of two windows.

    Args:
        steps, values: (K,), without NaN.
        error_at: the standard error of one value at a given level. None if it is not known. It is then estimated from
            the differences between consecutive values, which needs ``_FALL_VALUES`` of them. A steady change makes
            this estimate larger and the comparison less sensitive.
    """
    if len(values) < (4 if error_at else _FALL_VALUES):
        return None
    size = min(_FALL_WINDOW, len(values) // 4)
    means = np.lib.stride_tricks.sliding_window_view(values, size).mean(axis=1)
    at = int(means[:-size].argmax())
    best, last = float(means[at]), float(means[-1])
    error = error_at((best + last) / 2) if error_at else float(np.sqrt(np.mean(np.diff(values) ** 2) / 2))
    if best - last <= max(least, _FALL_ERRORS * error * np.sqrt(2 / size)):
        return None
    return Fall(int(steps[at + size - 1]), best, last, size)


def growth(table: Columns, name: str, *, n_parts: int = 1) -> float:
    """Recent mean minus initial mean of a column; 0 if noise explains it, or if there are too few steps.

    The noise of a window's mean is estimated from the values of the window.

    Args:
        n_parts: the column is one of so many parts of a figure, which are all compared.
    """
    values = known_values(table, name)
    if len(values) < THRESHOLDS.trend:
        return 0.0
    size = min(THRESHOLDS.window, len(values) // 3)
    first, last = values[:size], values[-size:]
    difference = float(last.mean() - first.mean())
    error = np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / size)
    return difference if abs(difference) > errors_in_parts(THRESHOLDS.growth_errors, n_parts) * error else 0.0


def _changes(values: np.ndarray, size: int) -> np.ndarray:
    """Median of ``size`` values minus the median of the ``size`` values before, for each position that has both."""
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, size), axis=1)
    return medians[size:] - medians[:-size]
