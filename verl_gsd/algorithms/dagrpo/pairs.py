r"""DaGRPO computes advantages only from those pairs of a better and a worse response that a judge scores differently.

Paper: "DaGRPO: Rectifying Gradient Conflict in Reasoning via Distinctiveness-Aware Group Relative Policy Optimization",
arXiv 2512.06337. If two responses are very similar, their opposing advantages have gradients that cancel or conflict.
In the paper, an LLM as a judge gives every response a fine-grained score, and pairs whose scores differ by less than
delta are masked.

The paper's equations were not available to us: **everything below is our reading.** GRPO centres the rewards of a
group, and R_i - mean R = (1/G) sum_j (R_i - R_j). We replace this centred reward by

    A_i = (1/G) sum_j M_ij (R_i - R_j),    M_ij = 1 if R_i != R_j and score(better) - score(worse) >= delta, else 0

As usual, A_i is then divided by (sigma + eps)^alpha, where sigma is over all rewards of the group.

- delta = -inf keeps every pair, which is mean-centred GRPO. sum A_i = 0 for every delta. A larger delta never keeps
  more pairs.
- With delta >= 0, a pair on which the judge contradicts the verifier is dropped, however large the gap.
  ``signed=False`` compares |gap| with delta instead.
- A NaN score is a failed judgement. Its pairs are kept.
- ``kept_rows`` implements another reading, which masks responses instead of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from verl_gsd import dial
from verl_gsd.groups import GroupStats, Labels, float_rows, group_stats, require_finite, require_rows

#: Maximum number of pairs in a block of several groups. A float64 per pair is then 2 MiB, and so is one group of 512.
BLOCK_PAIRS = 1 << 18


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
    """A_i = (1/G) sum_j M_ij (R_i - R_j) / (sigma + eps)^alpha, one number per response. For alpha > 1, see ``dial``.

    Args:
        rewards, index, alpha, ddof, eps, mask: as in ``dial.dial_advantage``.
        scores: (N,), the judge's scores; NaN for a failed judgement.
        delta: the gap from which a pair counts; -inf keeps every pair.
        signed: whether the gap is the better response's score minus the worse one's. If False, it is the absolute
            difference.

    Returns:
        (N,) in the rewards' dtype, float32 at least. The advantages of a group sum to zero. They are 0 in unanimous
        groups, groups of one, rows of no group, and rows whose pairs are all masked.

    Raises:
        ValueError: a setting is out of range, lengths differ, a score that counts is infinite, or
            ``groups.group_stats`` rejects the batch; the message names the row.
    """
    rewards = float_rows(rewards, "rewards")
    stats = group_stats(rewards.double(), index, mask)
    centred = rectified(rewards, scores, stats, delta=delta, signed=signed)
    scale = dial.reward_scale(rewards, stats)
    return dial.divide(centred, stats, alpha=alpha, ddof=ddof, eps=eps, scale=scale)


def rectified(
    rewards: torch.Tensor,
    scores: torch.Tensor,
    stats: GroupStats,
    *,
    delta: float,
    signed: bool = True,
    drop_rows: torch.Tensor | None = None,
    keep_rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """(1/G) sum_j M_ij (R_i - R_j), which replaces R_i - mean R: (N,) in the rewards' dtype.

    Args:
        drop_rows, keep_rows: see ``Pairs.kept``.
    """
    centred = torch.zeros(len(rewards), dtype=torch.float64, device=rewards.device)
    for pairs in pairs_by_size(rewards, scores, stats):
        kept = pairs.kept(delta, signed=signed, drop_rows=drop_rows, keep_rows=keep_rows)
        centred[pairs.row] = pairs.centred(kept)
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
    """The mask on responses: keep a row if its gaps to the rows with another reward reach ``delta``.

    ``by`` selects whether the minimum, the mean or the maximum of these gaps must reach it. A row without a known gap
    is kept. The caller computes mean and sigma over the kept rows, so a group without any row of one class has no
    signal.

    Returns:
        (N,) bool; False in rows of no group.

    Raises:
        ValueError: ``delta`` is NaN.
    """
    _require_delta(delta)
    keep = stats.group >= 0
    for pairs in pairs_by_size(rewards, scores, stats):
        keep[pairs.row] = pairs.kept_rows(delta, by=by, signed=signed)
    return keep


@dataclass(frozen=True)
class Pairs:
    """The ordered pairs of rows within each of g groups, which all have the size k. Numbers are float64.

    Attributes:
        row: (g, k) int64, the rows' numbers in the batch.
        difference: (g, k, k), R_i - R_j.
        gap: (g, k, k), the better response's score minus the worse one's. It is NaN if a score is NaN, and otherwise 0
            if the rewards are equal.
    """

    row: torch.Tensor
    difference: torch.Tensor
    gap: torch.Tensor

    @cached_property
    def unequal(self) -> torch.Tensor:
        """(g, k, k) bool: pairs of unequal rewards."""
        return self.difference != 0

    @cached_property
    def judged(self) -> torch.Tensor:
        """(g, k, k) bool: pairs of unequal rewards with two scores."""
        return self.unequal & ~self.gap.isnan()

    def centred(self, kept: torch.Tensor) -> torch.Tensor:
        """(g, k): (1/k) sum_j (R_i - R_j) over the pairs in ``kept``, (g, k, k) bool."""
        return (self.difference * kept).sum(dim=-1) / self.row.shape[1]

    def among(self, rows: torch.Tensor) -> torch.Tensor:
        """(g, k, k) bool: pairs of unequal rewards whose two rows are both in ``rows``, (N,) bool."""
        selected = rows[self.row]
        if selected.all():  # as in every group without a demonstration
            return self.unequal
        return self.unequal & selected.unsqueeze(2) & selected.unsqueeze(1)

    def kept(
        self,
        delta: float,
        *,
        signed: bool = True,
        drop_rows: torch.Tensor | None = None,
        keep_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(g, k, k) bool, symmetric: pairs of unequal rewards whose gap reaches ``delta`` or is NaN.

        Args:
            drop_rows: (N,) bool, rows of the batch whose pairs are dropped.
            keep_rows: (N,) bool, rows whose pairs are always kept; takes precedence over ``drop_rows``.

        Raises:
            ValueError: ``delta`` is NaN.
        """
        _require_delta(delta)
        gap = self.gap if signed else self.gap.abs()
        kept = (gap < delta).logical_not_()  # a NaN is not below delta
        if drop_rows is not None and (drop := drop_rows[self.row]).any():
            kept &= ~_either(drop)
        if keep_rows is not None and (keep := keep_rows[self.row]).any():
            kept |= _either(keep)
        kept &= self.unequal
        return kept

    def kept_rows(self, delta: float, *, by: Literal["min", "mean", "max"], signed: bool = True) -> torch.Tensor:
        """(g, k) bool: the mask on responses, see the function ``kept_rows``."""
        gap = self.gap if signed else self.gap.abs()
        if by == "mean":
            # The gap of a pair without two scores is NaN, and that of a pair of equal rewards 0. Neither adds anything.
            row_gap = gap.nansum(dim=-1) / self.judged.sum(dim=-1).clamp(min=1)
        elif by == "min":
            row_gap = gap.where(self.judged, math.inf).amin(dim=-1)
        else:
            row_gap = gap.where(self.judged, -math.inf).amax(dim=-1)
        return (row_gap >= delta) | ~any_pair(self.judged)


