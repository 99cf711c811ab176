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
and 0.83 would have advantages of 14600. So sigma has a floor f, and below it the weight falls again:

    A_i = z_i max(t, f^2 / t)^(1 - alpha),    z_i = (R_i - mu) / t,    t = sigma + eps,    f = s / (2 sqrt(G)) + eps

if alpha > 1. z is the advantage of alpha = 1, and s is the scale of the rewards of the prompt's data source
(``reward_scale``). The factor of z is largest at the floor, f^(1 - alpha), and falls to 0 as sigma approaches 0: a
group whose rewards differ only by noise has no weight. It is continuous in sigma, and in alpha at 1. For eps = 0, no
advantage exceeds sqrt(G - 1) f^(1 - alpha) in size.

How this differs from the paper:
- The paper defines the operations. That one exponent covers all of them is our reading.
- The defaults are ddof = 1 and eps = 1e-6, as in verl's GRPO. The paper has ddof = 0 and eps = 0. With ddof = 1 a
  group's gradient is multiplied by ((G-1)/G)^(alpha/2).
- The floor for alpha > 1 is ours. If a data source has two different rewards, such as 0 and 1 or -1 and 1, all its
  sigmas are above it (unless the two differ by less than a fourteenth of their size). It has no effect for alpha <= 1.
