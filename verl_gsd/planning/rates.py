r"""A group of G responses to a prompt whose solve rate p is known.

With k ~ Binomial(G, p) right responses the group's population standard deviation is sigma_hat = sqrt(k (G - k)) / G.
The paper's scalar signal (arXiv 2607.00152) is its mean,

    E[sigma_hat] = (1/G) sum_{k=1}^{G-1} C(G,k) p^k (1-p)^(G-k) sqrt(k (G-k)),

its fidelity phi(G, p) = E[sigma_hat] / sqrt(p (1-p)), and a group is silent with probability p^G + (1-p)^G. Terms are
summed in log space; cost is at most G exponentials, and some sqrt(G) in large groups, a *distinct* (p, G).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, xlog1py, xlogy

#: Elements of a (rates x counts) table that are worked on at once: 8 MiB of float64.
_TABLE = 1 << 20
#: Group sizes up to this are summed whole, larger ones where the counts are likely.
_WHOLE = 1024


def silent_rate(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Probability that all G rewards agree, p^G + (1-p)^G.

    Raises:
        ValueError: a rate is outside [0, 1] or a group size is no positive integer (the message names the entry).
    """
    p, size = _checked(p, group_size)
    return as_given(np.exp(xlogy(size, p)) + np.exp(xlog1py(size, -p)))


