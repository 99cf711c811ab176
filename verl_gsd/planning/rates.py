r"""Expected figures of a group of G responses to a prompt with a known solve rate p.

With k ~ Binomial(G, p) correct responses, the population standard deviation of the group's rewards is
sigma_hat = sqrt(k (G - k)) / G. The paper's scalar signal (arXiv 2607.00152) is its mean,

    E[sigma_hat] = (1/G) sum_{k=1}^{G-1} C(G,k) p^k (1-p)^(G-k) sqrt(k (G-k)),

the fidelity is phi(G, p) = E[sigma_hat] / sqrt(p (1-p)), and a group is silent (all rewards are equal) with
probability p^G + (1-p)^G. Terms are summed in log space. The cost is at most G exponentials per *distinct* (p, G), and
on the order of sqrt(G) for large groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, xlog1py, xlogy

from verl_gsd.planning.distinct import distinct_pairs

#: Largest number of elements of a (rates x counts) table that is computed at once: 8 MiB of float64.
_TABLE = 1 << 20
#: Sums run over all counts k up to this group size, and only over the likely counts above it.
_LARGEST_FULL_SUM = 1024


def silent_rate(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Probability that all G rewards are equal, p^G + (1-p)^G.

    Raises:
        ValueError: a rate is outside [0, 1] or a group size is not a positive integer; the message names the entry.
    """
    p, size = _checked_rates(p, group_size)
    return scalar_or_array(np.exp(xlogy(size, p)) + np.exp(xlog1py(size, -p)))


