"""Confidence intervals for accuracies, and a paired test of two methods.

A unit is an independent observation: a question of a benchmark, or a seed of a training run. Samples of one question
are not independent: they are averaged first, and the interval is over questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Sums whose relative difference is below this count as equal, so that 0.1 + 0.2 equals 0.3.
_TIED = 1e-9
#: Up to this many differences, the sign-flip test enumerates all 2^n sign patterns. Beyond, it draws random ones.
_EXACT = 16
_PATTERNS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` independent units with its interval. The ends are infinite if ``n`` is too small for any."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


#: An estimate of the success rate of ``n`` independent trials. Value and ends are in [0, 1].
Proportion = Estimate


@dataclass(frozen=True)
class Paired:
    """A comparison of two methods on the same units.

    Attributes:
        difference: mean of second - first, with Student's t interval.
        p_value: p-value of the two-sided sign-flip test.
        wins, ties, losses: numbers of units on which the second method is better than, equal to, or worse than the
            first.
    """

    difference: Estimate
    p_value: float
    wins: int
    ties: int
    losses: int


def wilson(correct: float, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval for ``correct`` successes in ``n`` independent trials.

    ``correct`` need not be a whole number. With several samples per prompt, it is the sum of the prompts' solve rates.

    Raises:
        ValueError: ``n`` is not positive or ``correct`` is outside [0, n].
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n} is impossible. Use n >= 1 and 0 <= correct <= n")
    return _wilson(correct / n, n, confidence)


def mean_by_question(figures: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean of one figure per question, with Student's t interval over questions, clipped to [0, 1].

        mean +- t(Q - 1) * s / sqrt(Q),   s^2 with divisor Q - 1

    Special cases:

    - All figures are 0 or 1, for example with one sample per question: Wilson's interval for Q trials. Near 0 and 1,
      Student's interval is too narrow, and its ends can move in the wrong direction (29 of 30 solved would have a
      higher lower end than 30 of 30).
    - All figures are equal, so that s = 0: also Wilson's interval. It is rather too wide than too narrow, because for a
      given mean, figures in [0, 1] vary most if they are all 0 or 1.
    - One question: the interval is [0, 1].

    Args:
        figures: (Q,) in [0, 1]: each question's share of right samples, or its pass@k.

    Raises:
        ValueError: ``figures`` is empty, or a figure is NaN or outside [0, 1]. The message names the row.
    """
    figures = _as_finite(figures, "figures")
    if len(outside := np.flatnonzero((figures < 0) | (figures > 1))):
        raise ValueError(f"figures[{outside[0]}]={figures[outside[0]]} is outside [0, 1]. Use shares")
    if len(figures) == 1:
        return Estimate(float(figures[0]), 0.0, 1.0, 1)
    if np.ptp(figures) <= _TIED or np.isin(figures, (0, 1)).all():
        return _wilson(float(figures.mean()), len(figures), confidence)
    estimate = _student(figures, confidence)
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high), estimate.n)


def paired(first: np.ndarray, second: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Paired:
    """Test whether ``second`` is better than ``first`` on the same units (questions or seeds).

    Under the null hypothesis, both signs of each difference are equally likely. The p-value is the probability of a
    mean at least as far from 0. With up to 16 nonzero differences, all 2^n sign patterns are enumerated. With more,
    100,000 random patterns are drawn, and p = (hits + 1) / (100,000 + 1). With five seeds, p cannot be below
    2/32 = 0.0625.

    The interval has width 0 if all differences are equal, and infinite ends for one unit.

    Args:
        first, second: (Q,) figures of the same Q units in the same order.
        seed: seed of the random patterns.

    Raises:
        ValueError: there are no units, the lengths differ, or a figure is NaN or infinite (the message names the row).
    """
    first, second = _as_finite(first, "first"), _as_finite(second, "second")
    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} units and second has {len(second)}. Use the same units in the same order"
        )
    differences = second - first
    differences[np.abs(differences) <= _TIED * max(np.abs(first).max(), np.abs(second).max())] = 0.0
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = _sign_flip(differences[differences != 0], seed)
    return Paired(_student(differences, confidence), p_value, wins, len(differences) - wins - losses, losses)


def bootstrap_mean(values: np.ndarray, draws: int = 10_000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """The mean with its percentile bootstrap interval: quantiles of the means of resampled units.

    The interval is too narrow for few units, because it uses neither the divisor S - 1 nor Student's t. For normal
    values, a 95% interval covers the mean in about 84 of 100 cases with five units, 90 with ten, and 93 with thirty.
    ``paired`` does not have this problem. The ends are infinite for one unit.

    Args:
        values: (S,), one per unit, for example per seed of a run.
        draws: number of bootstrap replicates.
        seed: seed of the resampling.

    Raises:
        ValueError: ``values`` is empty, or a value is NaN or infinite. The message names the row.
    """
    values = _as_finite(values, "values")
    if len(values) == 1:
        return Estimate(float(values[0]), -math.inf, math.inf, 1)
    drawn = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    means = values[drawn].mean(axis=1)
    low, high = (float(np.quantile(means, share)) for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    return Estimate(float(values.mean()), low, high, len(values))


def _as_finite(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} has shape {values.shape}. Use one number per unit, and at least one unit")
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise ValueError(
            f"{name}[{bad[0]}]={values[bad[0]]} is not finite. Use a finite number, or leave that unit out"
        )
    return values


def _student(values: np.ndarray, confidence: float) -> Estimate:
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def _wilson(share: float, n: int, confidence: float) -> Estimate:
    """Wilson's interval. Its ends p solve (share - p)^2 = z^2 p (1 - p) / n. ``share * n`` need not be whole."""
    z = float(stats.norm.ppf((1 + confidence) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # min and max: for a share of 0 or 1, rounding could exclude the share itself from the interval.
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n)


def _sign_flip(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the sum of ``differences``, none of which is 0."""
    n = len(differences)
    # The tolerance for rounding is relative to the sum of sizes, because the sum itself may be near 0.
    threshold = abs(float(differences.sum())) - _TIED * float(np.abs(differences).sum())
    if n <= _EXACT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * flipped) @ differences) >= threshold).mean())
    # For differences of equal size, only the number of flips matters. Questions with 16 samples have few sizes.
    scale = float(np.abs(differences).max())
    rng, sums = np.random.default_rng(seed), np.zeros(_PATTERNS)
    for size, count in zip(*np.unique(np.round(np.abs(differences) / scale, 12), return_counts=True), strict=True):
        sums += size * (count - 2 * rng.binomial(count, 0.5, _PATTERNS))
    return (int((scale * np.abs(sums) >= threshold).sum()) + 1) / (_PATTERNS + 1)
