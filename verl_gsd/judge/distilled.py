"""Distils an expensive judge's cached judgements into a linear head on a local language model's hidden states.

arXiv 2512.06337 asks whether a light regression model can replace its judge. This is the simplest such model: ridge
regression in closed form on standardised features (encoder.py). Cross-validation over folds of problems chooses the
penalty. The agreement with the judge is measured on held-out problems.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from verl_gsd.judge.agreement import measure_agreement
from verl_gsd.judge.encoder import Encoder
from verl_gsd.judge.head import HEAD, DistilledJudge, Head, load_distilled
from verl_gsd.judge.same_problem import problem_labels
from verl_gsd.judge.scorer import HIGHEST, LOWEST, JudgementError, Question

MIN_JUDGEMENTS, MIN_PROBLEMS = 50, 5
#: Candidate ridge penalties per row, for weights of standardised features.
PENALTIES = 10.0 ** np.arange(-4, 4)

_HELD_OUT, _FOLDS = 0.2, 5


def fit(
    judgements: Sequence[tuple[Question, float]],
    encoder: Encoder,
    judge: str,
    on_row: Callable[[int], None] = lambda done: None,
) -> DistilledJudge:
    """Fit a head on four fifths of the problems and measure its agreement on the others. Deterministic.

    Texts that differ only around the problem, as by a suffix, are one problem (``same_problem.py``).

    Args:
        judgements: questions and scores on the scale of 0 to 10, all by one judge.
        judge: that judge's identity.
        on_row: called with the number of judgements encoded so far.

    Raises:
        ValueError: there are too few judgements or problems (the message gives the numbers), a score is off the scale,
            or the encoder's hidden states are not finite.
    """
    scores = np.array([score for _, score in judgements], float)
    problem = problem_labels([question.problem for question, _ in judgements])
    n_problems = len(np.unique(problem))
    if len(scores) < MIN_JUDGEMENTS or n_problems < MIN_PROBLEMS:
        raise ValueError(
            f"{len(scores)} judgements on {n_problems} problems are too few. At least {MIN_JUDGEMENTS} judgements on "
            f"{MIN_PROBLEMS} problems are needed. Let the judge score more responses: a run with a judge, and "
            "verl-gsd judge score FILE --cache PATH, both fill the cache"
        )
    if len(off := np.flatnonzero(~((scores >= LOWEST) & (scores <= HIGHEST)))):
        raise ValueError(f"judgement {off[0]} has score {scores[off[0]]}. Use scores from {LOWEST} to {HIGHEST}")
    features = np.empty((len(scores), encoder.width))
    for row, (question, _) in enumerate(judgements):
        features[row] = encoder.features(question)
        if not np.isfinite(features[row]).all():
            raise ValueError(f"{encoder.folder}: the model's hidden states for judgement {row} are not finite")
        on_row(row + 1)
    order = np.random.default_rng(0).permutation(np.unique(problem))
    held_out = np.isin(problem, order[: max(1, round(_HELD_OUT * len(order)))])
    x, y = features[~held_out], scores[~held_out]
    penalty = _choose_penalty(x, y, problem[~held_out], order)
    mean, scale, weights = _ridge(x, y, PENALTIES[[penalty]])
    head = Head(mean, scale, weights[:, 0], float(y.mean()), whole=bool((scores == np.rint(scores)).all()))
    agreement = measure_agreement(scores[held_out], head.predict(features[held_out]), problem[held_out], len(y))
    return DistilledJudge(judge, encoder.folder, encoder.identity, head, float(PENALTIES[penalty]), agreement)


def _choose_penalty(x: np.ndarray, y: np.ndarray, problem: np.ndarray, order: np.ndarray) -> int:
    """The index in PENALTIES with the smallest squared error in cross-validation over folds of problems."""
    fold_of_problem = {int(label): number % _FOLDS for number, label in enumerate(order[np.isin(order, problem)])}
    fold_of_row = np.array([fold_of_problem[int(label)] for label in problem])
    error = np.zeros(len(PENALTIES))
    for fold in np.unique(fold_of_row):
        train, test = fold_of_row != fold, fold_of_row == fold
        mean, scale, weights = _ridge(x[train], y[train], PENALTIES)
        error += ((y[test, None] - y[train].mean() - (x[test] - mean) / scale @ weights) ** 2).sum(axis=0)
    return int(error.argmin())


def _ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (width,) and scale (width,) of the features, and weights (width, n_penalties).

    For each penalty c, the weights w minimise mean over rows of (y - mean y - z w)^2, plus c |w|^2. z are the
    standardised features.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)
    z = (x - mean) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    moment = vectors.T @ (z.T @ (y - y.mean())) / len(z)
    return mean, scale, vectors @ (moment[:, None] / (values.clip(min=0)[:, None] + penalties))


class DistilledScorer:
    """A ``Scorer`` that runs on this machine.

    It scores one response at a time, so that a score does not depend on other questions. It runs in a thread of its
    own, so that it does not block the event loop.

    Args:
        folder: a folder written by ``DistilledJudge.save``.
        device: see ``Encoder``.

    Raises:
        ValueError: the folder or its encoder cannot be read, or the head was fitted on another encoder.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        distilled = load_distilled(folder)
        self._head, self._encoder = distilled.head, Encoder(distilled.encoder, device)
        if self._encoder.identity != distilled.encoder_identity or self._encoder.width != len(self._head.weight):
            raise ValueError(
                f"{distilled.encoder}: this is not the encoder that {folder / HEAD} was fitted on. Run verl-gsd judge "
                "distill again"
            )
        self.identity = distilled.identity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="distilled-judge")

    async def score(self, question: Question) -> float:
        """A number in [0, 10].

        Raises:
            JudgementError: the encoder failed (server_error), or its hidden states are not numbers (unreadable).
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, question)

    async def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score(self, question: Question) -> float:
        try:
            features = self._encoder.features(question)
        except RuntimeError as error:  # raised by torch, mostly when memory runs out
            raise JudgementError("server_error", f"the encoder failed: {type(error).__name__}") from error
        score = float(self._head.predict(features[None])[0])
        if math.isnan(score):
            raise JudgementError("unreadable", "the encoder's hidden states are not numbers")
        return score
