"""Measures how well a judge's scores agree with the verifier: AUC, overall and within groups, and histograms.

AUC is the probability that a right response scores higher than a wrong one; ties count half. Training compares only
responses to the same prompt. A judge that merely tells easy prompts from hard ones has a high overall AUC, but 1/2
within groups; for training, only the AUC within groups matters. Failed judgements (scores of NaN) are left out.
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
    """An AUC (area under the ROC curve) in [0, 1] with its 95% interval.

    Attributes:
        value: NaN if there are no pairs.
        low, high: percentiles of a bootstrap over groups (1000 replicates, fixed seed). Groups are resampled because
            responses to one prompt are not independent. NaN with fewer than two groups. With few groups, or an AUC near
            0 or 1, the interval is too narrow.
        pairs: number of pairs of a right and a wrong response, both with a score.
    """

    value: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Histogram:
    """The scores of the right, or of the wrong, responses.

    Attributes:
        counts: (11,) int64, numbers of scores that round to 0, 1, ..., 10. Scores below 0 or above 10 count as 0 or 10.
        rows: number of responses, including those whose judgement failed.
        failed: number of failed judgements.
    """

    counts: np.ndarray
    rows: int
    failed: int

    @property
    def failed_share(self) -> float:
        """Share of the responses whose judgement failed; NaN if there are no responses."""
        return self.failed / self.rows if self.rows else float("nan")


def auc(scores: np.ndarray, correct: np.ndarray) -> float:
    """The probability that a right response scores higher than a wrong one, ties half. Rows with NaN are left out.

    Args:
        scores: (N,) float.
        correct: (N,) bool.

    Returns:
        A number in [0, 1]; NaN if there is no right or no wrong response.

    Raises:
        ValueError: the lengths differ, ``correct`` is not bool, or a score is infinite (the message names the row).
    """
    scores, correct = _scored_rows(scores, correct)
    rank = np.unique(scores, return_inverse=True)[1]
    return _auc(rank, correct.astype(float), (~correct).astype(float))


def auc_with_interval(scores: np.ndarray, correct: np.ndarray, group: Labels) -> Area:
    """``auc`` over all pairs, including pairs across groups, with a bootstrap interval over groups.

    Raises:
        ValueError: see ``within_group_auc``.
    """
    group_of_row = _scored_groups(scores, correct, group)
    scores, right = _scored_rows(scores, correct)
    rank = np.unique(scores, return_inverse=True)[1]

    def weighted_auc(weight: np.ndarray) -> float:
        return _auc(rank, weight[group_of_row] * right, weight[group_of_row] * ~right)

    return _bootstrap(weighted_auc, group_of_row, int(right.sum()) * int((~right).sum()))


def within_group_auc(scores: np.ndarray, correct: np.ndarray, group: Labels) -> Area:
    """``auc`` over the pairs within groups, with equal weight for every pair. Training compares these pairs.

    Args:
        group: N labels; rows with equal labels form one group.

    Raises:
        ValueError: see ``auc``; or there are no rows, or ``groups.group_numbers`` rejects the labels.
    """
    group_of_row = _scored_groups(scores, correct, group)
    scores, right = _scored_rows(scores, correct)
    # One bin per distinct score of each group, ordered by group, then by score.
    rank = np.unique(scores, return_inverse=True)[1]
    n_ranks = int(rank.max(initial=0)) + 1
    bins, bin_of_row = np.unique(group_of_row * n_ranks + rank, return_inverse=True)
    group_of_bin = bins // n_ranks
    n_right, n_wrong = (np.bincount(bin_of_row, is_class, len(bins)) for is_class in (right, ~right))
    n_groups = int(group_of_row.max(initial=-1)) + 1
    rights, wrongs = (np.bincount(group_of_bin, counts, n_groups) for counts in (n_right, n_wrong))
    below = np.cumsum(n_wrong) - n_wrong - (np.cumsum(wrongs) - wrongs)[group_of_bin]
    wins, pairs = np.bincount(group_of_bin, n_right * (below + n_wrong / 2), n_groups), rights * wrongs

    def weighted_auc(weight: np.ndarray) -> float:
        total = weight @ pairs
        return float(weight @ wins / total) if total else float("nan")

    return _bootstrap(weighted_auc, group_of_row, int(pairs.sum()))


def histograms(scores: np.ndarray, correct: np.ndarray) -> dict[str, Histogram]:
    """Histograms of the scores on the scale of 0 to 10, as {"right": ..., "wrong": ...}.

    Raises:
        ValueError: see ``auc``.
    """
    _scored_rows(scores, correct)
    by_class = {}
    for name, is_class in (("right", correct), ("wrong", ~correct)):
        class_scores = scores[is_class]
        valid = class_scores[~np.isnan(class_scores)]
        bins = np.clip(np.rint(valid), LOWEST, HIGHEST).astype(np.int64) - LOWEST
        counts = np.bincount(bins, minlength=HIGHEST - LOWEST + 1)
        by_class[name] = Histogram(counts, len(class_scores), len(class_scores) - len(valid))
    return by_class


def _scored_rows(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays without the rows whose score is NaN. Raises a ValueError if they are invalid."""
    if scores.ndim != 1 or correct.shape != scores.shape or correct.dtype != np.bool_:
        raise ValueError(
            f"scores has shape {scores.shape}, correct has shape {correct.shape} and dtype {correct.dtype}. Use one "
            "score and one bool per row"
        )
    if np.isinf(scores).any():
        row = int(np.flatnonzero(np.isinf(scores))[0])
        raise ValueError(f"scores[{row}] is {scores[row]}. Use a finite number, or NaN for a failed judgement")
    is_scored = ~np.isnan(scores)
    return scores[is_scored], correct[is_scored]


def _scored_groups(scores: np.ndarray, correct: np.ndarray, group: Labels) -> np.ndarray:
    """The group number (0, 1, ... without gaps) of each row that has a score."""
    _scored_rows(scores, correct)
    numbers = group_numbers(group, len(scores)).numpy()[~np.isnan(scores)]
    return np.unique(numbers, return_inverse=True)[1]


def _auc(rank: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> float:
    """The AUC of rows with ranks 0, 1, ... that count ``right`` times as right and ``wrong`` times as wrong."""
    rights, wrongs = np.bincount(rank, right), np.bincount(rank, wrong)
    pairs = rights.sum() * wrongs.sum()
    return float(rights @ (np.cumsum(wrongs) - wrongs / 2) / pairs) if pairs else float("nan")


def _bootstrap(weighted_auc: Callable[[np.ndarray], float], group_of_row: np.ndarray, pairs: int) -> Area:
    """The AUC with its interval. ``weighted_auc`` maps one weight per group to an AUC."""
    n_groups = int(group_of_row.max(initial=-1)) + 1
    value = weighted_auc(np.ones(n_groups))
    if n_groups < 2 or not pairs:
        return Area(value, float("nan"), float("nan"), pairs)
    rng = np.random.default_rng(0)
    replicates = [
        weighted_auc(np.bincount(rng.integers(n_groups, size=n_groups), minlength=n_groups)) for _ in range(_REPLICATES)
    ]
    low, high = (float(np.nanpercentile(replicates, percent)) for percent in (2.5, 97.5))
    return Area(value, low, high, pairs)
