r"""Estimates for a prompt whose solve rate is unknown, but ``correct`` of ``n`` earlier responses were correct.

Using correct/n as p is biased: it overstates the silent rate, because a small sample agrees by chance. The
``*_from_counts`` estimates draw G of the n responses without replacement, which is unbiased and needs G <= n. The
``posterior_*`` estimates update a Beta prior instead and work for any n.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln

from verl_gsd.planning.distinct import distinct_pairs
from verl_gsd.planning.rates import check_alpha, check_entries, check_group_sizes, log_gain, scalar_or_array


def silent_rate_from_counts(correct: ArrayLike, n: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Unbiased estimate of p^G + (1-p)^G: [C(c,G) + C(n-c,G)] / C(n,G).

    Raises:
        ValueError: counts are not integers with 0 <= correct <= n, or ``group_size`` exceeds ``n``; the message names
            the entry.
    """
    return _over_distinct(correct, n, group_size, _silent)


def expected_std_from_counts(correct: ArrayLike, n: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Unbiased estimate of E[sigma_hat]: the mean of sqrt(j (G-j)) / G for a hypergeometric j.

    Raises:
        ValueError: as ``silent_rate_from_counts``.
    """
    return _over_distinct(correct, n, group_size, _expected_std)


def posterior_silent_rate(
    correct: ArrayLike,
    n: ArrayLike,
    group_size: ArrayLike,
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    partial: ArrayLike = 0.0,
) -> np.ndarray | float:
    """E[p^G + (1-p)^G] under the posterior Beta(a + c, b + n - c).

    Counts may be fractions, and ``n`` may be 0.

    Args:
        prior: (a, b), both above 0; (1, 1) is uniform.
        partial: see ``posterior``.

    Raises:
        ValueError: counts, group size or prior are out of range; the message names the entry.
    """
    a, b, size = _posterior_at(correct, n, group_size, prior, partial)
    silent = np.exp(betaln(a + size, b) - betaln(a, b)) + np.exp(betaln(a, b + size) - betaln(a, b))
    return scalar_or_array(silent)


def posterior_expected_std(
    correct: ArrayLike,
    n: ArrayLike,
    group_size: ArrayLike,
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    partial: ArrayLike = 0.0,
) -> np.ndarray | float:
    """E[sigma_hat] under the posterior: the mean of sqrt(k (G-k)) / G for a beta-binomial k.

    Counts may be fractions, and ``n`` may be 0.

    Args:
        partial: see ``posterior``.

    Raises:
        ValueError: as ``posterior_silent_rate``.
    """
    return posterior_gain(correct, n, group_size, 1.0, prior, partial=partial)


def posterior_gain(
    correct: ArrayLike,
    n: ArrayLike,
    group_size: ArrayLike,
    alpha: float,
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    ddof: int = 0,
    eps: float = 0.0,
    partial: ArrayLike = 0.0,
) -> np.ndarray | float:
    """The mean of ``rates.gain`` under the posterior: a prompt's expected weight in the update under the dial.

    Counts may be fractions, and ``n`` may be 0. The cost grows with the number of distinct posteriors.

    Args:
        partial: see ``posterior``.

    Raises:
        ValueError: as ``posterior_silent_rate``, or alpha is not finite.
    """
    check_alpha(alpha)
    a, b, sizes = _posterior_at(correct, n, group_size, prior, partial)
    result = np.zeros(a.shape)
    for size in np.unique(sizes):
        rows = sizes == size
        (right, wrong), pair_of_row, _ = distinct_pairs(a[rows], b[rows])
        gains, log_beta = np.zeros(len(right)), betaln(right, wrong)
        for k in range(1, int(size)):
            log_chance = betaln(right + k, wrong + size - k) - log_beta
            gains += np.exp(_log_choose(size, k) + log_chance + log_gain(k, size, alpha, ddof, eps))
        result[rows] = gains[pair_of_row]
    return scalar_or_array(result)


def _over_distinct(
    correct: ArrayLike,
    n: ArrayLike,
    group_size: ArrayLike,
    estimate: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
) -> np.ndarray | float:
    """Evaluate ``estimate`` once for every distinct pair of counts at each group size."""
    c, total, sizes = _checked_counts(correct, n, group_size)
    check_entries(total >= sizes, total, "n", "at least the group size, or the posterior_* functions")
    result = np.empty(c.shape)
    for size in np.unique(sizes):
        rows = sizes == size
        key = (c[rows] << 32) + total[rows]
        pairs, pair_of_row = np.unique(key, return_inverse=True)
        result[rows] = estimate(pairs >> 32, pairs & (2**32 - 1), int(size))[pair_of_row.ravel()]
    return scalar_or_array(result)


def _silent(c: np.ndarray, n: np.ndarray, size: int) -> np.ndarray:
    right, wrong = np.ones(len(c)), np.ones(len(c))
    for j in range(size):  # dividing the binomials factor by factor gives exact zeros if c < G
        right *= np.maximum(c - j, 0) / (n - j)
        wrong *= np.maximum(n - c - j, 0) / (n - j)
    return right + wrong


def _expected_std(c: np.ndarray, n: np.ndarray, size: int) -> np.ndarray:
    total = np.zeros(len(c))
    for j in range(1, size):
        log_share = _log_choose(c, j) + _log_choose(n - c, size - j) - _log_choose(n, size)
        total += np.sqrt(j * (size - j)) / size * np.exp(log_share)
    return total


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    """log C(n, k), or -inf if k > n."""
    n = np.asarray(n, dtype=float)
    at_least_k = np.maximum(n, k)
    log_binomial = gammaln(at_least_k + 1) - gammaln(k + 1) - gammaln(at_least_k - k + 1)
    return np.where(n >= k, log_binomial, -np.inf)


def posterior(
    correct: ArrayLike, n: ArrayLike, prior: tuple[float, float], partial: ArrayLike = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""The parameters a + correct and b + n - correct of the posterior Beta, broadcast to one shape.

    Counts may be fractions, and ``n`` may be 0.

    Verdicts x_i between 0 and 1 give partial credit. Eight verdicts of 0.5 sum to 4, but they never differ, while four
    of 1 and four of 0 do. With the sum of squares, the expected squared difference of two verdicts is known under the
    Dirichlet process whose base has the mass a at 1 and b at 0. It generalises the Beta prior:

        E[(x - x')^2] = 2 (A B - N partial) / (N (N + 1)),    A = a + correct, B = b + n - correct, N = A + B.

    The result is then the Beta of verdicts 0 and 1 with the same N and the same expected squared difference, and with
    its mean on the same side of 1/2. If ``partial`` is 0, this is Beta(A, B).

    Args:
        partial: sum_i x_i (1 - x_i), which is 0 if every verdict is 0 or 1.

    Raises:
        ValueError: not 0 <= correct <= n, or ``partial`` is out of range (the message names the entry), or not
            a, b > 0.
    """
    c, total, partial = (np.asarray(values, dtype=float) for values in (correct, n, partial))
    check_entries((total >= 0) & np.isfinite(total), total, "n", "a finite number of at least 0")
    check_entries((c >= 0) & np.isfinite(c), c, "correct", "a finite number of at least 0")
    check_entries((partial >= 0) & np.isfinite(partial), partial, "partial", "a finite number of at least 0")
    c, total, partial = np.broadcast_arrays(c, total, partial)
    # Rounding can make a sum of fractional verdicts, such as 0.1, slightly larger than the number of responses.
    check_entries(c <= total * (1 + 1e-9), c, "correct", "at most the same entry of n")
    if not (np.shape(prior) == (2,) and min(prior) > 0 and np.isfinite(prior).all()):
        raise ValueError(f"prior={prior} is not a Beta prior. Use two finite numbers above 0.")
    a, b = c + prior[0], np.maximum(total - c, 0) + prior[1]
    # (sum x)^2 <= n sum x^2 bounds the partial credit. At the bound all verdicts are equal. Counts that are nearly
    # forgotten are so small that each is rounded on its own, hence the last term.
    # The quotient comes first, because the product of two counts that are nearly forgotten underflows to 0.
    largest = c * (np.maximum(total - c, 0) / np.where(total > 0, total, 1))
    within = partial <= largest * (1 + 1e-9) + 1e-12 * total + np.finfo(float).tiny
    check_entries(within, partial, "partial", "at most correct (n - correct) / n of the same entry")
    if not partial.any():
        return a, b
    both = a + b
    product = a * b - both * np.minimum(partial, largest)  # of the two new parameters, whose sum is also ``both``
    larger = both / 2 + np.sqrt(np.maximum(both**2 / 4 - product, 0))
    smaller = product / larger  # not ``both - larger``, which loses digits
    is_graded = partial > 0
    return (
        np.where(is_graded, np.where(a >= b, larger, smaller), a),
        np.where(is_graded, np.where(a >= b, smaller, larger), b),
    )


def _posterior_at(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike, prior: tuple[float, float], partial: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parameters of ``posterior`` and the group sizes, broadcast to one shape."""
    sizes = np.asarray(group_size, dtype=float)
    check_group_sizes(sizes)
    a, b, sizes = np.broadcast_arrays(*posterior(correct, n, prior, partial), sizes)
    return a, b, sizes


def _checked_counts(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts and sizes as int64 arrays of one shape.

    Raises:
        ValueError: an entry is out of range; the message names the first one.
    """
    c, total, sizes = (np.asarray(values, dtype=float) for values in (correct, n, group_size))
    is_count = (total >= 1) & (total < 2**31) & (total == np.floor(total))
    check_entries(is_count, total, "n", "a whole number from 1 to 2^31 - 1")
    check_entries((c >= 0) & (c == np.floor(c)), c, "correct", "a whole number of at least 0")
    check_group_sizes(sizes)
    c, total, sizes = np.broadcast_arrays(c, total, sizes)
    check_entries(c <= total, c, "correct", "at most the same entry of n")
    return c.astype(np.int64), total.astype(np.int64), sizes.astype(np.int64)