- A unanimous group gets exactly 0 for every alpha and eps. A group of one has no baseline and gets 0.
"""

from __future__ import annotations

import torch

from verl_gsd.dial_settings import check_dial_settings
from verl_gsd.groups import GroupStats, Labels, float_rows, group_extremes, group_stats

#: One of so many rewards of a data source, at either end, may be an outlier for ``reward_scale``.
_REWARDS_PER_OUTLIER = 100
#: A group disagrees clearly if its range is at least the range of its source's rewards divided by this number.
_CLEAR = 5


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
        rewards: (N,), one per response, all of one data source: the floor depends on the scale of its rewards.
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


def reward_scale(rewards: torch.Tensor, stats: GroupStats, source: torch.Tensor | None = None) -> torch.Tensor:
    """s, the scale of the rewards (N,) of a data source, for each row: (N,) float64, 0 in rows of no group.

    Of the N rewards of a source, the floor(N / 100) smallest and as many of the largest may be outliers. With R_max and
    R_min the largest and the smallest of the others, and D = R_max - R_min,

        s = max(D / 5, |R_max| / 10, |R_min| / 10, the lower quartile of the ranges of groups that disagree clearly)

    - A group disagrees clearly if it is mixed and its range is at least D / 5. Groups of nearly equal rewards therefore
      do not set the scale, however many they are.
    - The quartile is a range within groups, which sigma is compared with. Prompts may differ more than responses do. A
      penalty that makes some ranges larger does not set it either: with rewards of 0 and 1, and -2 for a few responses,
      s is 1 if a quarter of the clear groups have no penalty, and these groups are above the floor.
    - Without D / 5 and the tenths, a source of nearly equal rewards would have a scale near 0.
    - Sources do not share a scale, because the points of one are no measure of the verdicts of another.

    If all rewards of a source are multiplied by c > 0, so is s.

    Args:
        source: (N,) int64, the number of each row's data source, the same for all rows of a group. None: all rows are
            of one source.
    """
    counted = torch.nonzero(stats.group >= 0).flatten()
    value, member = rewards[counted].double(), stats.group[counted]
    low, high = group_extremes(value, member, len(stats.size))
    spread, mixed = high - low, ~stats.unanimous
    of_row = torch.zeros_like(member) if source is None else source[counted]
    scale = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    for one in of_row.unique():
        rows = of_row == one
        groups = torch.zeros_like(mixed).index_fill(0, member[rows], True)
        scale[counted[rows]] = _scale(value[rows], spread[groups & mixed])
    return scale


def _scale(rewards: torch.Tensor, ranges: torch.Tensor) -> float:
    """``reward_scale`` of one source.

    Args:
        rewards: (n,) float64, n >= 1.
        ranges: of the source's mixed groups; may be empty.
    """
    outliers = len(rewards) // _REWARDS_PER_OUTLIER
    ordered = rewards.sort().values
    smallest, largest = float(ordered[outliers]), float(ordered[-1 - outliers])
    least = (largest - smallest) / _CLEAR
    clear = ranges[ranges >= least].sort().values
    quartile = float(clear[(len(clear) - 1) // 4]) if len(clear) else 0.0
    return max(least, abs(largest) / 10, abs(smallest) / 10, quartile)


def sigma_floor(stats: GroupStats, scale: torch.Tensor) -> torch.Tensor:
    """s / (2 sqrt(G)), (n_groups,) float64: the floor of sigma if alpha > 1.

    Args:
        scale: (N,), s, from ``reward_scale``.
    """
    return _per_group(scale, stats) / (2 * stats.size.double().sqrt())


def _per_group(values: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    """(n_groups,), of ``values`` (N,) that are equal in all rows of a group."""
    counted = stats.group >= 0
    return values.new_zeros(len(stats.size)).index_copy_(0, stats.group[counted], values[counted])


def gain_of_sigma(stats: GroupStats, *, alpha: float, scale: torch.Tensor) -> torch.Tensor:
    """(n_groups,) the gain: sigma^(2 - alpha), and sigma^alpha f^(2 - 2 alpha) below the floor f; 0 if unanimous.

    Args:
        stats: in float64.
        scale: see ``sigma_floor``.
    """
    sigma = stats.std.masked_fill(stats.unanimous, 1)
    gain = sigma.pow(2 - alpha)
    if alpha > 1:
        floor = sigma_floor(stats, scale)
        gain = torch.where(sigma < floor, sigma * (sigma / floor.square()).pow(alpha - 1), gain)
    return gain.masked_fill(stats.unanimous, 0)


def floor_metrics(stats: GroupStats, *, alpha: float, ddof: int, scale: torch.Tensor) -> dict[str, float]:
    """Metrics of the floor in ``divide``, over the mixed groups of a batch; empty if alpha <= 1 or no group is mixed.

    - ``dial/floor/reward_scale``: mean s, the scale of the rewards of a group's data source.
    - ``dial/floor/sigma``: mean floor f. It depends on the size of a group.
    - ``dial/floor/groups``: number of groups whose sigma is below their floor.

    Args:
        stats, scale, alpha, ddof: as for ``divide``.
    """
    mixed = ~stats.unanimous
    if alpha <= 1 or not mixed.any():
        return {}
    floor, sigma = sigma_floor(stats, scale)[mixed], _sigma(stats, ddof)[mixed]
    return {
        "dial/floor/reward_scale": float(_per_group(scale, stats)[mixed].mean()),
        "dial/floor/sigma": float(floor.mean()),
        "dial/floor/groups": float((sigma < floor).sum()),
    }


def _sigma(stats: GroupStats, ddof: int) -> torch.Tensor:
    """(n_groups,) float64, the groups' standard deviations with divisor G - ``ddof``."""
    size = stats.size.double()
    return stats.std * (size / (size - ddof).clamp(min=1)).sqrt()


def divide(
    centred: torch.Tensor, stats: GroupStats, *, alpha: float, ddof: int, eps: float, scale: torch.Tensor
) -> torch.Tensor:
    """``centred`` / (sigma + eps)^alpha, with the floor above; exactly 0 in unanimous groups and groups of one.

    Args:
        centred: (N,), rewards less their baseline.
        stats: the groups' original rewards, in float64.
        scale: (N,), the scale of the original rewards, from ``reward_scale``.

    Raises:
        ValueError: alpha, ddof or eps is out of range, or a result is not finite.
    """
    check_dial_settings(alpha, ddof, eps)
    # Sigma is rounded before eps is added. The power and the quotient are computed in float64, and the quotient is
    # rounded once. For alpha = 1 and rewards of 0 and 1, the result equals that of verl's grpo bit for bit.
    sigma = _sigma(stats, ddof).to(centred.dtype)
    divisor = (sigma + eps).double().pow(alpha)
    if alpha > 1:
        floor, raised = sigma_floor(stats, scale), (sigma + eps).double()
        floored = raised * ((floor + eps).square() / raised).pow(alpha - 1)
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
