"""How far a distilled judge agrees with the judge it was distilled from, on problems it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

#: The gap at which ``Agreement.mask`` compares decisions: the middle of the paper's three.
DELTA = 3.0


@dataclass(frozen=True)
class Agreement:
    """Figures on held-out judgements; NaN where there are too few to say.

    Attributes:
        n_train, n_held_out: judgements; no problem has some in both.
        pairs: pairs of held-out responses to one problem.
        r2: 1 - sum (score - predicted)^2 / sum (score - mean score)^2; negative where the mean would do better.
        spearman: rank correlation of scores and predictions.
        order: share of the pairs with different scores that are predicted in the judge's order; equal predictions count
            half.
        mask: share of the pairs whose decision is the same: one response at least DELTA above the other, which of
            them, or neither.
        judge_apart, head_apart: share of the pairs that the judge, that the head sets DELTA or more apart. A head that
            shrinks its predictions sets few apart, and has a high ``mask`` where the judge does the same.
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
        """Sentences for a user."""
        said = [f"{self.n_train} judgements to learn from, {self.n_held_out} held out, on other problems."]
        if np.isnan(self.r2):
            said.append("R^2 and rank correlation: nothing to say, the held-out scores are all equal.")
        elif np.isnan(self.spearman):
            said.append(f"R^2 {self.r2:.3f}. The predictions are all equal: the head has learned nothing to order by.")
        else:
            said.append(f"R^2 {self.r2:.3f}, rank correlation {self.spearman:.3f}.")
        if not self.pairs:
            return [*said, "No two held-out responses are to one problem: nothing to say of the mask."]
        if np.isnan(self.order):
            said.append(f"Order: nothing to say, in none of the {self.pairs} pairs on one problem do scores differ.")
        else:
            said.append(f"Pairs on one problem in the judge's order: {self.order:.1%}; a coin has 50%.")
        return [
            *said,
            f"Decision at delta={DELTA:g} the same: {self.mask:.1%} of {self.pairs} pairs; the judge sets "
            f"{self.judge_apart:.1%} apart, the head {self.head_apart:.1%}.",
        ]


def agreement(scores: np.ndarray, predicted: np.ndarray, problem: Sequence[int], n_train: int) -> Agreement:
    """Compare a head's predictions with the judge's scores.

    Args:
        scores, predicted: (N,), held-out.
        problem: N labels.
    """
    first, second = _pairs(np.asarray(problem))
    by_judge, by_head = (values[first] - values[second] for values in (scores, predicted))
    differ = by_judge != 0
    judge_says, head_says = (np.sign(gap) * (np.abs(gap) >= DELTA) for gap in (by_judge, by_head))
    scores_vary, predictions_vary = np.ptp(scores) > 0, np.ptp(predicted) > 0
    return Agreement(
        n_train,
        len(scores),
        len(first),
        1 - float(((scores - predicted) ** 2).sum() / ((scores - scores.mean()) ** 2).sum()) if scores_vary else np.nan,
        float(np.corrcoef(rankdata(scores), rankdata(predicted))[0, 1]) if scores_vary and predictions_vary else np.nan,
        _share((1 + np.sign(by_judge) * np.sign(by_head))[differ] / 2),
        _share(judge_says == head_says),
        _share(judge_says != 0),
        _share(head_says != 0),
    )


def _pairs(problem: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n_pairs,) and (n_pairs,): each two rows of one problem, once."""
    rows = [np.flatnonzero(problem == label) for label in np.unique(problem)]
    places = [np.triu_indices(len(mine), 1) for mine in rows]
    none: np.ndarray = np.zeros(0, np.int64)
    first = np.concatenate([none, *(mine[place[0]] for mine, place in zip(rows, places, strict=True))])
    second = np.concatenate([none, *(mine[place[1]] for mine, place in zip(rows, places, strict=True))])
    return first, second


def _share(chosen: np.ndarray) -> float:
    return float(chosen.mean()) if len(chosen) else float("nan")
