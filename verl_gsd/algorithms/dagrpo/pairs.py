r"""DaGRPO: of a group's pairs of a better and a worse response, only those that a judge finds distinct push them apart.

Paper: "DaGRPO: Rectifying Gradient Conflict in Reasoning via Distinctiveness-Aware Group Relative Policy Optimization",
arXiv 2512.06337. Responses much like each other get opposing advantages whose gradients cancel or conflict; the paper
scores every response finely (an LLM as judge) and masks pairs whose scores differ by less than delta. Its equations
were not available to us: **everything below is our reading.** Because R_i - mean R = (1/G) sum_j (R_i - R_j),

    A_i = (1/G) sum_j M_ij (R_i - R_j),    M_ij = 1 where R_i != R_j and score(better) - score(worse) >= delta

takes the place of R_i - mean R, and is divided by (sigma + eps)^alpha as ever, sigma that of all the group's rewards.

- delta = -inf keeps every pair and is mean-centred GRPO; sum A_i = 0 for every delta; kept pairs fall as delta rises.
- With delta >= 0 a pair on which the judge contradicts the verifier is dropped, whatever the gap. ``signed=False``
  measures |gap| instead.
- A score of NaN is a failed judgement: its pairs are kept.
- ``kept_rows`` is the other reading, a mask on responses instead of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from verl_gsd import dial
from verl_gsd.groups import GroupStats, Labels, float_rows, group_stats, require_finite, require_rows


def rectified_advantage(
    rewards: torch.Tensor,
    scores: torch.Tensor,
    index: Labels,
    *,
    delta: float,
    alpha: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
    signed: bool = True,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A_i = (1/G) sum_j M_ij (R_i - R_j) / (sigma + eps)^alpha, one number a response.

    Args:
        rewards, index, alpha, ddof, eps, mask: as ``dial.dial_advantage``.
        scores: (N,), a judge's; NaN where it failed.
        delta: the gap from which a pair counts; -inf keeps every pair.
        signed: measure the better response's score less the worse one's; False: the gap whatever its sign.

    Returns:
        (N,) in the rewards' dtype, float32 at least; they sum to zero in each group. 0 in unanimous groups, groups of
        one, rows of no group, and rows all of whose pairs are masked.

    Raises:
        ValueError: a setting is out of range, lengths differ, a score that counts is infinite, or
            ``groups.group_stats`` refuses the batch; the message names the row.
    """
    rewards = float_rows(rewards, "rewards")
    stats = group_stats(rewards.double(), index, mask)
    centred = rectified(rewards, scores, stats, delta=delta, signed=signed)
    return dial.divide(centred, stats, alpha=alpha, ddof=ddof, eps=eps)


def rectified(
    rewards: torch.Tensor,
    scores: torch.Tensor,
    stats: GroupStats,
    *,
    delta: float,
    signed: bool = True,
    alone: torch.Tensor | None = None,
    exempt: torch.Tensor | None = None,
) -> torch.Tensor:
    """(1/G) sum_j M_ij (R_i - R_j), (N,) in the rewards' dtype: what takes the place of R_i - mean R.

    Args:
        alone, exempt: see ``Pairs.kept``.
    """
    centred = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    for pairs in pairs_by_size(rewards, scores, stats):
        kept = pairs.kept(delta, signed=signed, alone=alone, exempt=exempt)
        centred[pairs.row] = (pairs.difference * kept).sum(dim=-1) / pairs.row.shape[1]
    return centred.to(rewards.dtype)


def kept_rows(
    rewards: torch.Tensor,
    scores: torch.Tensor,
    stats: GroupStats,
    *,
    delta: float,
    by: Literal["min", "mean", "max"],
    signed: bool = True,
) -> torch.Tensor:
    """The mask on responses: those whose gaps to the rows of another reward reach ``delta``, by their min, mean or max.

    A row without a known gap is kept. Mean and sigma are then those of the kept rows, so that a class left empty
    silences its group.

    Returns:
        (N,) bool; False in rows of no group.

    Raises:
        ValueError: ``delta`` is NaN.
    """
    _require_delta(delta)
    keep = stats.group >= 0
    for pairs in pairs_by_size(rewards, scores, stats):
        gap = pairs.gap if signed else pairs.gap.abs()
        known = (pairs.difference != 0) & ~gap.isnan()
        if by == "mean":
            found = gap.masked_fill(~known, 0).sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
        elif by == "min":
            found = gap.masked_fill(~known, math.inf).amin(dim=-1)
        else:
            found = gap.masked_fill(~known, -math.inf).amax(dim=-1)
        keep[pairs.row] = (found >= delta) | ~known.any(dim=-1)
    return keep


@dataclass(frozen=True)
class Pairs:
    """The ordered pairs of rows within each of g groups of one size k, in float64.

    Attributes:
        row: (g, k) int64, rows of the batch.
        difference: (g, k, k), R_i - R_j.
        gap: (g, k, k), the better one's score less the worse one's; NaN where a score is, 0 where rewards are equal.
    """

    row: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor

    def kept(
        self,
        delta: float,
        *,
        signed: bool = True,
        alone: torch.Tensor | None = None,
        exempt: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(g, k, k) bool: pairs of unequal rewards whose gap reaches ``delta`` or is not known; symmetric.

        Args:
            alone: (N,) bool, rows of the batch whose pairs are dropped.
            exempt: (N,) bool, rows whose pairs are kept in any case.

        Raises:
            ValueError: ``delta`` is NaN.
        """
        _require_delta(delta)
        gap = self.gap if signed else self.gap.abs()
        kept = (gap >= delta) | gap.isnan()
        if alone is not None:
            kept &= ~self._either(alone)
        if exempt is not None:
            kept |= self._either(exempt)
        return kept & (self.difference != 0)

    def _either(self, rows: torch.Tensor) -> torch.Tensor:
        """(g, k, k): whether one of the pair is among ``rows``, (N,) bool."""
        of_group = rows[self.row]
        return of_group.unsqueeze(2) | of_group.unsqueeze(1)


def pairs_by_size(rewards: torch.Tensor, scores: torch.Tensor, stats: GroupStats) -> Iterator[Pairs]:
    """The pairs of all groups of two rows or more, those of one size together.

    Raises:
        ValueError: lengths differ, or a score that counts is infinite.
    """
    scores = float_rows(scores, "scores").to(rewards.device)
    require_rows(len(rewards), scores=scores)
    require_finite(scores.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), "scores", where=stats.group >= 0)
    size = stats.per_row(stats.size)
    for k in stats.size.unique().tolist():
        if k < 2:
            continue
        rows = torch.nonzero((size == k) & (stats.group >= 0)).squeeze(1)
        row = rows[torch.argsort(stats.group[rows], stable=True)].view(-1, k)
        reward, score = rewards.double()[row], scores.double()[row]
        difference = reward.unsqueeze(2) - reward.unsqueeze(1)
        yield Pairs(row, difference, difference.sign() * (score.unsqueeze(2) - score.unsqueeze(1)))


def _require_delta(delta: float) -> None:
    if math.isnan(delta):
        raise ValueError("delta=nan: write a number on the judge's scale, or -inf to keep every pair")
