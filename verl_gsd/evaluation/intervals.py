"""Confidence intervals for accuracies, a paired test of two methods, and a test of equivalence.

A unit is what was sampled independently: a question of a benchmark, or a seed of a training run. Several responses to
one question are not independent units. They are averaged first, and the interval is over questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import stdtrit

from verl_gsd.prompts import independent_prompts

#: Sums are equal if they differ by less than this relative tolerance: 0.1 + 0.2 equals 0.3.
_TOLERANCE = 1e-9
#: Up to this many differences, the sign-flip test enumerates all 2^n patterns of signs; beyond it, it samples them.
_EXACT_LIMIT = 16
_SAMPLED_PATTERNS = 100_000
#: See ``mean_by_question``. With 2, the interval of 25 values of 0 and 1 covers in as little as 92.9% of cases. With 4,
#: its centre is so far from the mean that it covers 93% of values that hardly differ, of 1,000 questions.
_PSEUDO_QUESTIONS = 3


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` independent units with its interval. The ends are infinite if ``n`` units do not bound it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]" if math.isfinite(self.low) else f"{self.value:.3f}"


#: The success rate of ``n`` independent trials, with all three numbers in [0, 1].
Proportion = Estimate


@dataclass(frozen=True)
class PairedTest:
    """The difference between a second and a first method on the same units.

    Attributes:
        difference: mean of second - first. Its interval is Student's, unless the caller knows what the units are and
            replaces it by that of ``difference_by_question`` or ``difference_over_seeds``.
        p_value: of the two-sided sign-flip test.
        wins, ties, losses: number of units on which the second method is above, equal to, and below the first.
    """

    difference: Estimate
    p_value: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class EquivalenceTest:
    """The difference between two independent samples, and whether it is smaller than a margin.

    Attributes:
        difference: mean of second - mean of first, with Welch's 90% interval; ``n`` counts the units of both samples.
        p_value: the larger p-value of the two one-sided tests. The samples are equivalent at level 0.05 if it is below
            0.05, which is so if and only if the interval lies within (-margin, margin).
    """

    difference: Estimate
    margin: float
    p_value: float


def proportion(correct: float, n: int, confidence: float = 0.95) -> Proportion:
    """Return the share of ``correct`` of ``n`` prompts or questions, with the interval of ``mean_by_question``.

    It is the interval of ``n`` values that are 0 or 1, which have the largest spread of all values in [0, 1] with this
    mean. Use it if only the mean is known. ``correct`` need not be an integer: with several responses per prompt it is
    the sum of the prompts' solve rates, and the interval errs on the wide side.

    Raises:
        ValueError: ``n`` is not positive or ``correct`` is outside [0, n].
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n}: need 0 <= correct <= n and n >= 1")
    return _with_pseudo_questions(correct, correct, n, confidence)


def mean_by_question(values: np.ndarray, confidence: float = 0.95, *, questions: ArrayLike | None = None) -> Estimate:
    """Return the mean of one value per question, with an interval over questions.

    Student's interval alone is too narrow near 0 and 1: if one of 30 questions was solved once in 32 responses, it ends
    at 0.003, because the questions that happened not to be solved show no spread. We therefore add three pseudo-
    questions, half of them solved and half unsolved, and take Student's interval of the Q + 3 values:

        m = (sum x + 3/2) / (Q + 3),   v = (sum x^2 + 3/2) / (Q + 3) - m^2,   m +- t(Q - 1) * sqrt(v / (Q + 3))

    It is cut at 0 and 1, and always contains the mean of ``values``, which is the estimate. For values of 0 and 1 it is
    the interval of Agresti and Coull (The American Statistician 52, 1998) with 3 instead of z^2 = 3.84 pseudo-trials,
    and with t instead of z. ``benchmarks/interval_coverage.py`` measures how often it contains the true accuracy: in
    at least 93 of 100 cases for 15 to 1,000 questions.

    One question alone has the interval [0, 1].

    Args:
        values: (Q,) in [0, 1]: a question's share of correct responses, or its pass@k.
        questions: (Q,) labels. Values with the same label are of one question that was asked more than once. Their mean
            is one value, with their number as its weight, and Q becomes ``prompts.independent_prompts``. The estimate
            does not change.

    Raises:
        ValueError: ``values`` is empty, or a value is NaN or outside [0, 1]; the message names its row.
    """
    values = _check_values(values, "values")
    _check_shares(values, "values")
    values, weights, n = _by_label(values, questions)
    return _with_pseudo_questions(float((weights * values).sum()), float((weights * values**2).sum()), n, confidence)


