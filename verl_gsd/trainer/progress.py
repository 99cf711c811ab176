"""Decides when a run that makes no progress counts as stuck.

A step has phases: waiting for responses, updating the actor, saving a checkpoint, and so on. The run makes progress
when a phase begins or ends, and when a response finishes while the trainer waits for responses. In between, the run is
quiet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

#: If the user sets no limit, a run may be quiet for this many times the longest quiet time of the same phase so far.
#: Steps differ in length, and responses grow while a policy learns to reason.
FACTOR = 10.0
#: Lower bound of that limit, in seconds. A shared disk or an overloaded judge can stall a fast run for minutes.
LEAST = 600.0
#: Limit in seconds for a phase that has never ended yet. A first start may load a large model, and the duration of the
#: first checkpoint is unknown.
FIRST = 3600.0
#: Tokens per second and accelerator that even a slow first pass over a batch exceeds. An A100 trains 7e9 parameters on
#: about 2000, and the first update of a large batch of long responses can take more than an hour.
SLOWEST = 100.0

STARTING = "starting"
WAITING = "waiting for responses"


class Progress:
    """Stores what the run is doing and when it last made progress.

    The trainer's thread writes it, and the watchdog's thread reads it.

    Args:
        limit: seconds that the run may be quiet after it has started. None: the limit adapts to the run.
        least: lower bound of a limit that adapts, in seconds.
        clock: a monotonic clock in seconds. The wall clock may jump.
    """

    def __init__(
        self, limit: float | None = None, *, least: float = LEAST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = limit
        self._least = least
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = STARTING
        self._detail = ""
        self._state: Hashable = None
        self._last = clock()
        self._first = FIRST  # limit of the current phase if it has never ended
        self._longest_now = 0.0  # longest quiet time of the current phase since it began
        self._longest: dict[str, float] = {}  # by phase, longest quiet time over all times that it has ended

    def begin(self, phase: str, tokens: float = 0.0) -> None:
        """The current phase ends and ``phase`` begins.

        Args:
            tokens: number of tokens that each accelerator works on in the phase.
        """
        with self._lock:
            self._begin(phase)
            self._first = max(FIRST, tokens / SLOWEST)

    def look(self, detail: str, state: Hashable) -> None:
        """The trainer waits. A ``state`` that differs from the last one is progress.

        Args:
            detail: a description of what the trainer waits for.
        """
        with self._lock:
            if state != self._state:
                self._make_progress()
            self._detail, self._state = detail, state

    def excuse(self, seconds: float) -> None:
        """Do not count ``seconds`` in which the whole process was suspended and could not make progress."""
        with self._lock:
            self._last += seconds

    def quiet(self) -> tuple[float, float, str]:
        """(seconds since the last progress, limit in seconds, what the trainer is doing)."""
        with self._lock:
            doing = f"{self._phase} ({self._detail})" if self._detail else self._phase
            return self._clock() - self._last, self._limit(), doing

    def _limit(self) -> float:
        if self._fixed is not None:  # the start of a large model takes long, and no earlier step shows how long
            return max(self._fixed, FIRST) if self._phase == STARTING else self._fixed
        longest = self._longest.get(self._phase)
        return max(self._least, self._first if longest is None else FACTOR * longest)

    def _begin(self, phase: str) -> None:
        self._make_progress()
        self._longest[self._phase] = max(self._longest.get(self._phase, 0.0), self._longest_now)
        self._phase, self._detail, self._state, self._longest_now = phase, "", None, 0.0

    def _make_progress(self) -> None:
        now = self._clock()
        self._longest_now = max(self._longest_now, now - self._last)
        self._last = now
