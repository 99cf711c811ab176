"""How far a judge's scores agree with the verifier's right and wrong: AUC, overall and within groups; histograms.

AUC is the probability that a right response outscores a wrong one, ties counting half. Training compares
responses to one prompt. A judge that merely tells easy prompts from hard ones has a high AUC overall and an AUC of 1/2
within groups, and training depends on the latter. A failed judgement is a score of NaN, which is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verl_gsd.groups import Labels, group_numbers
from verl_gsd.judge.scorer import HIGHEST, LOWEST

_REPLICATES = 1000


@dataclass(frozen=True)
class Area:
    """An AUC in [0, 1] with its 95% interval.

    Attributes:
        value: NaN where there are no pairs.
        low, high: percentiles of the AUC when groups are drawn anew with replacement (1000 times, a fixed seed),
            because responses to one prompt are not independent; NaN with fewer than two groups. With few groups, or an
            AUC near 0 or 1, the interval is too narrow.
        pairs: of a right and a wrong response, both with a score.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Histogram:
    """One class's scores.

    Attributes:
        counts: (11,) int64, scores that round to 0, 1, ..., 10; a score beyond an end is counted at that end.
        rows: responses of the class, those whose judgement failed included.
        failed: how many of them failed.
    """

    counts: np.ndarray
    rows: int
    failed: int

    @property
    def failed_share(self) -> float:
        """Share of the class whose judgement failed; NaN for a class without a response."""
        return self.failed / self.rows if self.rows else float("nan")


def auc(scores: np.ndarray, correct: np.ndarray) -> float:
    """The probability that a right response outscores a wrong one, ties half; rows with a score of NaN are left out.

    Args:
        scores: (N,) float.
        correct: (N,) bool.

    Returns:
        A number in [0, 1]; NaN where a class is empty.

    Raises:
        ValueError: lengths differ, ``correct`` is not bool, or a score is infinite; the message names the row.
    """
    scores, correct = _scored(scores, correct)
    rank = np.unique(scores, return_inverse=True)[1]
    return _area(rank, correct.astype(float), (~correct).astype(float))


def auc_with_interval(scores: np.ndarray, correct: np.ndarray, group: Labels) -> Area:
    """``auc`` over all pairs, those of different groups included, with an interval from drawing groups anew.

    Raises:
        ValueError: as ``within_group_auc``.
    """
    member = _members(scores, correct, group)
    scores, right = _scored(scores, correct)
    rank = np.unique(scores, return_inverse=True)[1]

    def area(weight: np.ndarray) -> float:
        return _area(rank, weight[member] * right, weight[member] * ~right)

    return _interval(area, member, int(right.sum()) * int((~right).sum()))


def within_group_auc(scores: np.ndarray, correct: np.ndarray, group: Labels) -> Area:
    """``auc`` over the pairs within groups, all pairs with equal weight: the pairs that training compares.

    Args:
        group: N labels; rows with equal labels are one group.

    Raises:
        ValueError: as ``auc``, there are no rows, or ``groups.group_numbers`` refuses the labels.
    """
    member = _members(scores, correct, group)
    scores, right = _scored(scores, correct)
    # One bar for each score of each group, in the order of groups and, within them, of scores.
    rank = np.unique(scores, return_inverse=True)[1]
    n_ranks = int(rank.max(initial=0)) + 1
    bars, place = np.unique(member * n_ranks + rank, return_inverse=True)
    of = bars // n_ranks
    n_right, n_wrong = (np.bincount(place, chosen, len(bars)) for chosen in (right, ~right))
    n_groups = int(member.max(initial=-1)) + 1
    rights, wrongs = (np.bincount(of, counts, n_groups) for counts in (n_right, n_wrong))
    below = np.cumsum(n_wrong) - n_wrong - (np.cumsum(wrongs) - wrongs)[of]
    won, pairs = np.bincount(of, n_right * (below + n_wrong / 2), n_groups), rights * wrongs

    def area(weight: np.ndarray) -> float:
        total = weight @ pairs
        return float(weight @ won / total) if total else float("nan")

    return _interval(area, member, int(pairs.sum()))


def histograms(scores: np.ndarray, correct: np.ndarray) -> dict[str, Histogram]:
    """How scores lie on the scale of 0 to 10, as {"right": ..., "wrong": ...}.

    Raises:
        ValueError: as ``auc``.
    """
    _scored(scores, correct)
    found = {}
    for name, chosen in (("right", correct), ("wrong", ~correct)):
        mine = scores[chosen]
        known = mine[~np.isnan(mine)]
        bins = np.clip(np.rint(known), LOWEST, HIGHEST).astype(np.int64) - LOWEST
        counts = np.bincount(bins, minlength=HIGHEST - LOWEST + 1)
        found[name] = Histogram(counts, len(mine), len(mine) - len(known))
    return found


def _scored(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, checked, without the rows whose score is NaN."""
    if scores.ndim != 1 or correct.shape != scores.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"scores has shape {scores.shape}, correct {correct.shape} of {correct.dtype}: write one score and one "
            "bool a row"
        )
    if np.isinf(scores).any():
        row = int(np.flatnonzero(np.isinf(scores))[0])
        raise ValueError(f"scores[{row}] is {scores[row]}: write a finite number, or NaN for a failed judgement")
    known = ~np.isnan(scores)
    return scores[known], correct[known]


def _members(scores: np.ndarray, correct: np.ndarray, group: Labels) -> np.ndarray:
    """The group, numbered 0, 1, ... without a gap, of each row that has a score."""
    _scored(scores, correct)
    member = group_numbers(group, len(scores)).numpy()[~np.isnan(scores)]
    return np.unique(member, return_inverse=True)[1]


def _area(rank: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> float:
    """The AUC of rows with a rank 0, 1, ... each, which count ``right`` and ``wrong`` times."""
    rights, wrongs = np.bincount(rank, right), np.bincount(rank, wrong)
    pairs = rights.sum() * wrongs.sum()
    return float(rights @ (np.cumsum(wrongs) - wrongs / 2) / pairs) if pairs else float("nan")


def _interval(area: Callable[[np.ndarray], float], member: np.ndarray, pairs: int) -> Area:
    """``area`` of every group once, and its spread over groups drawn with replacement."""
    n_groups = int(member.max(initial=-1)) + 1
    value = area(np.ones(n_groups))
    if n_groups < 2 or not pairs:
        return Area(value, float("nan"), float("nan"), pairs)
    rng = np.random.default_rng(0)
    drawn = [area(np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)) for _ in range(_REPLICATES)]
    low, high = (float(np.nanpercentile(drawn, percent)) for percent in (2.5, 97.5))
    return Area(value, low, high, pairs)
