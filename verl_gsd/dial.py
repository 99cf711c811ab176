r"""The dial: GRPO, Dr. GRPO and DAPO as one operation on a group's standard deviation.

Paper: Bay & Yearick, "GRPO, Dr. GRPO, and DAPO are three operations on one number", arXiv 2607.00152. With responses
i = 1..G to one prompt, rewards R_i, their mean mu and population standard deviation sigma,

    A_i = (R_i - mu) / (sigma + eps)^alpha

For binary rewards, on-policy and with eps = 0, the gradient is exactly sigma^(2 - alpha) (s+ - s-). Here s+ and s- are
the mean scores (gradients of the log-probability) of the right and the wrong responses (Theorem 1, for alpha = 1).

    alpha = 1   GRPO: gain sigma                     alpha = 2    all mixed groups have the same weight
    alpha = 0   Dr. GRPO: gain sigma^2               alpha = -1   groups that are split in half get more weight
    DAPO is alpha = 1 without unanimous groups. Their gain is 0 in any case.

With alpha > 1, the advantages grow without limit as sigma approaches 0. Rewards of 0 and 1 set a limit, because sigma
is at least sqrt(G - 1) / G in a mixed group. Graded rewards set none: with alpha = 2, rewards of 0.83, 0.8301, 0.8299
and 0.83 would have advantages of 14600. So sigma has a floor in all but one of its alpha powers,

    A_i = (R_i - mu) / ((sigma + eps) (max(sigma, f) + eps)^(alpha - 1)),    f = s / (2 sqrt(G)),    if alpha > 1.

s is the scale of the batch's rewards (``reward_scale``). A few outliers do not change it: one reward of -100 among
rewards of 0 and 1 must not scale all other groups down. Below the floor, groups have the same weights as with
alpha = 1, up to a constant factor. For eps = 0, no advantage exceeds sqrt(G - 1) f^(1 - alpha) in size.

How this differs from the paper:
- The paper defines the operations. That one exponent covers all of them is our reading.
- The defaults are ddof = 1 and eps = 1e-6, as in verl's GRPO. The paper has ddof = 0 and eps = 0. With ddof = 1 a
  group's gradient is multiplied by ((G-1)/G)^(alpha/2).
- The floor for alpha > 1 is ours. If the batch has two different rewards, such as 0 and 1 or -1 and 1, all sigmas are
  above it (unless the two differ by less than a fourteenth of their size). It has no effect for alpha <= 1.
- A unanimous group gets exactly 0 for every alpha and eps. A group of one has no baseline and gets 0.
"""

from __future__ import annotations

import torch

from verl_gsd.dial_settings import check_dial_settings
from verl_gsd.groups import GroupStats, Labels, float_rows, group_extremes, group_stats

#: One of so many rewards of a batch, at either end, may be an outlier for ``reward_scale``.
_REWARDS_PER_OUTLIER = 100


