r"""Groups of several sizes in one update, and a prompt's part in it as with equal ones.

A budget (``budget.py``) asks for G_i rollouts of prompt i, B n of B prompts in all. verl's losses average
over rows, so that prompt i would weigh G_i / n times what it does with equal groups. Its advantages are therefore
multiplied by

    mean(G) / G_i,    mean(G) = n where all B groups are there

(arXiv 2607.00152 has groups of one size; this is what its identity g = (1/G) sum A_i s_i asks for.) What that holds:

- Under verl's ``seq-mean-*`` losses, exactly: with l_j the loss of a response before its advantage, a prompt's part is
  (1/(B n)) sum_j (n/G_i) A_j l_j = (1/B) (1/G_i) sum_j A_j l_j, the mean over its responses, whatever their number.
- Under ``token-mean``, in proportion: prompts weigh to one another as with equal groups, and the common divisor, the
  tokens of the mini-batch, is that of the rollouts asked for.
- A larger group's mean is a better one: the expected gain E[sigma_hat] of a prompt still grows with its rollouts. That
  is what a budget is for, and no weight takes it away.
- Terms beside the policy's loss (``use_kl_loss``, ``entropy_coeff``) have no advantage to weigh: they count rows.
- The factor is positive and equal for all responses of a group: signs, clips and sums to zero stay as they are, and so
  do weights and masks of other extensions, which are defined for groups of any size.
"""

from __future__ import annotations

import torch

from verl_gsd.groups import GroupStats, require_rows


def equal_prompts(rollouts: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    """mean(G) / G_i, one number a response.

    Args:
        rollouts: (N,), G_i: the rollouts asked for of each row's prompt, of which some may have failed.
        stats: the rows' groups.

    Returns:
        (N,) float64, 1 in rows of no group. Its sum over a group whose rollouts are all there is mean(G).

    Raises:
        ValueError: lengths differ, or rows of one group have different numbers or none (naming the row).
    """
    require_rows(len(stats.group), rollouts=rollouts)
    counted = stats.group >= 0
    asked = rollouts.double()
    of_group = asked.new_zeros(len(stats.size)).index_copy_(0, stats.group[counted], asked[counted])
    bad = torch.nonzero(counted & ~((asked >= 1) & (asked == stats.per_row(of_group))))
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"rollouts[{row}] is {rollouts[row].item()}; write one number of 1 or more for a whole group")
    return stats.per_row(of_group.mean() / of_group, elsewhere=1)