def _by_label(values: np.ndarray, questions: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, int]:
    """The mean of the values of each label, its weight, and the sum of the weights.

    The sum is ``prompts.independent_prompts``: a mean of equally many values has the variance of the weighted mean.
    """
    if questions is None:
        return values, np.ones(len(values)), len(values)
    labels, place, rows = np.unique(np.asarray(questions), return_inverse=True, return_counts=True)
    if len(labels) == len(values):
        return values, np.ones(len(values)), len(values)
    n = independent_prompts(place.tolist())
    return np.bincount(place, weights=values) / rows, rows * (n / len(values)), n


def _with_pseudo_questions(total: float, squares: float, n: int, confidence: float) -> Estimate:
    """The interval of ``mean_by_question`` for n values in [0, 1] with this sum and this sum of squares."""
    share = total / n
    if n == 1:
        return Estimate(share, 0.0, 1.0, 1)
    mean, variance = _pseudo_mean(total, squares, n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(variance)
    return Estimate(share, max(0.0, mean - half), min(1.0, mean + half), n)


def _pseudo_mean(total: float, squares: float, n: int) -> tuple[float, float]:
    """The mean of n values and the pseudo-questions, and the estimated variance of this mean."""
    both = n + _PSEUDO_QUESTIONS
    mean = (total + _PSEUDO_QUESTIONS / 2) / both
    return mean, ((squares + _PSEUDO_QUESTIONS / 2) / both - mean**2) / both


def difference_by_question(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95, *, questions: ArrayLike | None = None
) -> Estimate:
    """Return the mean difference of two models' values on the same questions, with an interval over questions.

    Student's interval alone is too narrow if few questions differ, for the reason of ``mean_by_question``. We therefore
    add two pseudo-questions: with d = second - first, one has d = 1 and the other has d = -1.

        m = sum d / (Q + 2),   v = (sum d^2 + 2) / (Q + 2) - m^2,   m +- t(Q - 1) * sqrt(v / (Q + 2))

    The interval is cut at -1 and 1. For values of 0 and 1 it is similar to that of Agresti and Min (Statistics in
    Medicine 24, 2005), who add half a pair to each of the four outcomes of a pair. Only half of their pseudo-pairs
    differ, which makes the interval too narrow for small accuracies: 30 pairs are covered in as little as 88% of cases.

    One question alone has the interval [-1, 1].

    Args:
        first, second: (Q,) values in [0, 1] of the same Q questions in the same order.
        questions: as in ``mean_by_question``.

    Raises:
        ValueError: there are no values, the lengths differ, or a value is NaN or outside [0, 1].
    """
    first, second = _check_pairs(first, second)
    for name, values in (("first", first), ("second", second)):
        _check_shares(values, name)
    mean = float((second - first).mean())
    differences, weights, n = _by_label(second - first, questions)
    if n == 1:
        return Estimate(mean, -1.0, 1.0, 1)
    both = n + 2
    centre = n * mean / both
    variance = ((float((weights * differences**2).sum()) + 2) / both - centre**2) / both
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * math.sqrt(variance)
    return Estimate(mean, max(-1.0, centre - half), min(1.0, centre + half), n)


def paired_test(first: np.ndarray, second: np.ndarray, confidence: float = 0.95, seed: int = 0) -> PairedTest:
    """Test whether ``second`` differs from ``first`` on the same units (questions or seeds).

    The null hypothesis is that each difference could equally have had the opposite sign. The p-value is the share of
    sign patterns whose mean is at least as far from 0 as the observed mean. For up to 16 nonzero differences the test
    enumerates all 2^n patterns. Otherwise it samples 100,000 patterns and counts the observed one too:
    (hits + 1) / (100,000 + 1). With five seeds, p is at least 2/32 = 0.0625.

    The interval has width 0 if all differences are equal, and infinite ends if there is one unit.

    Args:
        first, second: (Q,) values of the same Q units in the same order.
        seed: of the sampled patterns.

    Raises:
        ValueError: there are no values, the lengths differ, or a value is NaN or infinite; the message names its row.
    """
    first, second = _check_pairs(first, second)
    differences = second - first
    differences[np.abs(differences) <= _TOLERANCE * max(np.abs(first).max(), np.abs(second).max())] = 0.0
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = _sign_flip_p(differences[differences != 0], seed)
    return PairedTest(student_mean(differences, confidence), p_value, wins, len(differences) - wins - losses, losses)


def equivalence_test(first: np.ndarray, second: np.ndarray, margin: float) -> EquivalenceTest:
    """Test whether the means of two independent samples differ by less than ``margin``.

    Two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987) with Welch's statistic,
    which does not assume equal variances:

        t_low = (m_2 - m_1 + margin) / se,   t_high = (m_2 - m_1 - margin) / se,   se^2 = s_1^2 / n_1 + s_2^2 / n_2

    The null hypotheses are m_2 - m_1 <= -margin and m_2 - m_1 >= margin. The samples are equivalent if both are
    rejected. Few units or large variances therefore never make two samples equivalent.

    Args:
        first, second: (n_1,) and (n_2,), one value per unit, such as the seeds of a run; at least two each.

    Raises:
        ValueError: the margin is not positive; a sample has fewer than two units; a value is NaN or infinite; or no
            value differs from another one of its sample, so that nothing is known of the variance.
    """
    first, second = _check_values(first, "first"), _check_values(second, "second")
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin} is not a positive number. Use the largest difference that does not matter")
    for name, values in (("first", first), ("second", second)):
        if len(values) < 2:
            raise ValueError(f"{name} has 1 unit, which has no variance. Use at least two units")
    scale = max(np.abs(first).max(), np.abs(second).max())
    if max(np.ptp(first), np.ptp(second)) <= _TOLERANCE * scale:
        raise ValueError("all values of first are equal, and so are those of second. Use units that can differ")

    def welch(shift: float, alternative: str) -> Any:
        return stats.ttest_ind(second + shift, first, equal_var=False, alternative=alternative)

    p_value = max(float(welch(margin, "greater").pvalue), float(welch(-margin, "less").pvalue))
    interval = welch(0.0, "two-sided").confidence_interval(0.9)
    value = float(second.mean() - first.mean())
    difference = Estimate(value, float(interval.low), float(interval.high), len(first) + len(second))
    return EquivalenceTest(difference, margin, p_value)


