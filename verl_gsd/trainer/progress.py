"""When a run that makes no progress counts as stuck.

A step has phases: waiting for responses, updating the actor, saving a checkpoint, and so on. Progress is made when a
phase begins or ends, and, while the trainer waits for responses, when one finishes. In between the run is quiet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

#: Without a limit of the user's: a run may be quiet for this many times the longest quiet time that the same phase has
#: had so far. Steps differ in length, and responses grow while a policy learns to reason.
FACTOR = 10.0
#: Seconds that the limit is never below: a shared disk or an overloaded judge can stall a fast run for minutes.
LEAST = 600.0
#: Seconds for a phase that has not ended once. A first start loads a large model, and nobody knows how long a first
#: checkpoint takes.
FIRST = 3600.0

STARTING = "starting"
WAITING = "waiting for responses"


class Progress:
    """Remembers what the run does and when it last made progress.

    The trainer's thread writes, the watchdog's thread reads.

    Args:
        limit: seconds that the run may be quiet once it has started; None: the limit adapts.
        least: seconds that an adapting limit is never below.
        clock: a monotonic clock in seconds; the wall clock may jump.
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
        self._quietest = 0.0  # longest quiet time of the phase at hand
        self._longest: dict[str, float] = {}  # by phase, over all the times it has ended

    def begin(self, phase: str) -> None:
        """The phase at hand ends and ``phase`` begins."""
        with self._lock:
            self._begin(phase)

    def look(self, detail: str, state: Hashable) -> None:
        """The trainer waits. A ``state`` that differs from the last one is progress.

        Args:
            detail: what it waits for, in addition to the phase.
        """
        with self._lock:
            if state != self._state:
                self._made()
            self._detail, self._state = detail, state

    def excuse(self, seconds: float) -> None:
        """The whole process was suspended for so long, so that nothing could make progress."""
        with self._lock:
            self._last += seconds

    def quiet(self) -> tuple[float, float, str]:
        """Seconds since the last progress, how many there may be, and what the trainer does."""
        with self._lock:
            doing = f"{self._phase} ({self._detail})" if self._detail else self._phase
            return self._clock() - self._last, self._limit(), doing

    def _limit(self) -> float:
        if self._fixed is not None:  # a start takes as long as the model is large, and has no steps to measure
            return max(self._fixed, FIRST) if self._phase == STARTING else self._fixed
        longest = self._longest.get(self._phase)
        return max(self._least, FIRST if longest is None else FACTOR * longest)

    def _begin(self, phase: str) -> None:
        self._made()
        self._longest[self._phase] = max(self._longest.get(self._phase, 0.0), self._quietest)
        self._phase, self._detail, self._state, self._quietest = phase, "", None, 0.0

    def _made(self) -> None:
        now = self._clock()
        self._quietest = max(self._quietest, now - self._last)
        self._last = now