def dial_advantage(
    rewards: torch.Tensor,
    index: Labels,
    *,
    alpha: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A_i = (R_i - mu) / (sigma + eps)^alpha, one advantage per response. For alpha > 1, sigma has the floor above.

    Args:
        rewards: (N,), one per response: the whole batch, because the floor depends on the scale of its rewards.
        index: N hashable labels. Rows with equal labels are one group.
        alpha: any finite number; 1 is GRPO, 0 is Dr. GRPO.
        ddof: 0 for the paper's population sigma, 1 for the sample sigma of verl, TRL and OpenRLHF.
        eps: added to sigma, at least 0.
        mask: (N,) bool. False marks a row of no group.

    Returns:
        (N,) in the rewards' dtype, float32 at least; 0 in unanimous groups, groups of one and rows of no group.

    Raises:
        ValueError: alpha, ddof or eps is out of range, ``groups.group_stats`` rejects the batch, or a group's sigma is
            so small that its advantages are not finite.
    """
    rewards = float_rows(rewards, "rewards")
    stats = group_stats(rewards.double(), index, mask)
    scale = reward_scale(rewards, stats)
    return divide(centre(rewards, stats), stats, alpha=alpha, ddof=ddof, eps=eps, scale=scale)


def centre(rewards: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    """R_i - mu, (N,) in the rewards' dtype; 0 in rows of no group. ``stats`` is in float64.

    mu is first rounded to that dtype, as in verl. Rewards far from zero therefore lose digits in float32; pass float64.
    """
    return (rewards - stats.per_row(stats.mean).to(rewards.dtype)).masked_fill(stats.group < 0, 0)


def reward_scale(rewards: torch.Tensor, stats: GroupStats) -> float:
    """s, the scale of a batch's rewards (N,); rows of no group do not count.

    With the floor(N / 100) smallest and as many of the largest rewards left out, and R_max and R_min the largest and
    the smallest of the others,

        s = max(R_max - R_min, |R_max| / 10, |R_min| / 10, the median of the ranges of mixed groups)

    - With the range of the whole batch, many groups of nearly equal rewards do not set the scale for the others. An
      outlier among the rewards left out does not set it either. Of fewer than 100 rewards, none is left out.
    - Without the tenth of the largest absolute reward, a batch of nearly equal rewards would have a scale near 0.
    - With rewards of 0 and 1, the median is 1 if any group is mixed, also if fewer than 1% of the responses are right.
      Of an even number of ranges, it is the lower one of the two in the middle.

    If all rewards are multiplied by c > 0, so is s.
    """
    counted = stats.group >= 0
    value, member = rewards[counted].double(), stats.group[counted]
    ordered = value.sort().values
    outliers = len(value) // _REWARDS_PER_OUTLIER
    smallest, largest = float(ordered[outliers]), float(ordered[-1 - outliers])
    low, high = group_extremes(value, member, len(stats.size))
    ranges = (high - low)[~stats.unanimous]
    usual = float(ranges.median()) if len(ranges) else 0.0
    return max(largest - smallest, abs(largest) / 10, abs(smallest) / 10, usual)


def sigma_floor(size: torch.Tensor, scale: float) -> torch.Tensor:
    """f = s / (2 sqrt(G)), (n_groups,) float64: the floor of sigma if alpha > 1.

    Args:
        size: (n_groups,), G.
        scale: s, from ``reward_scale``.
    """
    return scale / (2 * size.double().sqrt())


def gain_of_sigma(sigma: torch.Tensor, size: torch.Tensor, *, alpha: float, scale: float) -> torch.Tensor:
    """(n_groups,) the gain of mixed groups: sigma^(2 - alpha), and sigma f^(1 - alpha) below the floor f.

    Args:
        sigma: (n_groups,) float64, population standard deviations above 0.
        size, scale: see ``sigma_floor``.
    """
    gain = sigma.pow(2 - alpha)
    if alpha <= 1:
        return gain
    floor = sigma_floor(size, scale)
    return torch.where(sigma < floor, sigma * floor.pow(1 - alpha), gain)


def floor_metrics(stats: GroupStats, *, alpha: float, ddof: int, scale: float) -> dict[str, float]:
    """Metrics of the floor in ``divide``, over the mixed groups of a batch; empty if alpha <= 1 or no group is mixed.

    - ``dial/floor/reward_scale``: s, the scale of the batch's rewards.
    - ``dial/floor/sigma``: mean floor f. It depends on the size of a group.
    - ``dial/floor/groups``: number of groups whose sigma is below their floor.

    Args:
        stats, scale, alpha, ddof: as for ``divide``.
    """
    mixed = ~stats.unanimous
    if alpha <= 1 or not mixed.any():
        return {}
    floor, sigma = sigma_floor(stats.size, scale)[mixed], _sigma(stats, ddof)[mixed]
    return {
        "dial/floor/reward_scale": scale,
        "dial/floor/sigma": float(floor.mean()),
        "dial/floor/groups": float((sigma < floor).sum()),
    }


def _sigma(stats: GroupStats, ddof: int) -> torch.Tensor:
    """(n_groups,) float64, the groups' standard deviations with divisor G - ``ddof``."""
    size = stats.size.double()
    return stats.std * (size / (size - ddof).clamp(min=1)).sqrt()


def divide(
    centred: torch.Tensor, stats: GroupStats, *, alpha: float, ddof: int, eps: float, scale: float
) -> torch.Tensor:
    """``centred`` / (sigma + eps)^alpha, with the floor above; exactly 0 in unanimous groups and groups of one.

    Args:
        centred: (N,), rewards less their baseline.
        stats: the groups' original rewards, in float64.
        scale: the scale of the batch's original rewards, from ``reward_scale``.

    Raises:
        ValueError: alpha, ddof or eps is out of range, or a result is not finite.
    """
    check_dial_settings(alpha, ddof, eps)
    # Sigma is rounded before eps is added. The power and the quotient are computed in float64, and the quotient is
    # rounded once. For alpha = 1 and rewards of 0 and 1, the result equals that of verl's grpo bit for bit.
    sigma = _sigma(stats, ddof).to(centred.dtype)
    divisor = (sigma + eps).double().pow(alpha)
    if alpha > 1:
        floor = sigma_floor(stats.size, scale)
        floored = (sigma + eps).double() * (floor + eps).pow(alpha - 1)
        divisor = torch.where(sigma.double() < floor, floored, divisor)
    silent = stats.per_row(stats.unanimous, elsewhere=True)  # a group of one is unanimous too
    exact = (centred.double() / stats.per_row(divisor, elsewhere=1)).masked_fill(silent, 0)
    advantages = exact.to(centred.dtype)
    lost = ~silent & ~(stats.per_row(sigma, elsewhere=1).isfinite() & advantages.isfinite())
    if lost.any():
        row = int(torch.nonzero(lost)[0])
        raise ValueError(
            f"row {row}: its group's sigma is {stats.per_row(stats.std)[row].item():.3g}, and with alpha={alpha} its "
            f"advantage is {advantages[row].item()}. Set alpha closer to 0 or eps larger, or scale the rewards"
        )
    return advantages
