"""Measures how well a distilled judge agrees with the original judge, on problems it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

#: The gap at which ``Agreement.mask`` compares decisions: the middle one of the paper's three deltas.
DELTA = 3.0


@dataclass(frozen=True)
class Agreement:
    """Measures on held-out judgements; NaN where there are too few data.

    Attributes:
        n_train, n_held_out: numbers of judgements. No problem is in both sets.
        pairs: number of pairs of held-out responses to one problem.
        r2: 1 - sum (score - predicted)^2 / sum (score - mean score)^2; negative if the mean would predict better.
        spearman: rank correlation of scores and predictions.
        order: share of the pairs with different scores whose predictions are in the judge's order. Equal predictions
            count half.
        mask: share of the pairs with the same decision by judge and head. The decision is whether one response is at
            least DELTA above the other, and which one.
        judge_apart, head_apart: share of the pairs that the judge (the head) scores at least DELTA apart. A head with
            shrunken predictions has few such pairs. It still has a high ``mask`` if the judge has few as well.
    """

    n_train: int
    n_held_out: int
    pairs: int
    r2: float
    spearman: float
    order: float
    mask: float
    judge_apart: float
    head_apart: float

    def describe(self) -> list[str]:
        """A description in sentences."""
        sentences = [
            f"The head was fitted on {self.n_train} judgements and evaluated on {self.n_held_out} held-out ones, on "
            "other problems."
        ]
        if np.isnan(self.r2):
            sentences.append("R^2 and rank correlation are undefined: the held-out scores are all equal.")
        elif np.isnan(self.spearman):
            sentences.append(f"R^2 {self.r2:.3f}. The predictions are all equal: the head has learned no order.")
        else:
            sentences.append(f"R^2 {self.r2:.3f}, rank correlation {self.spearman:.3f}.")
        if not self.pairs:
            return [*sentences, "The mask cannot be compared: no two held-out responses belong to one problem."]
        if np.isnan(self.order):
            sentences.append(f"The order is undefined: in all {self.pairs} pairs on one problem the scores are equal.")
        else:
            sentences.append(f"Pairs on one problem in the judge's order: {self.order:.1%} (chance: 50%).")
        return [
            *sentences,
            f"Judge and head make the same decision at delta={DELTA:g} in {self.mask:.1%} of {self.pairs} pairs. The "
            f"judge scores {self.judge_apart:.1%} of the pairs delta or more apart, the head {self.head_apart:.1%}.",
        ]


def measure_agreement(scores: np.ndarray, predicted: np.ndarray, problem: Sequence[int], n_train: int) -> Agreement:
    """Compare a head's predictions with the judge's scores.

    Args:
        scores, predicted: (N,), on held-out problems.
        problem: N labels; rows with equal labels belong to one problem.
        n_train: number of judgements that the head was fitted on.
    """
    first, second = _pairs(np.asarray(problem))
    by_judge, by_head = (values[first] - values[second] for values in (scores, predicted))
    differ = by_judge != 0
    judge_decision, head_decision = (np.sign(gap) * (np.abs(gap) >= DELTA) for gap in (by_judge, by_head))
    scores_vary, predictions_vary = np.ptp(scores) > 0, np.ptp(predicted) > 0
    return Agreement(
        n_train,
        len(scores),
        len(first),
        1 - float(((scores - predicted) ** 2).sum() / ((scores - scores.mean()) ** 2).sum()) if scores_vary else np.nan,
        float(np.corrcoef(rankdata(scores), rankdata(predicted))[0, 1]) if scores_vary and predictions_vary else np.nan,
        _share((1 + np.sign(by_judge) * np.sign(by_head))[differ] / 2),
        _share(judge_decision == head_decision),
        _share(judge_decision != 0),
        _share(head_decision != 0),
    )


def _pairs(problem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All unordered pairs of rows of one problem, as two arrays of row numbers (n_pairs,)."""
    rows_by_problem = [np.flatnonzero(problem == label) for label in np.unique(problem)]
    pairs = [(rows, np.triu_indices(len(rows), 1)) for rows in rows_by_problem]
    empty: np.ndarray = np.zeros(0, np.int64)
    first = np.concatenate([empty, *(rows[indices[0]] for rows, indices in pairs)])
    second = np.concatenate([empty, *(rows[indices[1]] for rows, indices in pairs)])
    return first, second


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
