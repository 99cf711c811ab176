"""Scores a list of questions outside a training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np

from verl_gsd.judge.judge import Judge
from verl_gsd.judge.scorer import Question

_POLL_S = 0.02


def score_all(
    judge: Judge, questions: Iterable[Question], *, window: int, on_scored: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """One score per question, (N,) float64, NaN where the judgement failed.

    Args:
        window: maximum number of questions that the judge has at once. A multiple of its concurrency keeps it busy.
        on_scored: called with the number of questions that are scored or have failed.
    """
    rows = enumerate(questions)
    waiting: list[int] = []
    scores: dict[int, float] = {}
    while True:
        for row, question in islice(rows, window - len(waiting)):
            judge.ask(str(row), [question])
            waiting.append(row)
        if not waiting:
            return np.array([scores[row] for row in range(len(scores))], float)
        done = [row for row in waiting if judge.is_done(str(row))]
        scores |= {row: float(judge.take(str(row))[0]) for row in done}
        waiting = [row for row in waiting if row not in scores]
        on_scored(len(scores))
        if not done:
            time.sleep(_POLL_S)
