r"""Expectations under a Beta posterior for every group size at once, by Polya's urn.

If p has the distribution Beta(a, b), then k of G responses are correct with the beta-binomial probability P_G(k), and
the next one is correct with probability (a + k) / (a + b + G):

    P_{G+1}(k) = [P_G(k) (b + G - k) + P_G(k-1) (a + k - 1)] / (a + b + G),    P_0(0) = 1.

All terms are positive, so nothing cancels. Each further group size costs 4 G operations per prompt and no gamma
function.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import betaln

#: Largest number of elements of a (counts x prompts) table that is computed at once, so that it fits a core's cache.
_TABLE = 1 << 15


def expected_std_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """(n, largest) E[sigma_hat] of groups of 1 to ``largest``, for posteriors Beta(a, b), each (n,)."""
    result = np.zeros((len(a), largest))
    step = max(1, _TABLE // largest)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        for size, chance in enumerate(_chances(a[part], b[part], largest), start=1):
            k = np.arange(1, size)
            result[part, size - 1] = np.sqrt(k * (size - k)) / size @ chance[1:size]
    return result


def mixed_gain_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """(n, largest) increase of the probability of a mixed group from group size G to G + 1, for G = 1 to ``largest``.

    It is P_G(G) b / (a + b + G) + P_G(0) a / (a + b + G).
    """
    a, b, size = a[:, None], b[:, None], np.arange(largest + 1)
    both = a + b + size
    all_right = np.cumprod((a + size) / both, axis=1)[:, :-1]
    all_wrong = np.cumprod((b + size) / both, axis=1)[:, :-1]
    return (all_right * b + all_wrong * a) / both[:, 1:]


def fidelity_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """(n, largest) E[sigma_hat] of groups of 1 to ``largest``, divided by its limit for large groups.

    The limit is E[sqrt(p (1-p))] = B(a + 1/2, b + 1/2) / B(a, b).
    """
    limit = np.exp(betaln(a + 0.5, b + 0.5) - betaln(a, b))
    return expected_std_by_size(a, b, largest) / limit[:, None]


def _chances(a: np.ndarray, b: np.ndarray, largest: int) -> Iterator[np.ndarray]:
    """P_G for G = 1 to ``largest``, each (G + 1, n): the probabilities that k = 0 to G responses are correct.

    Each yielded array is overwritten by the next one. Updates are in place, because allocating new arrays would cost
    more than the computation.
    """
    right, wrong = (np.arange(largest)[:, None] + counts for counts in (a, b))
    both = right + b
    chance, moved = np.zeros((largest + 1, len(a))), np.empty((largest, len(a)))
    chance[0] = 1
    for size in range(largest):
        before = chance[: size + 1]
        before /= both[size]
        one_more = np.multiply(before, right[: size + 1], out=moved[: size + 1])
        before *= wrong[size::-1]
        chance[1 : size + 2] += one_more
        yield chance[: size + 2]