def _check_values(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} has shape {values.shape}. Use one number per unit, and at least one unit")
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise ValueError(f"{name}[{bad[0]}]={values[bad[0]]} is not finite. Use a number, or remove that unit")
    return values


def _check_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _check_values(first, "first"), _check_values(second, "second")
    if len(first) != len(second):
        raise ValueError(
            f"first has {len(first)} units and second has {len(second)}. Use the same units in the same order"
        )
    return first, second


def _check_shares(values: np.ndarray, name: str) -> None:
    if len(outside := np.flatnonzero((values < 0) | (values > 1))):
        raise ValueError(f"{name}[{outside[0]}]={values[outside[0]]} is outside [0, 1]. Use shares or probabilities")


def student_mean(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Return the mean of one value per unit, such as the seeds of a run, with Student's t interval.

        mean +- t(S - 1) * s / sqrt(S),   s^2 with divisor S - 1

    For normally distributed values it covers the true mean in 95% of cases for any number of units from two. For one
    unit the ends are infinite.

    Raises:
        ValueError: ``values`` is empty, or a value is NaN or infinite; the message names its row.
    """
    values = _check_values(values, "values")
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * values.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def mean_accuracy_over_seeds(values: np.ndarray, trials: int | None = None, confidence: float = 0.95) -> Estimate:
    """Return the mean of one accuracy per seed with an interval over seeds, within the possible range [0, 1].

    It is Student's interval (``student_mean``), extended to contain the interval of ``trials`` single responses with
    the same mean (``proportion``). With few seeds and few responses, the seeds can have equal or nearly equal
    accuracies by chance, and Student's interval alone is then far too narrow. ``benchmarks/interval_coverage.py``
    measures how often the result contains the true mean.

    Student's interval is cut at 0 and 1: it does not know that an accuracy has a range, and with few seeds it can leave
    it. The true mean cannot, so the cut interval contains it in as many cases. The ends for one seed stay infinite, as
    "no interval". They are infinite too if all seeds have the same accuracy and ``trials`` is unknown.

    Values outside [0, 1] are rewards and no accuracies. The interval of such values is Student's.

    Args:
        values: (S,), one accuracy per seed.
        trials: the number of responses behind all ``values`` together; None if unknown, or if accuracies are exact.

    Raises:
        ValueError: ``values`` is empty, or a value is NaN or infinite; the message names its row.
    """
    estimate = student_mean(values, confidence)
    if estimate.n == 1 or np.min(values) < 0 or np.max(values) > 1:
        return estimate
    low, high = estimate.low, estimate.high
    if trials is not None:
        of_trials = proportion(min(1.0, estimate.value) * trials, trials, confidence)
        low, high = min(low, of_trials.low), max(high, of_trials.high)
    elif np.ptp(values) <= _TOLERANCE:
        return Estimate(estimate.value, -math.inf, math.inf, estimate.n)
    return Estimate(estimate.value, max(0.0, low), min(1.0, high), estimate.n)


def difference_over_seeds(
    first: np.ndarray, second: np.ndarray, trials: int | None = None, confidence: float = 0.95
) -> Estimate:
    """Return the mean difference of two methods' accuracies on the same seeds, with an interval over seeds.

    It is Student's interval of the differences, extended to contain the interval of two independent shares of
    ``trials`` single responses. That one is as of Agresti and Caffo (The American Statistician 54, 2000), who add
    pseudo-trials to both samples; we add as many as in ``mean_by_question``. The reason is that of
    ``mean_accuracy_over_seeds``, and so is what happens with one seed, with equal differences if ``trials`` is unknown,
    and with rewards.

    Args:
        first, second: (S,) accuracies of the same S seeds in the same order.
        trials: the number of responses behind all values of ``first``, and of ``second``; None as in
            ``mean_accuracy_over_seeds``.

    Raises:
        ValueError: ``first`` and ``second`` cannot be subtracted, are empty, or a value is NaN or infinite.
    """
    first, second = _check_values(first, "first"), _check_values(second, "second")
    estimate = student_mean(second - first, confidence)
    values = np.concatenate([first, second])
    if estimate.n == 1 or values.min() < 0 or values.max() > 1:
        return estimate
    if trials is None:
        if np.ptp(second - first) <= _TOLERANCE:
            return Estimate(estimate.value, -math.inf, math.inf, estimate.n)
        return estimate
    (mean, variance), (other_mean, other_variance) = (
        _pseudo_mean(share * trials, share * trials, trials) for share in (first.mean(), second.mean())
    )
    half = float(stdtrit(trials - 1, (1 + confidence) / 2)) * math.sqrt(variance + other_variance)
    low, high = other_mean - mean - half, other_mean - mean + half
    return Estimate(estimate.value, min(estimate.low, low), max(estimate.high, high), estimate.n)


def _sign_flip_p(differences: np.ndarray, seed: int) -> float:
    """Return the two-sided p-value of the sum of ``differences``, none of which is 0.

    We do not use ``scipy.stats.permutation_test``: it counts sums that differ only by rounding as different, does not
    accept a single difference, and takes 2 to 14 times as long.
    """
    n = len(differences)
    # Rounding errors scale with the sum of absolute values, not with the sum itself, which may be close to 0.
    threshold = abs(float(differences.sum())) - _TOLERANCE * float(np.abs(differences).sum())
    if n <= _EXACT_LIMIT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * flipped) @ differences) >= threshold).mean())
    # For differences of one size, only the number of flips matters. Questions with 16 responses have few sizes.
    scale = float(np.abs(differences).max())
    rng, sums = np.random.default_rng(seed), np.zeros(_SAMPLED_PATTERNS)
    for size, count in zip(*np.unique(np.round(np.abs(differences) / scale, 12), return_counts=True), strict=True):
        sums += size * (count - 2 * rng.binomial(count, 0.5, _SAMPLED_PATTERNS))
    return (int((scale * np.abs(sums) >= threshold).sum()) + 1) / (_SAMPLED_PATTERNS + 1)
