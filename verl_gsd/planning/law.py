"""A law of the solve rates in a data set, from the responses of one visit to each prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

from verl_gsd.planning.distinct import distinct_rows

#: Fewer mixed groups than this say too little about the law.
LEAST_GROUPS = 50
#: The laws that are tried have these a and b. Beyond the last one, all prompts have nearly the same rate.
_SHAPES = np.geomspace(0.05, 100.0, 48)


def likely_law(correct: ArrayLike, total: ArrayLike) -> tuple[float, float] | None:
    """The likeliest Beta(a, b) law of solve rates, from the mixed ones of some groups.

    Groups that are all right or all wrong are left out, and the likelihood is that of a mixed group, so that neither a
    verifier that fails for whole groups nor dependent responses move the law to its ends:

        log C(n, k) + log B(a + k, b + n - k) - log(B(a, b) - B(a + n, b) - B(a, b + n)),   0 < k < n

    Args:
        correct: (N,) right responses k of each group. Groups with a number that is not whole are left out.
        total: (N,) its responses n. Groups of two are left out: a mixed one always has one right response.

    Returns:
        (a, b), each in [0.05, 100]; None for fewer than ``LEAST_GROUPS`` mixed groups.
    """
    k, n = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    is_mixed = (k > 0) & (k < n) & (k == np.round(k)) & (n > 2)
    if is_mixed.sum() < LEAST_GROUPS:
        return None
    row, kind = distinct_rows(k[is_mixed], n[is_mixed])
    k, n, count = k[is_mixed][row], n[is_mixed][row], np.bincount(kind)
    a, b = (axis.reshape(-1, 1) for axis in np.meshgrid(_SHAPES, _SHAPES))
    whole = betaln(a, b)
    mixed = -np.expm1(np.logaddexp(betaln(a + n, b) - whole, betaln(a, b + n) - whole))
    likelihood = (betaln(a + k, b + n - k) - whole - np.log(np.maximum(mixed, 1e-12))) @ count
    best = likelihood.argmax()
    return float(a[best, 0]), float(b[best, 0])
