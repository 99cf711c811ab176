r"""Expectations under a Beta posterior at every group size at once, by Polya's urn.

If p has the distribution Beta(a, b), then k of G responses are right with the chance P_G(k) of the beta-binomial, and
the next one is right with chance (a + k) / (a + b + G):

    P_{G+1}(k) = [P_G(k) (b + G - k) + P_G(k-1) (a + k - 1)] / (a + b + G),    P_0(0) = 1.

All terms are positive, so that nothing cancels; a size more costs 4 G operations a prompt and no gamma function.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import betaln

#: Elements of a (counts x prompts) table that are worked on at once: what a core has near at hand.
_TABLE = 1 << 15


def expected_std_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """E[sigma_hat] of groups of 1 to ``largest``, (n, largest), for posteriors Beta(a, b), each (n,)."""
    result = np.zeros((len(a), largest))
    step = max(1, _TABLE // largest)
    for start in range(0, len(a), step):
        part = slice(start, start + step)
        for size, chance in enumerate(_chances(a[part], b[part], largest), start=1):
            k = np.arange(1, size)
            result[part, size - 1] = np.sqrt(k * (size - k)) / size @ chance[1:size]
    return result


def mixed_gain_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """How much the probability of a mixed group grows from a group of G to G + 1, G = 1 to ``largest``, (n, largest).

    That is P_G(G) b / (a + b + G) + P_G(0) a / (a + b + G).
    """
    a, b, size = a[:, None], b[:, None], np.arange(largest + 1)
    both = a + b + size
    all_right = np.cumprod((a + size) / both, axis=1)[:, :-1]
    all_wrong = np.cumprod((b + size) / both, axis=1)[:, :-1]
    return (all_right * b + all_wrong * a) / both[:, 1:]


def fidelity_by_size(a: np.ndarray, b: np.ndarray, largest: int) -> np.ndarray:
    """E[sigma_hat] of groups of 1 to ``largest`` over its limit E[sqrt(p (1-p))] = B(a + 1/2, b + 1/2) / B(a, b)."""
    limit = np.exp(betaln(a + 0.5, b + 0.5) - betaln(a, b))
    return expected_std_by_size(a, b, largest) / limit[:, None]


def _chances(a: np.ndarray, b: np.ndarray, largest: int) -> Iterator[np.ndarray]:
    """P_G of G = 1 to ``largest``, each (G + 1, n): the chance that k = 0 to G are right. Each is good until the next.

    In place: at these sizes new arrays would cost more than what is computed.
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
