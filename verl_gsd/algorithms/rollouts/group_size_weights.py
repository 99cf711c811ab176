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
- alpha = 0: gain(p, G) = (1 - 1/G) p (1-p), and the two factors together are (n-1) / (G_i-1) for every p. The part of a
  prompt is exact. It is exact for graded rewards, too, because a mean over G responses is centred on itself whatever
  the rewards are.
- Other alpha: the second factor depends on p, which is unknown. We choose to replace both gains by their means under
  the posterior of p by which the budget divides the rollouts. The expected part of a prompt is then exact on average
  over this posterior, and exact for the p itself if p is known. It assumes rewards of 0 and 1.
- Stages that mask pairs or weigh responses multiply a gain that the second factor does not know.

How this differs from the paper: arXiv 2607.00152 only has groups of one size. The weights follow from its identity
g = (1/G) sum A_i s_i = sigma^(2 - alpha) ds.

Consequences:
- A prompt with more rollouts does not move further on average. Its part has less noise: it is the mean of more
  responses. This is the purpose of a budget.
- Under verl's ``seq-mean-*`` losses, the share of a prompt is (1/(B n)) sum_j (n/G_i) A_j l_j = (1/B) (1/G_i) sum_j
  A_j l_j times the second factor. Here l_j is the loss of a response before it is multiplied by its advantage.
- Under ``token-mean``, prompts have the same relative weights as with equal groups. The common divisor, the number of
  tokens in the mini-batch, is that of the requested rollouts.
- Other terms of the loss (``use_kl_loss``, ``entropy_coeff``) have no advantage to weigh. They still average over rows.
- The factors are positive and equal for all responses of a group. They do not change signs, clipping, or sums that are
  zero.
"""

from __future__ import annotations

import numpy as np
import torch

from verl_gsd.groups import GroupStats, require_rows
from verl_gsd.planning import posterior_gain


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
    alpha: float,
    ddof: int,
    eps: float,
) -> np.ndarray:
    """The expected gain of a group of ``equal_size`` divided by that of a group of ``sizes``, (B,) float64.

    Args:
        correct, total, partial: (B,), earlier responses to each prompt; see ``planning.posterior_gain``.
        sizes: (B,), rollouts requested for each prompt, 2 or more.
        equal_size: rollouts per prompt if all groups were equal, 2 or more.

    Raises:
        ValueError: as ``planning.posterior_gain``.
    """
    gain_of_equal, gain = (
        np.asarray(posterior_gain(correct, total, size, alpha, prior, partial=partial, ddof=ddof, eps=eps))
        for size in (equal_size, sizes)
    )
    return gain_of_equal / gain