def mixed_rate(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Probability that a group is mixed, 1 - p^G - (1-p)^G, computed without cancellation at rates near 0 or 1.

    Raises:
        ValueError: as ``silent_rate``.
    """
    p, size = _checked_rates(p, group_size)
    rare = np.minimum(p, 1 - p)
    return scalar_or_array(np.maximum(-np.expm1(xlog1py(size, -rare)) - np.exp(xlogy(size, rare)), 0.0))


def gain(
    p: ArrayLike, group_size: ArrayLike, alpha: float = 1.0, *, ddof: int = 0, eps: float = 0.0
) -> np.ndarray | float:
    """A prompt's weight in the update under the dial: the mean of sigma^2 / (sigma_ddof + eps)^alpha.

    Silent groups contribute 0. With ddof=0 and eps=0, as in the paper, this is E[sigma_hat^(2 - alpha); mixed].

    Raises:
        ValueError: as ``silent_rate``, or alpha is not finite.
    """
    check_alpha(alpha)
    p, size = _checked_rates(p, group_size)
    result = np.empty(p.shape)
    for distinct_size in np.unique(size):
        rows = size == distinct_size
        rates, rate_of_row = np.unique(p[rows], return_inverse=True)
        result[rows] = _gain(rates, int(distinct_size), alpha, ddof, eps)[rate_of_row.ravel()]
    return scalar_or_array(result)


def expected_std(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """E[sigma_hat], which is the gain of GRPO (alpha=1).

    Raises:
        ValueError: as ``silent_rate``.
    """
    return gain(p, group_size, alpha=1.0)


def fidelity(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """phi(G, p) = E[sigma_hat] / sqrt(p (1-p)), about 1 - 1/(8 G p (1-p)). At p=0 and p=1 it is 0, its limit.

    Raises:
        ValueError: as ``silent_rate``.
    """
    p, size = _checked_rates(p, group_size)
    spread = np.sqrt(p * (1 - p))
    with np.errstate(divide="ignore", invalid="ignore"):
        return scalar_or_array(np.where(spread > 0, expected_std(p, size) / spread, 0.0))


def required_group_size(
    p: ArrayLike, tolerance: ArrayLike, criterion: Literal["fidelity", "mixed"] = "fidelity"
) -> np.ndarray | float:
    """The smallest G with fidelity (or probability of a mixed group) at least 1 - tolerance; inf if there is none.

    The result is exact and found by bisection. The paper's law 1 / (8 tolerance p (1-p)) understates the required size
    near 0 and 1. The cost grows with the number of distinct rates.

    Raises:
        ValueError: a rate is outside [0, 1] or a tolerance outside (0, 1) (the message names the entry), or the
            criterion is unknown.
    """
    criteria: dict[str, Callable] = {"fidelity": fidelity, "mixed": mixed_rate}
    if criterion not in criteria:
        raise ValueError(f"criterion={criterion!r} is unknown. Use one of {', '.join(criteria)}.")
    wanted = 1 - np.asarray(tolerance, dtype=float)
    check_entries((wanted > 0) & (wanted < 1), np.asarray(tolerance), "tolerance", "a number between 0 and 1")
    p, _ = _checked_rates(p, 1)
    p, wanted = np.broadcast_arrays(p, wanted)
    pairs, pair_of_entry, _ = distinct_pairs(np.minimum(p, 1 - p).ravel(), wanted.ravel())
    sizes = np.full(pairs.shape[1], np.inf)
    reachable = pairs[0] > 0
    sizes[reachable] = _smallest(criteria[criterion], *pairs[:, reachable])
    return scalar_or_array(sizes[pair_of_entry].reshape(p.shape))


def _smallest(reached: Callable, rates: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) the smallest group sizes from 2 up for which the increasing function ``reached`` is at least ``wanted``."""
    high = np.full(len(rates), 2.0)
    growing = np.arange(len(rates))
    while len(growing := growing[reached(rates[growing], high[growing]) < wanted[growing]]):
        high[growing] *= 2
    low: np.ndarray = high // 2  # too small, or 1
    while len(open_ := np.flatnonzero(high - low > 1)):
        middle = (low[open_] + high[open_]) // 2
        too_small = reached(rates[open_], middle) < wanted[open_]
        low[open_[too_small]], high[open_[~too_small]] = middle[too_small], middle[~too_small]
    return high


def _gain(rates: np.ndarray, size: int, alpha: float, ddof: int, eps: float) -> np.ndarray:
    """``gain`` of distinct ``rates`` for one group size."""
    if size > _LARGEST_FULL_SUM:
        return np.array([_gain_of_large_group(rate, size, alpha, ddof, eps) for rate in rates])
    k = np.arange(1, size)
    log_binomial = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1) + log_gain(k, size, alpha, ddof, eps)
    result = np.empty(len(rates))
    step = max(1, _TABLE // size)
    with np.errstate(divide="ignore"):
        right, wrong = np.log(rates), np.log1p(-rates)
    for start in range(0, len(rates), step):
        part = slice(start, start + step)
        result[part] = np.exp(log_binomial + np.outer(right[part], k) + np.outer(wrong[part], size - k)).sum(axis=1)
    return result


def _gain_of_large_group(rate: float, size: int, alpha: float, ddof: int, eps: float) -> float:
    """``gain`` of one rate in a large group, summed over the counts within 12 standard deviations of the mode.

    The other counts have a probability below 1e-30. Each term is computed from its ratio to the largest term and
    divided by the sum of the terms, because the gamma function has too few digits for large groups.
    """
    if rate in (0, 1):
        return 0.0
    mode = int((size + 1) * rate)
    reach = int(12 * np.sqrt(size * rate * (1 - rate))) + 60
    k = np.arange(max(0, mode - reach), min(size, mode + reach) + 1)
    log_ratio = np.log((size - k[:-1]) / (k[:-1] + 1)) + np.log(rate) - np.log1p(-rate)
    log_chance = np.concatenate([[0.0], np.cumsum(log_ratio)])
    chance = np.exp(log_chance - log_chance.max())
    chance /= chance.sum()
    mixed = (k > 0) & (k < size)
    return float(chance[mixed] @ np.exp(log_gain(k[mixed], size, alpha, ddof, eps)))


def log_gain(k: np.ndarray | int, size: int, alpha: float, ddof: int, eps: float) -> np.ndarray:
    """log of sigma^2 / (sigma_ddof + eps)^alpha for a group of ``size`` with 0 < k < size correct."""
    log_sigma = 0.5 * (np.log(k) + np.log(size - k)) - np.log(size)
    divisor = np.exp(log_sigma) * np.sqrt(size / (size - ddof)) + eps
    return 2 * log_sigma - alpha * np.log(divisor)


def check_alpha(alpha: float) -> None:
    """Raise a ValueError if ``alpha`` is not a finite number."""
    if not np.isfinite(alpha):
        raise ValueError(f"alpha={alpha} is not finite. Set it to a finite number, for example 1.0.")


def _checked_rates(p: ArrayLike, group_size: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Rates and group sizes, broadcast to one shape.

    Raises:
        ValueError: an entry is out of range; the message names the first one.
    """
    rates, sizes = np.asarray(p, dtype=float), np.asarray(group_size, dtype=float)
    check_entries((rates >= 0) & (rates <= 1), rates, "p", "a rate between 0 and 1")
    check_group_sizes(sizes)
    rates, sizes = np.broadcast_arrays(rates, sizes)
    return rates, sizes


def check_group_sizes(sizes: np.ndarray) -> None:
    """Raise a ValueError that names the first entry that is not a positive integer."""
    is_size = (sizes >= 1) & np.isfinite(sizes) & (sizes == np.floor(sizes))
    check_entries(is_size, sizes, "group_size", "a whole number of at least 1")


def check_entries(valid: np.ndarray, values: np.ndarray, name: str, expected: str) -> None:
    """Raise a ValueError that names the first entry of ``values`` that is not ``valid``.

    Args:
        expected: what to use instead, for the message.
    """
    if not valid.all():
        position = np.unravel_index(int(np.flatnonzero(~valid)[0]), valid.shape)
        entry = f"{name}[{', '.join(map(str, position))}]" if values.ndim else name
        raise ValueError(f"{entry} is {float(values[position]):g}. Use {expected}.")


def scalar_or_array(values: np.ndarray) -> np.ndarray | float:
    """A float for a zero-dimensional array, and the array itself otherwise."""
    return values if values.ndim else float(values)
