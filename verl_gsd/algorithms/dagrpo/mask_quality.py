"""How much of the signal in a set of responses remains after DaGRPO's mask, given a judge's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verl_gsd.algorithms.dagrpo.pairs import pairs_by_size, rectified_advantage
from verl_gsd.groups import Labels, group_numbers, group_stats

DELTAS = (-math.inf, 0.0, 1.0, 3.0, 5.0)


@dataclass(frozen=True)
class MaskAtDelta:
    """What remains after the mask at one delta. Shares are in [0, 1], and NaN if their denominator is 0.

    Attributes:
        delta: the gap from which a pair counts.
        kept: share of kept pairs among the pairs of a right and a wrong response of one group. Pairs with a failed
            judgement are kept.
        right_silenced, wrong_silenced: share of the right rows, and of the wrong rows, of mixed groups that lost all
            their pairs.
        groups_silenced: share of mixed groups that lost all their pairs.
        signal: mean over mixed groups of sum_i A_i (2 correct_i - 1), relative to delta = -inf. A_i is the advantage
            in a run with DaGRPO's defaults (divided by the group's standard deviation). The sum is that of |A_i|: it
            measures how strongly right responses are reinforced and wrong ones discouraged.
        alignment: mean, over mixed groups that are not silenced, of the cosine between A and the A of delta = -inf.
            Below 1, the judge has moved weight between responses of one class. A share 1 - alignment^2 of the squared
            norm of A is then orthogonal to GRPO's direction.
    """

    delta: float
    kept: float
    right_silenced: float
    wrong_silenced: float
    groups_silenced: float
    signal: float
    alignment: float


@dataclass(frozen=True)
class MaskReport:
    """What the mask does to one set of groups.

    Attributes:
        mixed_groups: groups with a right and a wrong response.
        pairs: number of pairs of a right and a wrong response of one group.
        unknown: share of the pairs with a failed judgement. The mask keeps them.
        contradicted, tied: share of the other pairs in which the judge prefers the wrong response, and in which it
            scores both alike.
        by_delta: one entry per delta.
    """

    mixed_groups: int
    pairs: int
    unknown: float
    contradicted: float
    tied: float
    by_delta: tuple[MaskAtDelta, ...]


def mask_report(scores: np.ndarray, correct: np.ndarray, group: Labels, deltas: Sequence[float] = DELTAS) -> MaskReport:
    """What DaGRPO's mask does, given these scores.

    Args:
        scores: (N,) float, NaN where the judgement failed.
        correct: (N,) bool.
        group: N labels.

    Raises:
        ValueError: there are no rows, lengths differ, a score is infinite, or a delta is NaN; the message names it.
    """
    rewards, index = torch.from_numpy(correct.astype(float)), group_numbers(group, len(correct))
    blocks = list(pairs_by_size(rewards, torch.from_numpy(scores.astype(float)), group_stats(rewards, index)))
    gaps = [pairs.gap[pairs.difference > 0] for pairs in blocks]
    gap = torch.cat([*gaps, torch.zeros(0, dtype=torch.float64)])
    judged_gap = gap[~gap.isnan()]
    kept = [
        sum(int((pairs.kept(delta) & (pairs.difference > 0)).sum()) for pairs in blocks) / max(len(gap), 1)
        for delta in deltas
    ]
    whole = _advantages(scores, correct, index, -math.inf)
    mixed_groups = len(np.unique(index.numpy()[whole != 0]))
    masks = tuple(
        _mask(_advantages(scores, correct, index, delta), whole, correct, index.numpy(), delta, share)
        for delta, share in zip(deltas, kept, strict=True)
    )
    unknown = _ratio(len(gap) - len(judged_gap), len(gap))
    contradicted, tied = (_ratio(int(chosen.sum()), len(judged_gap)) for chosen in (judged_gap < 0, judged_gap == 0))
    return MaskReport(mixed_groups, len(gap), unknown, contradicted, tied, masks)


def _advantages(scores: np.ndarray, correct: np.ndarray, index: torch.Tensor, delta: float) -> np.ndarray:
    rewards, judged = torch.from_numpy(correct.astype(float)), torch.from_numpy(scores.astype(float))
    return rectified_advantage(rewards, judged, index, delta=delta).numpy()


def _mask(
    advantage: np.ndarray, whole: np.ndarray, correct: np.ndarray, group: np.ndarray, delta: float, kept: float
) -> MaskAtDelta:
    """Figures of one delta. All pairs of a row have the same sign, so its advantage is 0 only if all are masked."""
    mixed, silent = whole != 0, advantage == 0
    right, wrong = (
        _ratio(int((silent & mixed & chosen).sum()), int((mixed & chosen).sum())) for chosen in (correct, ~correct)
    )
    left, before = (np.bincount(group, weights=values**2) for values in (advantage, whole))
    dot = np.bincount(group, weights=advantage * whole)
    cosine = dot[left > 0] / np.sqrt(left[left > 0] * before[left > 0])
    return MaskAtDelta(
        delta,
        kept if mixed.any() else math.nan,
        right,
        wrong,
        groups_silenced=_ratio(int(((left == 0) & (before > 0)).sum()), int((before > 0).sum())),
        signal=_ratio(float(np.abs(advantage).sum()), float(np.abs(whole).sum())),
        alignment=float(cosine.mean()) if len(cosine) else math.nan,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
