r"""The dial: GRPO, Dr. GRPO and DAPO as one operation on a group's standard deviation.

Paper: Bay & Yearick, "GRPO, Dr. GRPO, and DAPO are three operations on one number", arXiv 2607.00152. With responses
i = 1..G to one prompt, rewards R_i, their mean mu and population standard deviation sigma,

    A_i = (R_i - mu) / (sigma + eps)^alpha

and, on-policy and for binary rewards, the gradient is exactly sigma^(2 - alpha) (s+ - s-), where s+ and s- are the mean
scores (gradients of log-probability) of the right and the wrong responses (Theorem 1 for alpha = 1; with eps = 0).

    alpha = 1   GRPO: gain sigma                     alpha = 2    every mixed group weighs the same
    alpha = 0   Dr. GRPO: gain sigma^2               alpha = -1   favours groups that are split in half
    DAPO is alpha = 1 without its unanimous groups, whose gain is 0 in any case.

How this differs from the paper:
- The paper has the operations; one exponent for all of them is our reading of it.
- ddof = 1 and eps = 1e-6 by default, which is what verl's GRPO computes; the paper's are ddof = 0 and eps = 0. ddof = 1
  multiplies a group's gradient by ((G-1)/G)^(alpha/2).
- A unanimous group gets exactly 0, whatever alpha and eps; a group of one has no baseline and gets 0.
"""

from __future__ import annotations

import torch

from verl_gsd.dial_settings import check_dial_settings
from verl_gsd.groups import GroupStats, Labels, float_rows, group_stats


def dial_advantage(
    rewards: torch.Tensor,
    index: Labels,
    *,
    alpha: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A_i = (R_i - mu) / (sigma + eps)^alpha, one number a response.

    Args:
        rewards: (N,), one a response.
        index: N hashable labels; rows with equal labels are one group.
        alpha: any finite number; 1 is GRPO, 0 is Dr. GRPO.
        ddof: 0 for the paper's population sigma, 1 for the sample sigma of verl, TRL and OpenRLHF.
        eps: added to sigma, at least 0.
        mask: (N,) bool; False is a row of no group.

    Returns:
        (N,) in the rewards' dtype, float32 at least; 0 in unanimous groups, groups of one and rows of no group.

    Raises:
        ValueError: alpha, ddof or eps is out of range, ``groups.group_stats`` refuses the batch, or a group's sigma is
            so small that its advantage is no finite number.
    """
    rewards = float_rows(rewards, "rewards")
    stats = group_stats(rewards.double(), index, mask)
    return divide(centre(rewards, stats), stats, alpha=alpha, ddof=ddof, eps=eps)


def centre(rewards: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    """R_i - mu, (N,) in the rewards' dtype; 0 in rows of no group. ``stats`` in float64.

    mu is rounded to that dtype first, as verl does, so that float32 rewards far from zero lose digits: pass float64.
    """
    return (rewards - stats.per_row(stats.mean).to(rewards.dtype)).masked_fill(stats.group < 0, 0)


def divide(centred: torch.Tensor, stats: GroupStats, *, alpha: float, ddof: int, eps: float) -> torch.Tensor:
    """``centred`` / (sigma + eps)^alpha, and exactly 0 in groups that are unanimous or of one.

    Args:
        centred: (N,), rewards less whatever they are measured against.
        stats: of the group's original rewards, in float64.

    Raises:
        ValueError: alpha, ddof or eps is out of range, or a result is no finite number.
    """
    check_dial_settings(alpha, ddof, eps)
    # sigma is rounded before eps is added, and only then raised to alpha, in float64; the quotient is rounded once. At
    # alpha = 1 this is bit for bit what verl's grpo computes from 0/1 rewards.
    size = stats.size.double()
    sigma = (stats.std * (size / (size - ddof).clamp(min=1)).sqrt()).to(centred.dtype)
    divisor = (sigma + eps).double().pow(alpha)
    silent = stats.per_row(stats.unanimous, elsewhere=True)  # a group of one is unanimous too
    exact = (centred.double() / stats.per_row(divisor, elsewhere=1)).masked_fill(silent, 0)
    advantages = exact.to(centred.dtype)
    lost = ~silent & ~(stats.per_row(sigma, elsewhere=1).isfinite() & advantages.isfinite())
    if lost.any():
        row = int(torch.nonzero(lost)[0])
        raise ValueError(
            f"row {row}: with alpha={alpha} and its group's sigma {stats.per_row(stats.std)[row].item():.3g} its "
            f"advantage is {advantages[row].item()}; write an alpha nearer to 0 or a larger eps, or scale the rewards"
        )
    return advantages