def any_pair(pairs: torch.Tensor) -> torch.Tensor:
    """(g, k) bool: whether any pair of a row is in ``pairs``, (g, k, k) bool."""
    return (
        pairs.view(torch.uint8).amax(dim=-1).bool()
    )  # 20 times as fast as torch's any(dim=-1), which is not vectorized


def pairs_by_size(rewards: torch.Tensor, scores: torch.Tensor, stats: GroupStats) -> Iterator[Pairs]:
    """The pairs of all groups of two or more rows, in blocks of groups of equal size.

    A block has at most ``BLOCK_PAIRS`` pairs, or one group. Use each block before taking the next one: then the memory
    does not grow with the number of groups, and the block stays in the processor's cache.

    Raises:
        ValueError: lengths differ, or a score that counts is infinite.
    """
    scores = _checked(scores, rewards, stats)
    for row in rows_by_size(stats):
        reward, score = rewards[row].double(), scores[row].double()
        difference = reward.unsqueeze(2) - reward.unsqueeze(1)
        yield Pairs(row, difference, difference.sign().mul_(score.unsqueeze(2) - score.unsqueeze(1)))


def judged_gaps(rewards: torch.Tensor, scores: torch.Tensor, stats: GroupStats) -> Iterator[np.ndarray]:
    """The gaps of all pairs of unequal rewards with two scores, each pair once, in the blocks of ``pairs_by_size``.

    Each array has one dimension and is float64. The rows of a group are sorted by their rewards, so that the better
    response of a pair is the later one. This is several times as fast as selecting the gaps of ``pairs_by_size``.

    Raises:
        ValueError: as for ``pairs_by_size``.
    """
    scores = _checked(scores, rewards, stats)
    of_size: dict[int, np.ndarray] = {}
    for row in rows_by_size(stats):
        reward, score = rewards[row].double().cpu().numpy(), scores[row].double().cpu().numpy()
        is_unjudged = np.isnan(score)
        order = np.lexsort((reward, is_unjudged), axis=1)  # rows without a score last, the others by reward
        reward, score = np.take_along_axis(reward, order, axis=1), np.take_along_axis(score, order, axis=1)
        k = row.shape[1]
        # Flat positions (i, j) with j < i, by i: the pairs of a group's first n rows are the first n (n - 1) / 2.
        if k not in of_size:
            of_size[k] = np.flatnonzero(np.tri(k, k=-1))
        pairs = of_size[k]
        n_judged = k - is_unjudged.sum(axis=1, keepdims=True)
        wanted = np.arange(len(pairs)) < n_judged * (n_judged - 1) // 2
        if (reward[:, 1:] == reward[:, :-1]).any():
            wanted &= np.take(_differences(reward), pairs, axis=1) > 0
        yield np.take(_differences(score), pairs, axis=1)[wanted]


