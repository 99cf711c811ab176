"""Scores responses in the background: submit questions under a name, and collect their scores when they are needed."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import REASONS, JudgementError, Question, Scorer
from verl_gsd.judge.settings import JudgeSettings

_CLOSING_S = 10.0  # maximum time for cancelled calls to end, and then again for the scorer to close


@dataclass(eq=False)
class _Submission:
    """The questions submitted under one name.

    Attributes:
        scores: (k,) float64, NaN where there is no score.
        since: ``time.monotonic()`` of the submission.
        missing: number of questions that are still open.
        answered_at: ``time.monotonic()`` of the last answer; None while a question is open.
        error: an exception of the scorer that is not a JudgementError.
        is_taken: whether the caller has collected the scores.
    """

    scores: np.ndarray
    since: float
    missing: int
    answered_at: float | None = None
    error: Exception | None = None
    is_taken: bool = False


@dataclass(eq=False)
class _OpenQuestion:
    """A question that the scorer is answering, and the (submission, row) pairs that wait for its score."""

    question: Question
    waiting: list[tuple[_Submission, int]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Judge:
    """Calls ``scorer`` from a thread of its own. Equal questions that are open at the same time are scored once.

    All methods must be called from one thread. None of them waits for the scorer, except ``close``.

    Args:
        scorer: runs in the event loop of the judge's thread.
        cache: read before the scorer is called; every new score is stored in it. The caller closes it after the judge.
        concurrency: maximum number of calls in flight, over all names.
        budget_s: seconds after which a name counts as done, even if questions are still open.
    """

    def __init__(
        self,
        scorer: Scorer,
        cache: ScoreCache | None = None,
        *,
        concurrency: int = JudgeSettings.default("concurrency"),
        budget_s: float = JudgeSettings.default("budget_s"),
    ) -> None:
        self._scorer = scorer
        self._cache = cache
        self._budget_s = budget_s
        self._submissions: dict[str, _Submission] = {}
        self._is_closed = False
        # Used only in the event loop.
        self._semaphore = asyncio.Semaphore(concurrency)
        self._open_questions: dict[bytes, _OpenQuestion] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Shared by both threads and guarded by the lock, as are the attributes of every _Submission.
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._cache_writer = ThreadPoolExecutor(1, "judge-cache")  # a write may wait for other processes
        # A daemon thread, so that a crashing trainer does not wait for the judge.
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def ask(self, name: str, questions: Sequence[Question]) -> None:
        """Submit ``questions`` under ``name``. Returns immediately.

        Raises:
            ValueError: the name is in use.
            RuntimeError: the judge is closed.
        """
        if self._is_closed:
            raise RuntimeError("the judge is closed and takes no more questions")
        if name in self._submissions:
            raise ValueError(f"{name}: there are questions under this name already. Call take() first")
        keys = [digest(question.problem, question.reference, question.response) for question in questions]
        now = monotonic()
        submission = _Submission(np.full(len(keys), np.nan), now, len(keys), answered_at=None if keys else now)
        self._submissions[name] = submission
        with self._lock:
            self._counts["responses"] += len(keys)
        self._loop.call_soon_threadsafe(self._start, submission, list(zip(keys, questions, strict=True)))

    def is_done(self, name: str) -> bool:
        """Whether all questions are answered or the budget is used up, so that waiting longer changes nothing.

        Raises:
            KeyError: no questions are submitted under the name, or their scores were already taken.
        """
        submission = self._submissions[name]
        return (
            submission.answered_at is not None
            or submission.error is not None
            or self._is_closed
            or monotonic() - submission.since >= self._budget_s
        )

    def answered_at(self, name: str) -> float | None:
        """``time.monotonic()`` of the last answer (or failure) under the name; None while a question is open."""
        return self._submissions[name].answered_at

    def take(self, name: str) -> np.ndarray:
        """(k,) float64 scores in the order of the questions, NaN where there is none. Frees the name.

        Questions that are still open are cancelled and counted as ``over_budget``.

        Raises:
            KeyError: no questions are submitted under the name, or their scores were already taken.
            Exception: any exception of the scorer that is not a JudgementError, unchanged.
        """
        submission = self._submissions.pop(name)
        with self._lock:
            submission.is_taken = True
            missing = submission.missing
        if missing and not self._is_closed:
            self._loop.call_soon_threadsafe(self._cancel, submission)
        if submission.error is not None:
            raise submission.error
        with self._lock:
            self._counts["over_budget"] += missing
        return submission.scores

    def metrics(self) -> dict[str, float]:
        """Counts and latencies since the last call, by metric name.

        ``judge/responses``: submitted questions. Of these, ``judge/cache_hits`` were in the cache, ``judge/shared``
        waited for the score of an equal question, and ``judge/calls`` were sent to the scorer.
        ``judge/latency/p50`` and ``p95``: seconds per call that returned a score, including its retries but not the
        wait for a free slot. Left out if there was no such call.
        ``judge/failures/REASON`` and ``any``: responses without a score.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            latencies, self._latencies = self._latencies, []
        metrics = {f"judge/{name}": float(counts[name]) for name in ("responses", "calls", "cache_hits", "shared")}
        if latencies:
            for percent in (50, 95):
                metrics[f"judge/latency/p{percent}"] = float(np.percentile(latencies, percent))
        failures = {f"judge/failures/{reason}": float(counts[reason]) for reason in REASONS}
        return metrics | failures | {"judge/failures/any": sum(failures.values())}

    def close(self) -> None:
        """Cancel open questions, close the scorer and end the thread. Scores received so far still reach the cache."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._cache_writer.shutdown()

    # The methods below run in the event loop.

    def _start(self, submission: _Submission, questions: list[tuple[bytes, Question]]) -> None:
        for row, (key, question) in enumerate(questions):
            open_question = self._open_questions.get(key)
            if open_question is None:
                open_question = self._open_questions[key] = _OpenQuestion(question)
                open_question.task = self._loop.create_task(self._answer(key, open_question))
                self._tasks.add(open_question.task)
                open_question.task.add_done_callback(self._tasks.discard)
            else:
                self._count("shared")
            open_question.waiting.append((submission, row))

    def _cancel(self, submission: _Submission) -> None:
        """Cancel every question that only ``submission`` waits for."""
        for key, open_question in list(self._open_questions.items()):
            open_question.waiting = [(other, row) for other, row in open_question.waiting if other is not submission]
            if not open_question.waiting and open_question.task:
                del self._open_questions[key]
                open_question.task.cancel()

    async def _answer(self, key: bytes, open_question: _OpenQuestion) -> None:
        identity, question = self._scorer.identity, open_question.question
        score = new_score = None
        error: Exception | None = None
        try:
            score = self._cache.get(identity, question) if self._cache else None
            if score is None:
                score = new_score = await self._call(question)
            else:
                self._count("cache_hits")
        except Exception as raised:
            error = raised
        if self._open_questions.get(key) is open_question:
            del self._open_questions[key]
        self._deliver(open_question.waiting, score, error)
        if new_score is not None and self._cache:
            await self._loop.run_in_executor(self._cache_writer, self._cache.put, identity, question, new_score)

    async def _call(self, question: Question) -> float:
        async with self._semaphore:
            self._count("calls")
            start = monotonic()
            score = await self._scorer.score(question)
            seconds = monotonic() - start
        if not math.isfinite(score):
            raise JudgementError("off_scale", "the score is not finite")
        with self._lock:
            self._latencies.append(seconds)
        return float(score)

    def _deliver(self, waiting: list[tuple[_Submission, int]], score: float | None, error: Exception | None) -> None:
        with self._lock:
            for submission, row in waiting:
                if submission.is_taken:
                    continue
                if isinstance(error, JudgementError):
                    self._counts[error.reason] += 1
                elif error is not None:
                    submission.error = error
                else:
                    submission.scores[row] = score
                submission.missing -= 1
                if not submission.missing:
                    submission.answered_at = monotonic()

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    async def _end(self) -> None:
        for open_question in self._open_questions.values():
            if open_question.task:
                open_question.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        await asyncio.wait_for(self._scorer.close(), _CLOSING_S)
