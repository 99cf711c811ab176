r"""A prompt whose solve rate is not known: ``correct`` of ``n`` earlier responses were right.

Putting correct/n in place of p is biased: it overstates silence, since a small sample agrees by chance. Drawing G of
the n responses without replacement is not, and needs G <= n. Where there are too few, a Beta prior is updated instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln

from verl_gsd.planning.rates import as_given, refuse, refuse_sizes


def silent_rate_from_counts(correct: ArrayLike, n: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Unbiased estimate of p^G + (1-p)^G: [C(c,G) + C(n-c,G)] / C(n,G).

    Raises:
        ValueError: counts are not whole numbers with 0 <= correct <= n, or ``group_size`` exceeds ``n`` (naming the
            entry).
    """
    return _over_distinct(correct, n, group_size, _silent)


def expected_std_from_counts(correct: ArrayLike, n: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Unbiased estimate of E[sigma_hat]: the mean of sqrt(j (G-j)) / G, j hypergeometric.

    Raises:
        ValueError: as ``silent_rate_from_counts``.
    """
    return _over_distinct(correct, n, group_size, _expected_std)


def posterior_silent_rate(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike, prior: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray | float:
    """E[p^G + (1-p)^G] under the posterior Beta(a + c, b + n - c); counts may be fractions, and ``n`` 0.

    Args:
        prior: (a, b), both above 0; (1, 1) is uniform.

    Raises:
        ValueError: counts, group size or prior are out of range (naming the entry).
    """
    a, b, size = _posterior_at(correct, n, group_size, prior)
    agree = np.exp(betaln(a + size, b) - betaln(a, b)) + np.exp(betaln(a, b + size) - betaln(a, b))
    return as_given(agree)


def posterior_expected_std(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike, prior: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray | float:
    """E[sigma_hat] under the posterior: the mean of sqrt(k (G-k)) / G, k beta-binomial.

    Counts may be fractions, and ``n`` 0.

    Raises:
        ValueError: as ``posterior_silent_rate``.
    """
    a, b, sizes = _posterior_at(correct, n, group_size, prior)
    result = np.zeros(a.shape)
    for size in np.unique(sizes):
        here = sizes == size
        for k in range(1, int(size)):
            weight = np.sqrt(k * (size - k)) / size
            log_chance = betaln(a[here] + k, b[here] + size - k) - betaln(a[here], b[here])
            result[here] += weight * np.exp(_log_choose(size, k) + log_chance)
    return as_given(result)


def _over_distinct(
    correct: ArrayLike,
    n: ArrayLike,
    group_size: ArrayLike,
    estimate: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
) -> np.ndarray | float:
    """``estimate`` once for every distinct pair of counts, a group size at a time."""
    c, total, sizes = _checked(correct, n, group_size)
    refuse(total < sizes, total, "n", "the group size or more, or use the posterior_* functions")
    result = np.empty(c.shape)
    for size in np.unique(sizes):
        here = sizes == size
        key = (c[here] << 32) + total[here]
        pairs, back = np.unique(key, return_inverse=True)
        result[here] = estimate(pairs >> 32, pairs & (2**32 - 1), int(size))[back.ravel()]
    return as_given(result)


def _silent(c: np.ndarray, n: np.ndarray, size: int) -> np.ndarray:
    right, wrong = np.ones(len(c)), np.ones(len(c))
    for j in range(size):  # the quotient of binomials, factor by factor: exact zeros where c < G
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
    """log C(n, k); -inf where k > n."""
    n = np.asarray(n, dtype=float)
    possible = np.maximum(n, k)
    ways = gammaln(possible + 1) - gammaln(k + 1) - gammaln(possible - k + 1)
    return np.where(n >= k, ways, -np.inf)


def posterior(correct: ArrayLike, n: ArrayLike, prior: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """a + correct and b + n - correct of one shape: of the posterior Beta; counts may be fractions, and ``n`` 0.

    Raises:
        ValueError: not 0 <= correct <= n, or not a, b > 0 (naming the entry).
    """
    c, total = np.asarray(correct, dtype=float), np.asarray(n, dtype=float)
    refuse(~((total >= 0) & np.isfinite(total)), total, "n", "a number, 0 or more")
    refuse(~((c >= 0) & np.isfinite(c)), c, "correct", "a number, 0 or more")
    c, total = np.broadcast_arrays(c, total)
    # A sum of shares such as 0.1 exceeds what they are shares of by rounding.
    refuse(c > total * (1 + 1e-9), c, "correct", "no more than n of the same entry")
    if not (np.shape(prior) == (2,) and min(prior) > 0 and np.isfinite(prior).all()):
        raise ValueError(f"prior={prior}: write two numbers above 0")
    return c + prior[0], np.maximum(total - c, 0) + prior[1]


def _posterior_at(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike, prior: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``posterior`` and the group sizes, broadcast to one shape."""
    sizes = np.asarray(group_size, dtype=float)
    refuse_sizes(sizes)
    a, b, sizes = np.broadcast_arrays(*posterior(correct, n, prior), sizes)
    return a, b, sizes


def _checked(
    correct: ArrayLike, n: ArrayLike, group_size: ArrayLike = 1, least: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts and sizes as int64 arrays of one shape, or a ValueError naming the first entry that is out of range."""
    c, total, sizes = (np.asarray(values, dtype=float) for values in (correct, n, group_size))
    refuse(
        ~((total >= least) & (total < 2**31) & (total == np.floor(total))),
        total,
        "n",
        f"a whole number, {least} or more",
    )
    refuse(~((c >= 0) & (c == np.floor(c))), c, "correct", "a whole number, 0 or more")
    refuse_sizes(sizes)
    c, total, sizes = np.broadcast_arrays(c, total, sizes)
    refuse(c > total, c, "correct", "no more than n of the same entry")
    return c.astype(np.int64), total.astype(np.int64), sizes.astype(np.int64)
