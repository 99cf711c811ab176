r"""Weights that keep every prompt's part in an update although groups have different sizes.

A budget (``budget.py``) requests G_i rollouts for prompt i, and B n rollouts for B prompts in all. verl's losses
average over rows, so with the dial the part of a prompt with solve rate p in the update is

    (1/(B n)) sum_j A_j s_j = (G_i/(B n)) g_i,    E[g_i] = gain(p, G_i) ds

Here s_j is the score of a response, and ds does not depend on the group size (arXiv 2607.00152). ``planning.gain`` is
the mean of sigma^2 / (sigma + eps)^alpha. With equal groups the expected part is gain(p, n) ds / B. The advantages of
prompt i are therefore multiplied by two factors:

    mean(G) / G_i                     it has more rows: ``group_size_weights``
    gain(p, n) / gain(p, G_i)         the expected gain depends on the group size: ``gain_ratios``

mean(G) = n if all B groups are present.

What is exact and what is chosen:
- alpha = 0, no demonstrations: gain(p, G) = (1 - 1/G) p (1-p), and the two factors together are (n-1) / (G_i-1) for
  every p. The part of a prompt is exact. It is exact for graded rewards, too, because a mean over G responses is
  centred on itself whatever the rewards are.
- Other alpha, rewards of 0 and 1: the second factor depends on p, which is unknown. We choose to replace both gains by
  their means under the posterior of p by which the budget divides the rollouts. The expected part of a prompt is then
  exact on average over this posterior, and exact for the p itself if p is known.
- Other alpha, partial credit: the gain depends on the distribution of the verdicts. Their mean and spread are known.
  With w the expected spread divided by that of verdicts 0 and 1 of the same mean, we choose the gain

      w gain of verdicts 0 and 1 + (1 - w) gain of normal verdicts,    each for a standard deviation of 1.

  It is exact for 0 and 1 (w = 1) and for normal verdicts. For binomial, uniform and Beta verdicts and groups of 2 to 24
  against 8, parts are within 6% of equal groups for alpha from -1 to 1. For alpha above 1, the floor of sigma
  (``dial.py``) also lowers the gain of small groups, which the factor does not know: parts of groups of two are about
  12% too small at alpha 1.5 and a third at alpha 2. From alpha 2 on we take the gain at 2, because the mean gain
  without a floor is infinite for groups of two from alpha 3 on.
- Alpha up to 1, rewards with terms beside a verdict of 0 or 1, such as a length penalty: we choose the gain of a reward
  that is the verdict plus a normal term (``_gain_with_term``). The rewards of the batch tell how large the term is
  (``term_variance``), one number per data source. The gain is exact for such rewards. At alpha 1, with solve rates from
  0.02 to 0.9 and groups of 2 to 24 against 8, parts of other rewards are, compared with those of equal groups:

      reward                                                         this gain       the verdicts' gain
      length penalty of up to 0.6                                    0.92 to 1.02    0.76 to 1.48
      0.5 or 1 less for 5% to 50% of all or of the wrong responses   0.76 to 1.18    0.65 to 1.39
      share of tests passed; the verdict is whether all passed       0.90 to 1.03    0.72 to 1.56

  These are parts along the reward, E[sum_j A_j R_j]. A prompt's part has two directions then, and one factor keeps
  only one sum of them. Along the verdict alone, parts with a length penalty are 0.70 to 1.36 at alpha 1 and 0.82 to
  1.21 at alpha 0.5; hard prompts in small groups have the least. Along the penalty they are 0.56 to 3.4.

  The term may differ between prompts. If its standard deviation is half or twice that of the source, parts are 0.71 to
  1.22 of those with equal groups.
- Alpha above 1: terms beside the verdict are ignored, because the floor of sigma takes the weight of groups that differ
  by a small term alone. Parts with a length penalty of up to 0.3 are 0.86 to 1.21 of those with equal groups. With
  penalties that most groups have only once, they are 0.4 to 2. Terms beside partial credit are ignored, too.
- Groups with demonstrations are always mixed, so the chance of a mixed group is not in their gain. We take that of a
  group whose other responses are all wrong (``demonstration_ratio``). Its part is then exactly that of an equal group.
  If these have partial credit, only the part of the demonstration is kept at alpha 0, and not what they add among
  themselves: with rewards uniform in [0, 0.9] and groups of 3 to 24 against 8, the group's part is 0.53 to 2.5 at
  alpha 0 and 0.70 to 1.6 at alpha 1.
- Stages that mask pairs or weigh responses multiply a gain that the second factor does not know.

How this differs from the paper: arXiv 2607.00152 only has groups of one size. The weights follow from its identity
g = (1/G) sum A_i s_i = sigma^(2 - alpha) ds.

Consequences:
- A prompt with more rollouts does not move further on average, and its part has less noise: it is the mean of more
  responses. The parts of prompts with fewer rollouts have more. Over a batch of 128 prompts and 8 rollouts each, the
  variance of the update is 0.81 to 0.98 of that of equal groups with exact rates, and 0.90 to 1.14 with rates from 8
  or 24 responses (alpha 0, 1 and 2). A budget reduces the noise only if solve rates are well known or prompts are hard.
- Under verl's ``seq-mean-*`` losses, the share of a prompt is (1/(B n)) sum_j (n/G_i) A_j l_j = (1/B) (1/G_i) sum_j
  A_j l_j times the second factor. Here l_j is the loss of a response before it is multiplied by its advantage.
- Under ``token-mean``, prompts have the same relative weights as with equal groups. The common divisor, the number of
  tokens in the mini-batch, is that of the requested rollouts.
- Other terms of the loss (``use_kl_loss``, ``entropy_coeff``) have no advantage to weigh. They still average over rows.
- The factors are positive and equal for all responses of a group. They do not change signs, clipping, or sums that are
  zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import betaln, gammaln, hyp1f1

from verl_gsd.groups import Group, GroupStats, require_rows
from verl_gsd.planning import posterior_gain
from verl_gsd.planning.rates import log_gain

#: The gain of normal verdicts for a larger alpha is that for this one.
_MAX_ALPHA = 2.0
#: A larger ``term_variance`` changes no ratio of gains: the verdicts hardly matter.
_LARGEST_TERM = 1e6
#: Rewards that differ by this share of the sum of a group's are equal up to rounding.
_ROUNDING = 1e-9


def group_size_weights(rollouts: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    """mean(G) / G_i, one number per response.

    Args:
        rollouts: (N,), G_i: the number of rollouts requested for each row's prompt. Some of them may have failed.
        stats: the rows' groups.

    Returns:
        (N,) float64, 1 in rows of no group. In a group without failed rollouts, the weights sum to mean(G).

    Raises:
        ValueError: lengths differ, or rows of one group have different numbers or a number below 1; the message names
            the row.
    """
    require_rows(len(stats.group), rollouts=rollouts)
    counted = stats.group >= 0
    requested = rollouts.double()
    by_group = requested.new_zeros(len(stats.size)).index_copy_(0, stats.group[counted], requested[counted])
    bad = torch.nonzero(counted & ~((requested >= 1) & (requested == stats.per_row(by_group))))
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"rollouts[{row}] is {rollouts[row].item()}. Set the same number, 1 or more, for all rows of a group."
        )
    return stats.per_row(by_group.mean() / by_group, elsewhere=1)


def gain_ratios(
    correct: np.ndarray,
    total: np.ndarray,
    sizes: np.ndarray,
    equal_size: int,
    *,
    prior: tuple[float, float],
    partial: np.ndarray | float = 0.0,
    terms: np.ndarray | float = 0.0,
    alpha: float,
    ddof: int,
    eps: float,
) -> np.ndarray:
    """The expected gain of a group of ``equal_size`` divided by that of a group of ``sizes``, (B,) float64.

    Args:
        correct, total: (B,), sums of verdicts and numbers of earlier responses to each prompt.
        partial: (B,), their partial credit; see ``planning.counts.posterior``.
        sizes: (B,), rollouts requested for each prompt, 2 or more.
        terms: (B,), the ``term_variance`` of the rewards of each prompt's data source. It has no effect on prompts with
            partial credit, or for alpha above 1.
        equal_size: rollouts per prompt if all groups were equal, 2 or more.

    Raises:
        ValueError: as ``planning.posterior_gain``.
    """
    right, wrong = correct + prior[0], total - correct + prior[1]
    both = right + wrong
    share = 1 - both * partial / (right * wrong)  # w
    std = np.sqrt(right * wrong) / both
    variance = np.broadcast_to(terms, right.shape)
    with_term = np.flatnonzero((variance > 0) & (share == 1) & (alpha <= 1))

    def expected(size: np.ndarray | int) -> np.ndarray:
        of_verdicts = np.asarray(posterior_gain(correct, total, size, alpha, prior, ddof=ddof, eps=eps))
        mixture = share * of_verdicts / std ** (2 - alpha) + (1 - share) * _normal_gain(np.asarray(size), alpha, ddof)
        gains = np.where(share < 1, mixture, of_verdicts)
        posteriors, of_size = (right[with_term], wrong[with_term]), np.broadcast_to(size, gains.shape)[with_term]
        gains[with_term] = _gain_with_term(*posteriors, of_size, variance[with_term], alpha, ddof)
        return gains

    return expected(equal_size) / expected(sizes)


def demonstration_ratio(
    demonstrations: int, size: int, equal_size: int, *, alpha: float, ddof: int, eps: float
) -> float:
    """``gain_ratios`` of a group in which demonstrations are right and all other responses are wrong.

    Times n / G and this ratio, the advantage of a demonstration in a group of G is its advantage in a group of n, which
    is ``equal_size``. 1 if one of the two groups has no other response.

    Args:
        demonstrations: 1 or more.
        size: rollouts requested for the prompt.
    """
    if demonstrations >= min(size, equal_size):
        return 1.0
    of_equal, of_group = (log_gain(demonstrations, one, alpha, ddof, eps) for one in (equal_size, size))
    return float(np.exp(of_equal - of_group))


def term_variance(groups: Sequence[Group]) -> float:
    """How much the rewards of a data source differ within groups beyond what the verdicts explain.

    It is the variance of a normal term with the same mean absolute difference between two responses to a prompt that
    have the same verdict, divided by the squared difference between the rewards of a right and a wrong response. The
    mean absolute difference, and not the variance, decides the gain of groups of two, and one extreme reward hardly
    changes it. 0 if the verdict determines the reward. At most ``_LARGEST_TERM``.

    Args:
        groups: of one data source. All responses have an accuracy.
    """
    of_verdict = both = differences = pairs = 0.0
    for group in groups:
        centred = group.accuracies - group.accuracies.mean()
        of_verdict += float(centred @ centred)
        both += float(centred @ group.rewards)
        for verdict in np.unique(group.accuracies):
            rewards = np.sort(group.rewards[group.accuracies == verdict])
            size = len(rewards)
            if size > 1:
                # Each response counts once, whatever the size of its group. Pairs are n (n - 1) / 2.
                differences += 2 * float((2 * np.arange(size) - size + 1) @ rewards) / (size - 1)
                pairs += size
    if not pairs or differences <= _ROUNDING * max(float(np.abs(group.rewards).sum()) for group in groups):
        return 0.0
    slope = both / of_verdict if of_verdict else 1.0
    term = np.pi / 4 * (differences / pairs) ** 2
    return float(term / max(slope**2, term / _LARGEST_TERM))


def _gain_with_term(
    right: np.ndarray, wrong: np.ndarray, size: np.ndarray, variance: np.ndarray, alpha: float, ddof: int
) -> np.ndarray:
    """E[sigma^2 / sigma_ddof^alpha] of rewards that are a verdict plus a normal term, (B,) float64.

    Given k right responses of G, G sigma^2 divided by the term's variance has a noncentral chi-square distribution with
    G - 1 degrees of freedom and noncentrality k (G - k) / (G variance). k is beta-binomial.

    Args:
        right, wrong: (B,), the parameters of the posterior Beta of each prompt's solve rate.
        size: (B,), G.
        variance: (B,), of the term, above 0.
        alpha: at most 1.
    """
    power, half = (2 - alpha) / 2, (size - 1) / 2
    log_scale = power * np.log(2 * variance / size) + gammaln(half + power) - gammaln(half)
    log_beta = betaln(right, wrong)
    moment = np.zeros(len(size))
    for k in range(int(size.max(initial=0)) + 1):
        at = np.flatnonzero(k <= size)
        of_size = size[at]
        log_choose = -betaln(k + 1, of_size - k + 1) - np.log(of_size + 1)
        chance = np.exp(log_choose + betaln(right[at] + k, wrong[at] + of_size - k) - log_beta[at])
        noncentrality = k * (of_size - k) / (of_size * variance[at])
        moment[at] += chance * _growth(power, half[at], noncentrality / 2)
    return np.exp(log_scale) * moment * ((size - ddof) / size) ** (alpha / 2)


def _growth(power: float, half: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """1F1(-power; half; -rate): a moment of a noncentral chi-square variable, divided by that of the central one.

    scipy's function is infinite or NaN for some arguments with ``half`` above 60. There we sum over j, which has a
    Poisson distribution with this rate: given j, the variable is a central chi square with half + j.

    Args:
        half: (B,), half of the degrees of freedom.
        rate: (B,), half of the noncentrality.
    """
    found = hyp1f1(-power, half, -rate)
    wrong = np.flatnonzero(~np.isfinite(found))
    for one, other in np.unique(np.stack([half[wrong], rate[wrong]], axis=1), axis=0):
        width = 12 * np.sqrt(other) + 30
        j = np.arange(max(0, int(other - width)), int(other + width) + 1)
        log_chance = j * np.log(other) - other - gammaln(j + 1)
        log_moment = gammaln(one + power + j) - gammaln(one + j) - gammaln(one + power) + gammaln(one)
        found[wrong[(half[wrong] == one) & (rate[wrong] == other)]] = np.exp(log_chance + log_moment).sum()
    return found


def _normal_gain(size: np.ndarray, alpha: float, ddof: int) -> np.ndarray:
    """E[sigma^2 / sigma_ddof^alpha] of G normal rewards with standard deviation 1, in the shape of ``size``, G.

    G sigma^2 has a chi-square distribution with G - 1 degrees of freedom.
    """
    alpha = min(alpha, _MAX_ALPHA)
    power, half = (2 - alpha) / 2, (size - 1) / 2
    moment = np.exp(power * np.log(2 / size) + gammaln(half + power) - gammaln(half))
    return moment * ((size - ddof) / size) ** (alpha / 2)