def rows_by_size(stats: GroupStats) -> Iterator[torch.Tensor]:
    """The rows of all groups of two or more, (g, k) int64, in the blocks of ``pairs_by_size``."""
    size = stats.per_row(stats.size)
    for k in stats.size.unique().tolist():
        if k >= 2:
            rows = torch.nonzero((size == k) & (stats.group >= 0)).squeeze(1)
            by_group = rows[torch.argsort(stats.group[rows], stable=True)].view(-1, k)
            yield from by_group.split(max(1, BLOCK_PAIRS // k**2))


def _checked(scores: torch.Tensor, rewards: torch.Tensor, stats: GroupStats) -> torch.Tensor:
    scores = float_rows(scores, "scores").to(rewards.device)
    require_rows(len(rewards), scores=scores)
    require_finite(scores.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), "scores", where=stats.group >= 0)
    return scores


def _differences(values: np.ndarray) -> np.ndarray:
    """(g, k * k): x_i - x_j for each pair of the k ``values`` (g, k) of a group."""
    return (values[:, :, None] - values[:, None, :]).reshape(len(values), -1)


def _either(selected: torch.Tensor) -> torch.Tensor:
    """(g, k, k) bool: pairs with at least one row in ``selected``, (g, k) bool."""
    return selected.unsqueeze(2) | selected.unsqueeze(1)


def _require_delta(delta: float) -> None:
    if math.isnan(delta):
        raise ValueError(
            "delta=nan: not a number. Set it to a number on the judge's scale, or to -inf to keep every pair."
        )
