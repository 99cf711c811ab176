r"""The policy loss divided by what is not silent.

A group is silent if all its advantages are exactly 0. Its policy loss is then 0, and so is the gradient, but verl still
counts its responses and tokens when it divides the loss. With D, the count of a mini-batch
(``verl_gsd/denominators.py``), and D_s, the part of it that belongs to silent groups,

    verl:        L  = (1 / D)         sum_i l_i(A_i)
    left out:    L' = (1 / (D - D_s)) sum_i l_i(A_i)

The losses for which this is allowed (``conflicts.py``) are proportional to their advantages: l_i(c A) = c l_i(A) for
c > 0. So L' is verl's loss L with all advantages of the mini-batch multiplied by D / (D - D_s). The workers multiply
them. If all groups are silent, both losses are 0, and the factor is 1.

What counts:
- D is verl's own count. Its tokens are those of ``loss_mask``, so that tokens that rollout correction rejects still
  count. Its responses are the rows of the mini-batch, with verl's padding rows. Padding belongs to no group and is
  never left out.
- Under a budget, prompt i has G_i rollouts, and weights of n / G_i, where n is the mean of G_i, keep its part in the
  update. A budget gives silent groups fewer rollouts, so their rows are a smaller share than their prompts. A row of
  prompt i, or each of its tokens, therefore counts n / G_i in D and D_s. Every prompt then counts as n responses, and
  the factor is as large as with equal groups. Failed responses do not count. Without a budget, a row counts 1.
- The advantages decide, not the rewards. Unanimous groups and groups of one are silent. So is a group of different
  rewards if the chain sets all advantages to 0, for example because a mask drops all pairs of responses. A group in
  which every response failed is not silent if a demonstration gives it advantages.
- KL and entropy terms have a gradient in silent groups, too. They keep verl's D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from verl_gsd.denominators import UNITS, Unit
from verl_gsd.groups import Labels, group_numbers


def in_silent_group(advantages: torch.Tensor, index: Labels, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Whether each of N rows belongs to a group whose advantages are all exactly 0.

    Args:
        advantages: (N,), one per row.
        index: N hashable labels. Rows with equal labels are one group.
        mask: (N,) bool. False marks a row of no group.

    Returns:
        (N,) bool, False in rows of no group.

    Raises:
        ValueError: see ``groups.group_numbers``.
    """
    group = group_numbers(index, len(advantages), mask).to(advantages.device)
    counted = group >= 0
    nonzero = torch.zeros(int(group.amax()) + 1, dtype=torch.int64, device=group.device)
    nonzero.index_add_(0, group[counted], (advantages[counted] != 0).long())
    return counted & (nonzero[group.clamp(min=0)] == 0)


def unit_counts(silent: torch.Tensor, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(2, 2) float64: tokens and responses of R rows in the first line, and of the silent ones in the second.

    The counts of several workers add up.

    Args:
        silent: (R,) bool.
        tokens: (R,) int64, the number of tokens that verl counts in each row.
        weight: (R,), what each row counts; see ``response_weights``.
    """
    units = torch.stack([tokens, torch.ones_like(tokens)], dim=1) * weight.double().unsqueeze(1)  # in order of UNITS
    return torch.stack([units.sum(dim=0), units[silent].sum(dim=0)])


def response_weights(rollouts: Sequence[int | None]) -> torch.Tensor:
    """What each of N rows counts in D and D_s: mean(G) / G_i under a budget, and 1 otherwise. (N,) float64.

    Args:
        rollouts: G_i, the number of rollouts that a budget requested for each row's prompt; None without a budget, and
            for padding. The mean is that of the prompts: sum(1) / sum(1 / G_i) over the rows with a number.
    """
    requested = [number for number in rollouts if number is not None]
    if not requested:
        return torch.ones(len(rollouts), dtype=torch.float64)
    mean = len(requested) / math.fsum(1 / number for number in requested)
    return torch.tensor([1.0 if number is None else mean / number for number in rollouts], dtype=torch.float64)


def scale(counts: torch.Tensor, unit: Unit) -> float:
    """D / (D - D_s), the factor of the advantages of a mini-batch; 1 if all of it is silent.

    Args:
        counts: (2, 2), ``unit_counts`` of the whole mini-batch.
        unit: what the loss is divided by.
    """
    everything, silent = counts[:, UNITS.index(unit)].tolist()
    # Sums of weights are rounded, in an order that depends on the workers.
    return everything / (everything - silent) if everything - silent > 1e-9 * everything else 1.0
