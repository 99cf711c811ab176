"""The law of solve rates in a data set, fitted to the responses of one visit to each prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import betaln

from verl_gsd.planning.distinct import distinct_rows

#: A fit needs at least this many mixed groups: with fewer, chance decides the law.
LEAST_GROUPS = 100
#: Bounds of a and b. Beyond the last one, all prompts have nearly the same rate.
_BOUNDS = (0.05, 100.0)


def fit_law(correct: ArrayLike, total: ArrayLike) -> tuple[float, float] | None:
    """The Beta(a, b) law of solve rates under which the mixed ones of some groups are most likely.

    Groups that are all right or all wrong are left out, and the likelihood is that of a mixed group, so that neither
    a verifier that fails for whole groups nor dependent responses move the law to its ends:

        log C(n, k) + log B(a + k, b + n - k) - log(B(a, b) - B(a + n, b) - B(a, b + n)),   0 < k < n

    Args:
        correct: (N,) right responses k of each group. Groups with a number that is not whole are left out.
        total: (N,) its responses n. Groups of two are left out: a mixed one always has one right response.

    Returns:
        (a, b), each in [0.05, 100]; None for fewer than ``LEAST_GROUPS`` groups.
    """
    k, n = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    is_mixed = (k > 0) & (k < n) & (k == np.round(k)) & (n > 2)
    if is_mixed.sum() < LEAST_GROUPS:
        return None
    row, kind = distinct_rows(k[is_mixed], n[is_mixed])
    k, n, count = k[is_mixed][row], n[is_mixed][row], np.bincount(kind)

    def loss(logs: np.ndarray) -> float:
        a, b = np.exp(logs)
        whole = betaln(a, b)
        mixed = -np.expm1(np.logaddexp(betaln(a + n, b) - whole, betaln(a, b + n) - whole))
        return -float(count @ (betaln(a + k, b + n - k) - whole - np.log(np.maximum(mixed, 1e-12))))

    bounds = [tuple(np.log(_BOUNDS))] * 2
    a, b = np.exp(minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds).x)
    return float(a), float(b)
