r"""The bias of group-relative advantages on a real policy with exact solve rates, before and after HA-DW's factor.

Definitions of arXiv 2601.08521, for rewards r of 0 and 1: a prompt has solve rate p, a group of G responses has k right
ones and p_hat = k/G, A_hat = r - p_hat and A = r - p. S is the event that the group is mixed (0 < k < G). As
A_hat - A = p - p_hat, the bias before the factor is the same for right and for wrong responses:

    E[A_hat | S] - A = p - E[p_hat | S]                              (Lemma 2 has the closed form, ``baseline_bias``)
    P(A - A_hat > 0 | S) = \sum_{k > G p, k < G} w_k                 (Theorem 2 at eps = 0)
    w_k = C(G, k) p^k (1-p)^(G-k) / P(S)

Theorem 1 says that the first line is negative for p < 0.5 and positive for p > 0.5. The factor
Phi = lambda_scale * exp(-sgn(A_hat) (p_hat - C)) differs between the classes. Per mixed group, all right responses have
the same weighted advantage, and all wrong ones have another, so that each group counts once per class:

    right   E[Phi A_hat | S] - A = \sum_k w_k lambda_scale exp(-(k/G - C)) (1 - k/G) - (1 - p)
    wrong   E[Phi A_hat | S] - A = p - \sum_k w_k lambda_scale exp(k/G - C) k/G

Theorem 3 says that a suitable lambda_scale makes the bias smaller. Both expressions are linear in it, so that one value
removes the bias of right responses and another one that of wrong responses.

The theorems are about A_hat = r - p_hat. GRPO also divides by the group's standard deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from verl_gsd.algorithms.hadw.bias import BINS, baseline_bias

#: Fewer groups have no interval: the normal approximation would be too narrow.
_FEWEST = 30


@dataclass(frozen=True)
class CheckedMean:
    """A sampled mean beside its closed form.

    Attributes:
        value: mean over the groups.
        margin: half of the 95% interval of ``value``; NaN for fewer than 30 groups.
        expected: the closed form, averaged over the prompts of the same groups.
    """

    value: float
    margin: float
    expected: float


@dataclass(frozen=True)
class RateBin:
    """Mixed groups of prompts whose exact solve rate lies in [low, high).

    Attributes:
        prompts, groups: number of prompts in the bin, and of their mixed groups.
        rate: mean exact solve rate of the groups' prompts.
        before: E[A_hat | S] - A.
        below: P(A_hat < A | S).
        right, wrong: E[Phi A_hat | S] - A of right and of wrong responses.
        scale_right, scale_wrong: the lambda_scale that would make ``right.value`` or ``wrong.value`` 0.
    """

    low: float
    high: float
    prompts: int
    groups: int
    rate: float
    before: CheckedMean
    below: CheckedMean
    right: CheckedMean
    wrong: CheckedMean
    scale_right: float
    scale_wrong: float

    @property
    def theorem_1(self) -> str:
        """Whether the sampled sign agrees with Theorem 1: ``yes``, ``no``, or ``open`` if the interval contains 0."""
        if not abs(self.before.value) > self.before.margin:
            return "open"
        return "yes" if (self.before.value < 0) == (self.rate < 0.5) else "no"


@dataclass(frozen=True)
class PolicyBias:
    """The bias of a policy's advantages.

    Attributes:
        anchor, lambda_scale: of HA-DW's factor.
        group_size: G.
        all_groups: mean of A_hat - A over all groups, mixed or not. The closed form is 0.
        mixed, sampled: number of mixed groups and of all groups.
        bins: those of ``bias.BINS`` that have mixed groups.
    """

    anchor: float
    lambda_scale: float
    group_size: int
    all_groups: CheckedMean
    mixed: int
    sampled: int
    bins: Sequence[RateBin]


def conditional_probabilities(p: np.ndarray, group_size: int) -> np.ndarray:
    """w_k for k = 1 .. G-1, (N, G-1) float64; each row sums to 1. NaN at p = 0 and p = 1.

    Args:
        p: (N,) solve rates in [0, 1].
    """
    k = np.arange(1, group_size)
    probabilities = stats.binom.pmf(k, group_size, p[:, None])
    with np.errstate(invalid="ignore"):
        return probabilities / probabilities.sum(axis=1, keepdims=True)


def measure_bias(
    p: np.ndarray, correct: np.ndarray, group_size: int, *, anchor: float, lambda_scale: float
) -> PolicyBias:
    """Compare sampled groups with the closed forms.

    Args:
        p: (N,) exact solve rates.
        correct: (N, M) int, right responses in each of M groups per prompt.
        group_size: G, at least 2.
        anchor: C.

    Raises:
        ValueError: no group is mixed.
    """
    prompt, group = np.nonzero((correct > 0) & (correct < group_size))
    if not len(prompt):
        raise ValueError(f"none of the {correct.size} groups is mixed.")
    rates, p_hat = p[prompt], correct[prompt, group] / group_size
    damp, boost = lambda_scale * np.exp(anchor - p_hat), lambda_scale * np.exp(p_hat - anchor)

    shares = np.arange(1, group_size) / group_size
    w = conditional_probabilities(p, group_size)
    closed = {
        "before": np.array([-baseline_bias(rate, group_size) for rate in p]),
        "below": (w * (shares > p[:, None])).sum(axis=1),
        "right": w @ (lambda_scale * np.exp(anchor - shares) * (1 - shares)) - (1 - p),
        "wrong": p - w @ (lambda_scale * np.exp(shares - anchor) * shares),
    }
    sampled = {
        "before": rates - p_hat,
        "below": (p_hat > rates).astype(float),
        "right": damp * (1 - p_hat) - (1 - rates),
        "wrong": rates - boost * p_hat,
    }
    bins = []
    for low, high in BINS:
        own = (rates >= low) & ((rates < high) | (high == 1))
        if not own.any():
            continue
        figures = {name: _checked(values[own], closed[name][prompt[own]]) for name, values in sampled.items()}
        bins.append(
            RateBin(
                low,
                high,
                prompts=int(((p >= low) & ((p < high) | (high == 1))).sum()),
                groups=int(own.sum()),
                rate=float(rates[own].mean()),
                scale_right=float(lambda_scale * (1 - rates[own]).mean() / (damp * (1 - p_hat))[own].mean()),
                scale_wrong=float(lambda_scale * rates[own].mean() / (boost * p_hat)[own].mean()),
                **figures,
            )
        )
    differences = (p[:, None] - correct / group_size).ravel()
    return PolicyBias(
        anchor=anchor,
        lambda_scale=lambda_scale,
        group_size=group_size,
        all_groups=_checked(differences, np.zeros_like(differences)),
        mixed=len(prompt),
        sampled=correct.size,
        bins=bins,
    )


def _checked(values: np.ndarray, expected: np.ndarray) -> CheckedMean:
    """The mean of ``values``. Given the prompts, each value varies around its own closed form."""
    deviations = values - expected
    enough = len(values) >= _FEWEST
    margin = 1.96 * float(deviations.std(ddof=1)) / len(values) ** 0.5 if enough else float("nan")
    return CheckedMean(float(values.mean()), margin, float(expected.mean()))
