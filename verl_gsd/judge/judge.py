"""Asks a scorer while others work: questions go in under a name, and scores are there when they are wanted."""

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

_CLOSING_S = 10.0  # that calls cancelled, and then the scorer, may take to end


@dataclass(eq=False)
class _Asked:
    """What goes by one name. ``scores``: (k,) float64, NaN where there is none; ``missing`` of them are still open."""

    scores: np.ndarray
    since: float
    missing: int
    answered: float | None = None
    error: Exception | None = None  # a scorer's that is no JudgementError
    is_forgotten: bool = False


@dataclass(eq=False)
class _Flight:
    """One question being answered, and the rows that wait for it."""

    question: Question
    rows: list[tuple[_Asked, int]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Judge:
    """Asks ``scorer`` from a thread of its own, each question that is open once, however often it is asked.

    All methods are for one thread, and none waits for a scorer but ``close``.

    Args:
        scorer: answers in an event loop of that thread.
        cache: looked at first, and told every score that was given; whoever made it closes it, after the judge.
        concurrency: questions the scorer has at once, over all names.
        budget_s: seconds after which a name is done, whatever is still open.
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
        self._asked: dict[str, _Asked] = {}
        self._is_closed = False
        # Of the event loop alone.
        self._semaphore = asyncio.Semaphore(concurrency)
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Of both threads, under the lock, as is what an _Asked holds.
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._cache_writer = ThreadPoolExecutor(1, "judge-cache")  # a write may wait for other processes
        # A daemon: a trainer that crashes waits for no judge.
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def ask(self, name: str, questions: Sequence[Question]) -> None:
        """Have ``questions`` answered under ``name``; returns at once.

        Raises:
            ValueError: the name is in use.
            RuntimeError: the judge is closed.
        """
        if self._is_closed:
            raise RuntimeError("a judge that is closed is asked")
        if name in self._asked:
            raise ValueError(f"{name}: asked already; take it first")
        keys = [digest(question.problem, question.reference, question.response) for question in questions]
        now = monotonic()
        asked = _Asked(np.full(len(keys), np.nan), now, len(keys), answered=None if keys else now)
        self._asked[name] = asked
        with self._lock:
            self._counts["responses"] += len(keys)
        self._loop.call_soon_threadsafe(self._start, asked, list(zip(keys, questions, strict=True)))

    def is_done(self, name: str) -> bool:
        """Whether ``take`` has no more to gain by waiting: all are answered, or the budget is spent.

        Raises:
            KeyError: nothing was asked under the name, or it was taken.
        """
        asked = self._asked[name]
        return (
            asked.answered is not None
            or asked.error is not None
            or self._is_closed
            or monotonic() - asked.since >= self._budget_s
        )

    def answered(self, name: str) -> float | None:
        """``time.monotonic()`` of the last answer under the name, failures included; None while one is open."""
        return self._asked[name].answered

    def take(self, name: str) -> np.ndarray:
        """(k,) float64 scores in the order of the questions, NaN where there is none; the name is forgotten.

        What is still open is given up and counted as ``over_budget``.

        Raises:
            KeyError: nothing was asked under the name, or it was taken.
            Exception: what the scorer raised that was no JudgementError, as it was.
        """
        asked = self._asked.pop(name)
        with self._lock:
            asked.is_forgotten = True
            missing = asked.missing
        if missing and not self._is_closed:
            self._loop.call_soon_threadsafe(self._leave, asked)
        if asked.error is not None:
            raise asked.error
        with self._lock:
            self._counts["over_budget"] += missing
        return asked.scores

    def metrics(self) -> dict[str, float]:
        """What happened since the last call, by name.

        ``judge/responses``: asked about; of these ``judge/cache_hits`` were known, ``judge/shared`` waited for an equal
        question, and for the rest the scorer was called, ``judge/calls``. ``judge/latency/p50`` and ``p95``: seconds
        that calls took which gave a score, their retries included and the wait for their turn not; left out where there
        was none.
        ``judge/failures/REASON`` and ``any``: responses that got no score.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
            latencies, self._latencies = self._latencies, []
        found = {f"judge/{name}": float(counts[name]) for name in ("responses", "calls", "cache_hits", "shared")}
        if latencies:
            for percent in (50, 95):
                found[f"judge/latency/p{percent}"] = float(np.percentile(latencies, percent))
        failures = {f"judge/failures/{reason}": float(counts[reason]) for reason in REASONS}
        return found | failures | {"judge/failures/any": sum(failures.values())}

    def close(self) -> None:
        """Cancel what is open, close the scorer and end the thread; scores already paid for still reach the cache."""
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

    # What follows runs in the event loop.

    def _start(self, asked: _Asked, questions: list[tuple[bytes, Question]]) -> None:
        for row, (key, question) in enumerate(questions):
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(question)
                flight.task = self._loop.create_task(self._answer(key, flight))
                self._tasks.add(flight.task)
                flight.task.add_done_callback(self._tasks.discard)
            else:
                self._count("shared")
            flight.rows.append((asked, row))

    def _leave(self, asked: _Asked) -> None:
        """Cancel every question that nobody but ``asked`` waits for."""
        for key, flight in list(self._flights.items()):
            flight.rows = [(waiting, row) for waiting, row in flight.rows if waiting is not asked]
            if not flight.rows and flight.task:
                del self._flights[key]
                flight.task.cancel()

    async def _answer(self, key: bytes, flight: _Flight) -> None:
        identity, question = self._scorer.identity, flight.question
        score = given = None
        error: Exception | None = None
        try:
            score = self._cache.get(identity, question) if self._cache else None
            if score is None:
                score = given = await self._call(question)
            else:
                self._count("cache_hits")
        except Exception as raised:
            error = raised
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._deliver(flight.rows, score, error)
        if given is not None and self._cache:
            await self._loop.run_in_executor(self._cache_writer, self._cache.put, identity, question, given)

    async def _call(self, question: Question) -> float:
        async with self._semaphore:
            self._count("calls")
            began = monotonic()
            score = await self._scorer.score(question)
            took = monotonic() - began
        if not math.isfinite(score):
            raise JudgementError("off_scale", "a score that is not finite")
        with self._lock:
            self._latencies.append(took)
        return float(score)

    def _deliver(self, rows: list[tuple[_Asked, int]], score: float | None, error: Exception | None) -> None:
        with self._lock:
            for asked, row in rows:
                if asked.is_forgotten:
                    continue
                if isinstance(error, JudgementError):
                    self._counts[error.reason] += 1
                elif error is not None:
                    asked.error = error
                else:
                    asked.scores[row] = score
                asked.missing -= 1
                if not asked.missing:
                    asked.answered = monotonic()

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    async def _end(self) -> None:
        for flight in self._flights.values():
            if flight.task:
                flight.task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)
        await asyncio.wait_for(self._scorer.close(), _CLOSING_S)
