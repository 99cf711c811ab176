"""A law of the solve rates in a data set, from the responses of one visit to each prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln

from verl_gsd.planning.distinct import distinct_rows

#: The a and b that are tried, with two digits. Beyond the last one, all prompts have nearly the same rate.
_SHAPES = np.array([float(f"{value:.2g}") for value in np.geomspace(0.01, 100.0, 64)])


def likely_law(correct: ArrayLike, total: ArrayLike) -> tuple[float, float] | None:
    """The likeliest Beta(a, b) law of solve rates. The likelihood of k right ones of n responses is beta-binomial:

        log C(n, k) + log B(a + k, b + n - k) - log B(a, b)

    Args:
        correct: (N,) right responses k of each group. Groups with a number that is not whole are left out.
        total: (N,) its responses n.

    Returns:
        (a, b), each in [0.01, 100]; None if no group is left.
    """
    k, n = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    is_whole = (n > 0) & (k == np.round(k))
    if not is_whole.any():
        return None
    row, kind = distinct_rows(k[is_whole], n[is_whole])
    k, n, count = k[is_whole][row], n[is_whole][row], np.bincount(kind)
    a, b = (axis.reshape(-1, 1) for axis in np.meshgrid(_SHAPES, _SHAPES))
    best = ((betaln(a + k, b + n - k) - betaln(a, b)) @ count).argmax()
    return float(a[best, 0]), float(b[best, 0])
