r"""A group of G responses to a prompt whose solve rate p is known.

With k ~ Binomial(G, p) right responses the group's population standard deviation is sigma_hat = sqrt(k (G - k)) / G.
The paper's scalar signal (arXiv 2607.00152) is its mean,

    E[sigma_hat] = (1/G) sum_{k=1}^{G-1} C(G,k) p^k (1-p)^(G-k) sqrt(k (G-k)),

its fidelity phi(G, p) = E[sigma_hat] / sqrt(p (1-p)), and a group is silent with probability p^G + (1-p)^G. Terms are
summed in log space and nothing is approximated; cost is G exponentials a *distinct* (p, G).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, xlog1py, xlogy

#: Elements of a (rates x counts) table that are worked on at once: 8 MiB of float64.
_TABLE = 1 << 20


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


def gain(p: ArrayLike, group_size: ArrayLike, alpha: float = 1.0) -> np.ndarray | float:
    """E[sigma_hat^(2 - alpha)] over mixed groups: what a prompt weighs in the update under the dial's ``alpha``.

    Raises:
        ValueError: as ``silent_rate``.
    """
    p, size = _checked(p, group_size)
    result = np.empty(p.shape)
    for one in np.unique(size):
        here = size == one
        rates, back = np.unique(p[here], return_inverse=True)
        result[here] = _gain(rates, int(one), 2 - alpha)[back.ravel()]
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
    p: ArrayLike, tolerance: float, criterion: Literal["fidelity", "mixed"] = "fidelity"
) -> np.ndarray | float:
    """The smallest G with fidelity (or probability of a mixed group) at least 1 - tolerance; inf where none serves.

    Exact, by bisection, unlike the paper's law 1 / (8 tolerance p (1-p)), which understates the need near 0 and 1.
    Cost grows with the number of distinct rates.

    Raises:
        ValueError: a rate is outside [0, 1], tolerance is outside (0, 1), or the criterion has another name.
    """
    criteria: dict[str, Callable] = {"fidelity": fidelity, "mixed": mixed_rate}
    if criterion not in criteria:
        raise ValueError(f"criterion={criterion!r}: write one of {', '.join(criteria)}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: write a number between 0 and 1")
    p, _ = _checked(p, 1)
    reached = criteria[criterion]
    rates, back = np.unique(np.minimum(p, 1 - p), return_inverse=True)
    sizes = np.array([_smallest(reached, rate, 1 - tolerance) if rate else np.inf for rate in rates])
    return as_given(sizes[back].reshape(p.shape))


def _smallest(reached: Callable[[float, int], float], rate: float, wanted: float) -> int:
    """The smallest group size, 2 or more, at which the increasing function ``reached`` is at least ``wanted``."""
    high = 2
    while reached(rate, high) < wanted:
        high *= 2
    low = high // 2  # not enough, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(rate, middle) < wanted else (low, middle)
    return high


def _gain(rates: np.ndarray, size: int, power: float) -> np.ndarray:
    """E[sigma_hat^power; mixed] for distinct ``rates`` at one group size."""
    k = np.arange(1, size)
    log_weight = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)
    log_weight += power * (0.5 * np.log(k * (size - k)) - np.log(size))
    result = np.empty(len(rates))
    step = max(1, _TABLE // size)
    with np.errstate(divide="ignore"):
        right, wrong = np.log(rates), np.log1p(-rates)
    for start in range(0, len(rates), step):
        part = slice(start, start + step)
        result[part] = np.exp(log_weight + np.outer(right[part], k) + np.outer(wrong[part], size - k)).sum(axis=1)
    return result


def _checked(p: ArrayLike, group_size: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both broadcast to one shape, or a ValueError naming the first entry that is out of range."""
    rates, sizes = np.asarray(p, dtype=float), np.asarray(group_size)
    refuse(~((rates >= 0) & (rates <= 1)), rates, "p", "a rate between 0 and 1")
    refuse(~((sizes >= 1) & (sizes == np.floor(sizes))), sizes, "group_size", "a whole number, 1 or more")
    rates, sizes = np.broadcast_arrays(rates, sizes)
    return rates, sizes


def refuse(bad: np.ndarray, values: np.ndarray, name: str, wanted: str) -> None:
    """Raise a ValueError that names the first bad entry of ``values``."""
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        entry = f"{name}[{row}]" if values.ndim else name
        raise ValueError(f"{entry} is {values.reshape(-1)[row]}; write {wanted}")


def as_given(values: np.ndarray) -> np.ndarray | float:
    """A float for a scalar, an array for an array."""
    return values if values.ndim else float(values)