def mixed_rate(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """Probability that a group disagrees, 1 - p^G - (1-p)^G, without cancellation at rates near 0 or 1.

    Raises:
        ValueError: as ``silent_rate``.
    """
    p, size = _checked(p, group_size)
    rare = np.minimum(p, 1 - p)
    return as_given(np.maximum(-np.expm1(xlog1py(size, -rare)) - np.exp(xlogy(size, rare)), 0.0))


def gain(
    p: ArrayLike, group_size: ArrayLike, alpha: float = 1.0, *, ddof: int = 0, eps: float = 0.0
) -> np.ndarray | float:
    """What a prompt weighs in the update under the dial: the mean of sigma^2 / (sigma_ddof + eps)^alpha, mixed groups.

    With ddof 0 and eps 0, the paper's, that is E[sigma_hat^(2 - alpha); mixed].

    Raises:
        ValueError: as ``silent_rate``, or alpha is no finite number.
    """
    if not np.isfinite(alpha):
        raise ValueError(f"alpha={alpha}: write a finite number")
    p, size = _checked(p, group_size)
    result = np.empty(p.shape)
    for one in np.unique(size):
        here = size == one
        rates, back = np.unique(p[here], return_inverse=True)
        result[here] = _gain(rates, int(one), alpha, ddof, eps)[back.ravel()]
    return as_given(result)


def expected_std(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """E[sigma_hat], the mean gain of GRPO.

    Raises:
        ValueError: as ``silent_rate``.
    """
    return gain(p, group_size, alpha=1.0)


def fidelity(p: ArrayLike, group_size: ArrayLike) -> np.ndarray | float:
    """phi(G, p) = E[sigma_hat] / sqrt(p (1-p)), about 1 - 1/(8 G p (1-p)); its limit 0 at p = 0 and p = 1.

    Raises:
        ValueError: as ``silent_rate``.
    """
    p, size = _checked(p, group_size)
    spread = np.sqrt(p * (1 - p))
    with np.errstate(divide="ignore", invalid="ignore"):
        return as_given(np.where(spread > 0, expected_std(p, size) / spread, 0.0))


def required_group_size(
    p: ArrayLike, tolerance: ArrayLike, criterion: Literal["fidelity", "mixed"] = "fidelity"
) -> np.ndarray | float:
    """The smallest G with fidelity (or probability of a mixed group) at least 1 - tolerance; inf where none serves.

    Exact, by bisection, unlike the paper's law 1 / (8 tolerance p (1-p)), which understates the need near 0 and 1.
    Cost grows with the number of distinct rates.

    Raises:
        ValueError: a rate is outside [0, 1] or a tolerance outside (0, 1) (naming the entry), or the criterion has
            another name.
    """
    criteria: dict[str, Callable] = {"fidelity": fidelity, "mixed": mixed_rate}
    if criterion not in criteria:
        raise ValueError(f"criterion={criterion!r}: write one of {', '.join(criteria)}")
    wanted = 1 - np.asarray(tolerance, dtype=float)
    refuse(~((wanted > 0) & (wanted < 1)), np.asarray(tolerance), "tolerance", "a number between 0 and 1")
    p, _ = _checked(p, 1)
    p, wanted = np.broadcast_arrays(p, wanted)
    pairs, back = np.unique(np.stack([np.minimum(p, 1 - p).ravel(), wanted.ravel()]), axis=1, return_inverse=True)
    sizes = np.full(pairs.shape[1], np.inf)
    some = pairs[0] > 0
    sizes[some] = _smallest(criteria[criterion], *pairs[:, some])
    return as_given(sizes[back.ravel()].reshape(p.shape))


def _smallest(reached: Callable, rates: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) the smallest group sizes, 2 or more, at which the increasing function ``reached`` is at least ``wanted``."""
    high = np.full(len(rates), 2.0)
    growing = np.arange(len(rates))
    while len(growing := growing[reached(rates[growing], high[growing]) < wanted[growing]]):
        high[growing] *= 2
    low: np.ndarray = high // 2  # not enough, or 1
    while len(open_ := np.flatnonzero(high - low > 1)):
        middle = (low[open_] + high[open_]) // 2
        short = reached(rates[open_], middle) < wanted[open_]
        low[open_[short]], high[open_[~short]] = middle[short], middle[~short]
    return high


def _gain(rates: np.ndarray, size: int, alpha: float, ddof: int, eps: float) -> np.ndarray:
    """``gain`` of distinct ``rates`` at one group size."""
    if size > _WHOLE:
        return np.array([_gain_of_one(rate, size, alpha, ddof, eps) for rate in rates])
    k = np.arange(1, size)
    log_ways = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1) + _log_weight(k, size, alpha, ddof, eps)
    result = np.empty(len(rates))
    step = max(1, _TABLE // size)
    with np.errstate(divide="ignore"):
        right, wrong = np.log(rates), np.log1p(-rates)
    for start in range(0, len(rates), step):
        part = slice(start, start + step)
        result[part] = np.exp(log_ways + np.outer(right[part], k) + np.outer(wrong[part], size - k)).sum(axis=1)
    return result


def _gain_of_one(rate: float, size: int, alpha: float, ddof: int, eps: float) -> float:
    """``gain`` of one rate in a large group, from the terms within 12 standard deviations of the most likely count.

    What is left out weighs less than 1e-30. Terms are built from their ratios to the largest and divided by their own
    sum: the gamma function of a large group would have too few digits.
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
    return float(chance[mixed] @ np.exp(_log_weight(k[mixed], size, alpha, ddof, eps)))


def _log_weight(k: np.ndarray, size: int, alpha: float, ddof: int, eps: float) -> np.ndarray:
    """log of sigma^2 / (sigma_ddof + eps)^alpha of a group of ``size`` with 0 < k < size right."""
    log_sigma = 0.5 * (np.log(k) + np.log(size - k)) - np.log(size)
    divisor = np.exp(log_sigma) * np.sqrt(size / (size - ddof)) + eps
    return 2 * log_sigma - alpha * np.log(divisor)


def _checked(p: ArrayLike, group_size: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both broadcast to one shape, or a ValueError naming the first entry that is out of range."""
    rates, sizes = np.asarray(p, dtype=float), np.asarray(group_size, dtype=float)
    refuse(~((rates >= 0) & (rates <= 1)), rates, "p", "a rate between 0 and 1")
    refuse_sizes(sizes)
    rates, sizes = np.broadcast_arrays(rates, sizes)
    return rates, sizes


def refuse_sizes(sizes: np.ndarray) -> None:
    """Raise a ValueError that names the first entry which is no group size."""
    refuse(
        ~((sizes >= 1) & np.isfinite(sizes) & (sizes == np.floor(sizes))),
        sizes,
        "group_size",
        "a whole number, 1 or more",
    )


def refuse(bad: np.ndarray, values: np.ndarray, name: str, wanted: str) -> None:
    """Raise a ValueError that names the first bad entry of ``values``."""
    if bad.any():
        place = np.unravel_index(int(np.flatnonzero(bad)[0]), bad.shape)
        entry = f"{name}[{', '.join(map(str, place))}]" if values.ndim else name
        raise ValueError(f"{entry} is {float(values[place]):g}; write {wanted}")


def as_given(values: np.ndarray) -> np.ndarray | float:
    """A float for a scalar, an array for an array."""
    return values if values.ndim else float(values)
