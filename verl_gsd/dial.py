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
(``reward_scale``), a usual range of the rewards within its groups. The factor of z is largest at the floor,
f^(1 - alpha), and falls to 0 as sigma approaches 0: a group whose rewards differ only by noise has no weight. The
factor is continuous in sigma, and in alpha at 1. For eps = 0, no advantage exceeds sqrt(G - 1) f^(1 - alpha) in size.

How this differs from the paper:

- The paper defines the operations. That one exponent covers all of them is our reading.
- The defaults are ddof = 1 and eps = 1e-6, as in verl's GRPO. The paper has ddof = 0 and eps = 0. With ddof = 1 a
  group's gradient is multiplied by ((G-1)/G)^(alpha/2).
- The floor for alpha > 1 is ours. If a data source has two different rewards, such as 0 and 1 or -1 and 1, all its
  sigmas are above it. The exceptions are two rewards that differ by less than a fortieth of their size, and a second
  source whose scale is more than ten times as large. The floor has no effect for alpha <= 1.
- A unanimous group gets exactly 0 for every alpha and eps. A group of one has no baseline and gets 0.
"""

from __future__ import annotations

import torch

from verl_gsd.dial_settings import check_dial_settings
from verl_gsd.groups import GroupStats, Labels, float_rows, group_extremes, group_stats

#: Metric with the number of groups below the floor, see ``floor_metrics``.
FLOOR_GROUPS = "dial/floor/groups"
#: A group disagrees clearly if its range is at least the largest range that is no outlier, divided by this number.
_CLEAR = 5
#: Of so many mixed groups or more, the one with the largest range may be an outlier.
_GROUPS_WITH_OUTLIER = 8
#: The scale is at least the usual range of any other source divided by this number.
_OTHER_SOURCES = 10
#: The scale is at least the level of a source's rewards divided by this number.
_LEVEL = 30


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

    The range of a group is its largest reward minus its smallest. Let R be the second largest range of a source's mixed
    groups, or the largest if fewer than 8 of them are mixed. A group disagrees clearly if its range is at least R / 5.
    u is the lower quartile of the ranges of these groups, and s is the largest of

        u          a usual range of the source
        u' / 10    for the u' of every other source in the batch
        L / 30     L is the largest |R_i| that all responses of some group of two or more reach

    - Only ranges within groups count, because sigma is compared with s. Prompts may differ more than responses do.
    - Groups of nearly equal rewards do not set u, however many they are, if two groups disagree clearly.
    - The largest range does not set u, because it can be an outlier: a single reward of -100 changes no other group.
    - A penalty that makes some ranges larger does not set u: with rewards of 0 and 1, and down to -4 for a few
      responses, u is 1 if a quarter of the clear groups have no penalty.
    - Sources do not share a scale, because the points of one are no measure of the verdicts of another. But if one of
      them differs by more than 10 times as much, the other may differ by noise alone, and u' / 10 limits its weight.
    - L / 30 limits the weight of a source whose rewards are all nearly equal.

    Limit: if no other source has a scale, the rewards are close to 0, and fewer than two of the mixed groups (8 or
    more) differ by a verdict, then the noise in the others is taken for the scale.

    If all rewards of a batch are multiplied by c > 0, so is s.

    Args:
        source: (N,) int64, the number of each row's data source, the same for all rows of a group. None: all rows are
            of one source.
    """
    counted = stats.group >= 0
    value, member, n_groups = rewards[counted].double(), stats.group[counted], len(stats.size)
    low, high = group_extremes(value, member, n_groups)
    level = group_extremes(value.abs(), member, n_groups)[0].masked_fill(stats.size < 2, 0)
    of_group = torch.zeros_like(stats.size) if source is None else _per_group(source, stats)
    sources = [of_group == one for one in of_group.unique()]
    mixed, ranges = ~stats.unanimous, high - low
    usual = [_usual_range(ranges[groups & mixed]) for groups in sources]
    scale = torch.zeros_like(low)
    for groups, own in zip(sources, usual, strict=True):
        scale[groups] = max(own, max(usual) / _OTHER_SOURCES, float(level[groups].max()) / _LEVEL)
    return stats.per_row(scale)


def _usual_range(ranges: torch.Tensor) -> float:
    """u of ``reward_scale``, of the ranges of a source's mixed groups; 0 if there are none."""
    if not len(ranges):
        return 0.0
    ordered = ranges.sort().values
    largest = ordered[-2] if len(ordered) >= _GROUPS_WITH_OUTLIER else ordered[-1]
    clear = ordered[ordered >= largest / _CLEAR]
    return float(clear[(len(clear) - 1) // 4])


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
        FLOOR_GROUPS: float((sigma < floor).sum()),
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
