r"""Weights that give every prompt the same weight in an update although groups have different sizes.

A budget (``budget.py``) requests G_i rollouts for prompt i, and B n rollouts for B prompts in all. verl's losses
average over rows. Compared with equal groups, prompt i would therefore weigh G_i / n times as much. To undo this, its
advantages are multiplied by

    mean(G) / G_i,    mean(G) = n if all B groups are present

How this differs from the paper: arXiv 2607.00152 only has groups of one size. The weight follows from its identity
g = (1/G) sum A_i s_i.

Consequences:
- Under verl's ``seq-mean-*`` losses, prompts have exactly equal weights. Let l_j be the loss of a response before it is
  multiplied by its advantage. The share of a prompt is (1/(B n)) sum_j (n/G_i) A_j l_j = (1/B) (1/G_i) sum_j A_j l_j,
  the mean over its responses, whatever their number.
- Under ``token-mean``, prompts have the same relative weights as with equal groups. The common divisor, the number of
  tokens in the mini-batch, is that of the requested rollouts.
- The mean of a larger group is more precise: the expected gain E[sigma_hat] of a prompt still grows with its rollouts.
  This is the purpose of a budget, and the weights do not cancel it.
- Other terms of the loss (``use_kl_loss``, ``entropy_coeff``) have no advantage to weigh. They still average over rows.
- The factor is positive and equal for all responses of a group. It does not change signs, clipping, or sums that are
  zero. It does not change weights and masks of other extensions either, which are defined for groups of any size.
"""

from __future__ import annotations

import torch

from verl_gsd.groups import GroupStats, require_rows


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
