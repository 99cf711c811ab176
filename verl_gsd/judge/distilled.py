"""A cheap judge distilled from a dear one's cached judgements: a linear head on a local language model's states.

The paper asks whether its judge can become a light regression model; this is the plainest one that could. Ridge
regression in closed form, the penalty chosen by folds of problems, on standardised features (encoder.py), and its
agreement measured on problems it has not seen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from verl_gsd.judge.agreement import agreement
from verl_gsd.judge.encoder import Encoder
from verl_gsd.judge.head import HEAD, Distilled, Head, load
from verl_gsd.judge.scorer import HIGHEST, LOWEST, JudgementError, Question

MIN_JUDGEMENTS, MIN_PROBLEMS = 50, 5
#: Ridge penalties, per row, on weights of standardised features.
PENALTIES = 10.0 ** np.arange(-4, 4)

_HELD_OUT, _FOLDS = 0.2, 5


def fit(
    judgements: Sequence[tuple[Question, float]],
    encoder: Encoder,
    judge: str,
    on_row: Callable[[int], None] = lambda done: None,
) -> Distilled:
    """Learn from four fifths of the problems; measure agreement on the others. A function of its arguments alone.

    Args:
        judgements: with scores on the scale of 0 to 10, all by one judge.
        judge: that judge's identity.
        on_row: called with the number of judgements encoded.

    Raises:
        ValueError: there are too few judgements or problems (the message says how many), a score is off the scale, or
            the encoder gives no numbers.
    """
    scores = np.array([score for _, score in judgements], float)
    keys = {question.problem: number for number, (question, _) in enumerate(judgements)}
    problem = np.array([keys[question.problem] for question, _ in judgements], np.int64)
    if len(scores) < MIN_JUDGEMENTS or len(keys) < MIN_PROBLEMS:
        raise ValueError(
            f"{len(scores)} judgements on {len(keys)} problems: {MIN_JUDGEMENTS} on {MIN_PROBLEMS} problems are the "
            "least to learn from and measure on. Let the judge score more responses: a run with a judge and verl-gsd "
            "judge score FILE --cache PATH both fill its cache."
        )
    if len(off := np.flatnonzero(~((scores >= LOWEST) & (scores <= HIGHEST)))):
        raise ValueError(f"judgement {off[0]} has the score {scores[off[0]]}: write scores from {LOWEST} to {HIGHEST}")
    features = np.empty((len(scores), encoder.width))
    for row, (question, _) in enumerate(judgements):
        features[row] = encoder.features(question)
        if not np.isfinite(features[row]).all():
            raise ValueError(f"{encoder.folder}: its states for judgement {row} are no finite numbers")
        on_row(row + 1)
    order = np.random.default_rng(0).permutation(np.unique(problem))
    held_out = np.isin(problem, order[: max(1, round(_HELD_OUT * len(order)))])
    x, y = features[~held_out], scores[~held_out]
    penalty = _choose_penalty(x, y, problem[~held_out], order)
    mean, scale, weights = _ridge(x, y, PENALTIES[[penalty]])
    head = Head(mean, scale, weights[:, 0], float(y.mean()), whole=bool((scores == np.rint(scores)).all()))
    measured = agreement(scores[held_out], head.predict(features[held_out]), problem[held_out], len(y))
    return Distilled(judge, encoder.folder, encoder.identity, head, float(PENALTIES[penalty]), measured)


def _choose_penalty(x: np.ndarray, y: np.ndarray, problem: np.ndarray, order: np.ndarray) -> int:
    """The place in PENALTIES of the least squared error over folds of problems."""
    fold = {int(label): place % _FOLDS for place, label in enumerate(order[np.isin(order, problem)])}
    of = np.array([fold[int(label)] for label in problem])
    error = np.zeros(len(PENALTIES))
    for left_out in np.unique(of):
        seen, other = of != left_out, of == left_out
        mean, scale, weights = _ridge(x[seen], y[seen], PENALTIES)
        error += ((y[other, None] - y[seen].mean() - (x[other] - mean) / scale @ weights) ** 2).sum(axis=0)
    return int(error.argmin())


def _ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardisation (width,), (width,) and the weights (width, n_penalties) that minimise, for each penalty c,
    the mean of (y - mean y - z w)^2 over rows + c |w|^2, z the standardised features."""
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)
    z = (x - mean) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    moment = vectors.T @ (z.T @ (y - y.mean())) / len(z)
    return mean, scale, vectors @ (moment[:, None] / (values.clip(min=0)[:, None] + penalties))


class DistilledScorer:
    """A ``Scorer`` on this machine: one response at a time, in a thread of its own, so that the event loop goes on and
    a score does not depend on what else is asked.

    Args:
        folder: as ``Distilled.save`` wrote it.
        device: as ``Encoder``.

    Raises:
        ValueError: the folder or its encoder cannot be read, or the encoder is not the one of the head.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        distilled = load(folder)
        self._head, self._encoder = distilled.head, Encoder(distilled.encoder, device)
        if self._encoder.identity != distilled.encoder_identity or self._encoder.width != len(self._head.weight):
            raise ValueError(f"{distilled.encoder}: not the encoder that {folder / HEAD} was fitted on. Distil it anew")
        self.identity = distilled.identity
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="distilled-judge")

    async def score(self, question: Question) -> float:
        """A number in [0, 10].

        Raises:
            JudgementError: the encoder failed (server_error) or gave no number (unreadable).
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, question)

    async def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score(self, question: Question) -> float:
        try:
            features = self._encoder.features(question)
        except RuntimeError as error:  # torch's, of memory above all
            raise JudgementError("server_error", f"the encoder failed: {type(error).__name__}") from error
        score = float(self._head.predict(features[None])[0])
        if math.isnan(score):
            raise JudgementError("unreadable", "the encoder's states are no numbers")
        return score
