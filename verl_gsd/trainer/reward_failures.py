"""A patch for verl's reward workers: a reward function that raises, hangs or returns no score gives a failed reward.

verl 0.9.1 does not handle these cases. If the function raises, the session ends in the agent loop, and no metric counts
the lost response. If the function returns None, the run ends. ``install`` wraps ``RewardLoopWorker.compute_score``.
Under our trainer modes, a failed reward becomes a score of 0.0 with a mark in ``reward_extra_info``.
``trainer/replay.py`` finds the mark and removes the response from its group. No other trainer looks for the mark.
verl's own modes would train on the 0.0, so the wrapper does nothing under them.

A call that hangs in a thread cannot be ended. Its thread is lost, and the worker gets a new pool of threads, of
Python's default size (CPUs + 4, at most 32). If a worker cannot start more threads, all its calls fail, and the run
stops because too many rewards fail.

A call that never releases the interpreter (a regular expression that backtracks without end, ``time.sleep`` in an async
function) blocks the whole worker, including this module. Python's ``faulthandler`` then prints where the worker hangs
and ends it, which ends the run. ``faulthandler`` also ends a worker that was suspended for as long (SIGSTOP, ``docker
pause``, ``scontrol suspend``) while it computed a reward: the deadline has passed when the worker wakes, and
``faulthandler`` acts before Python code can move the deadline. Python offers no deadline that pauses during a
suspension and works without the interpreter.

The laboratory calls reward functions itself (``lab/training/verifier.py``). It marks failed rewards in the same way,
without a time limit.

In two of verl's reward managers, ``rate_limited`` and ``remote``, calls wait in the manager's own queue before the
function begins. The time limit of a call does not apply to them. ``rate_limited`` has its own limit,
``reward.timeout``. It turns an exception or a timeout into a score of 0.0, which counts as a failed reward here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import functools
import math
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import ModuleType, TracebackType
from typing import Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf, open_dict

#: How a reward can fail.
Kind = Literal["raised", "none", "not_finite", "not_a_number", "no_score", "too_slow", "prompt_too_long"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: The entry of ``reward_extra_info`` that marks a failed reward.
MARK = "verl_gsd_failed_reward"
#: Our trainers set this key for verl's reward workers: the seconds that a call may take. Without it, nothing is marked.
_SECONDS = "trainer.v1.gsd_reward_seconds"

#: Errors that are no ``Exception``, with which a reward function can end. Others, for example Ctrl-C, are not its own.
ESCAPING = (SystemExit, asyncio.CancelledError)

#: Characters that are kept of an exception, whose text may contain a long, untrusted response.
_LONGEST_TEXT, _LONGEST_TRACEBACK = 300, 4_000

#: A worker is ended if its event loop is blocked for ``_STUCK_FACTOR`` times the seconds that a call may take, and for
#: at least ``_STUCK_AT_LEAST`` seconds, because a busy machine can pause any process for a while.
_STUCK_FACTOR, _STUCK_AT_LEAST = 1.5, 60.0
_STDERR = 2


@dataclass(frozen=True)
class Failure:
    """How a reward failed.

    Attributes:
        kind: the kind of failure. The agent loop causes ``prompt_too_long`` (``prompt_truncation.py``), the reward
            function causes all others.
        what: a short label for counting, for example ``KeyError`` or ``returned None``. A run has few distinct labels.
        text: the exception's text, or what the agent loop did; empty otherwise.
        trace: the exception's traceback; empty if there was no exception.
    """

    kind: Kind
    what: str
    text: str = ""
    trace: str = ""

    def describe(self) -> str:
        """What the reward function or the agent loop did, for example ``raised KeyError: 'x'`` or ``returned None``."""
        if self.kind == "raised":
            return f"raised {self.what}" + (f": {self.text}" if self.text else "")
        return self.text or self.what

    def as_extra_info(self) -> dict[str, Any]:
        """The ``reward_extra_info`` of a response whose reward failed in this way."""
        return {MARK: asdict(self)}

    @classmethod
    def from_extra_info(cls, info: Mapping[str, Any] | None) -> Failure | None:
        """The failure in the mark of ``reward_extra_info``; None if there is no mark."""
        mark = (info or {}).get(MARK)
        return cls(**mark) if isinstance(mark, dict) else None


def failure_of_score(score: Any) -> Failure | None:
    """The failure that a reward function's score means; None if the score is a finite number."""
    if score is None:
        return Failure("none", "returned None")
    try:
        number = None if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a list, a tensor of several values, 10**400
        number = None
    if number is None:
        return Failure("not_a_number", f"returned a score of type {type(score).__name__}")
    return None if math.isfinite(number) else Failure("not_finite", f"returned {number}")


def failure_of_error(error: BaseException) -> Failure:
    """The failure that an error of ``RewardLoopWorker.compute_score`` or of a reward function means."""
    if isinstance(error, _TooSlowError):
        return Failure("too_slow", str(error))
    if isinstance(error, KeyError) and error.args == ("score",) and _raised_by_caller(error):
        return Failure("no_score", "returned a dict without score")
    if isinstance(error, _SwallowedError):
        return Failure("raised", "an error", _printable(str(error))[:_LONGEST_TEXT])
    name = type(error.__cause__ if isinstance(error, _EscapedError) else error).__name__
    try:
        text = _why_escaped(error) if isinstance(error, ESCAPING) else str(error)
    except Exception:  # __str__ is the user's code
        text = ""
    trace = "".join(traceback.format_exception(type(error), error, _traceback_of_function(error), limit=-12))
    return Failure("raised", _printable(name), _printable(text)[:_LONGEST_TEXT], _shorten(_printable(trace, "\n")))


def mark_failures(config: DictConfig, seconds: float) -> None:
    """Make verl's reward workers mark failed rewards. Only for trainers that remove marked responses.

    Args:
        config: the whole config. verl later passes it to its reward workers.
        seconds: time limit of one call of the reward function.
    """
    with open_dict(config):
        OmegaConf.update(config, _SECONDS, float(seconds), force_add=True)


def install(reward_loop: ModuleType) -> None:
    """Make reward workers mark failed rewards if ``mark_failures`` was applied to their config.

    Args:
        reward_loop: the module ``verl.experimental.reward_loop.reward_loop``.
    """
    worker = reward_loop.RewardLoopWorker
    original = worker.compute_score

    @functools.wraps(original)
    async def compute_score(self: Any, data: Any) -> dict[str, Any]:
        seconds = OmegaConf.select(self.config, _SECONDS)
        if seconds is None:
            return await original(self, data)
        failure: Failure | None
        try:
            manager = self.reward_manager
            call = _raise_swallowed(manager, original(self, data))
            result = await _run_with_limit(seconds, call, is_limited=not _has_own_queue(manager))
            failure = failure_of_score(result["reward_score"])
        except Exception as error:
            failure = failure_of_error(error)
        return result if failure is None else {"reward_score": 0.0, "reward_extra_info": failure.as_extra_info()}

    worker.compute_score = compute_score


# Calls with a time limit


class _TooSlowError(Exception):
    """A call of the reward function took too long."""


class _EscapedError(Exception):
    """A reward function raised the cause, which is in ``ESCAPING`` and would end the worker or the session."""


class _SwallowedError(Exception):
    """One of verl's reward managers caught the reward function's exception and kept only its text."""


def _has_own_queue(manager: Any) -> bool:
    """Whether calls wait in the manager's own queue. This module then cannot see when the reward function begins."""
    from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager
    from verl.experimental.reward_loop.reward_manager.remote import RemoteRewardManager

    return isinstance(manager, RateLimitedRewardManager | RemoteRewardManager)


async def _raise_swallowed(manager: Any, coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Return the result of ``coroutine``, a call of the manager.

    Raises:
        _TooSlowError, _SwallowedError: the manager ``rate_limited`` turned a timeout or an exception into a score of
            0.0.
    """
    from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager

    result = await coroutine
    if isinstance(manager, RateLimitedRewardManager):
        info = result["reward_extra_info"]
        if "score" not in info:  # a dict that the function returned has a score, and may also have "error"
            if "timeout" in info:
                raise _TooSlowError(f"took longer than reward.timeout={manager.timeout:g} s")
            if "error" in info:
                raise _SwallowedError(info["error"])
    return result


class _Call:
    """One call of the reward function.

    Attributes:
        thread: the thread that runs it now; None if no thread does.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._since = time.monotonic()
        self._is_waiting = False

    def wait_for_thread(self) -> None:
        """The call has to wait for a free thread."""
        self._is_waiting = True

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function`` in the current thread, which is now free."""
        self._is_waiting, self.thread, self._since = False, threading.current_thread(), time.monotonic()
        try:
            return function(*args)
        finally:
            self.thread, self._since = None, time.monotonic()

    def seconds_running(self) -> float:
        """Seconds that the call has run. 0 while it waits for a thread: it will get one, since hanging threads are
        replaced."""
        return 0.0 if self._is_waiting else time.monotonic() - self._since


_CALL: contextvars.ContextVar[_Call] = contextvars.ContextVar("call")


class _Threads(ThreadPoolExecutor):
    """The threads of an event loop. They tell each ``_Call`` when its work begins."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="reward")

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        call = _CALL.get(None)
        if call is None:
            return super().submit(function, *args, **kwargs)
        call.wait_for_thread()
        return super().submit(call.run, functools.partial(function, **kwargs), *args)

    def replacement(self) -> _Threads:
        """A new pool that takes over the waiting work of this pool. Each thread of this pool ends when it is idle."""
        new = _Threads()
        with contextlib.suppress(queue.Empty):
            while True:
                new._work_queue.put(self._work_queue.get_nowait())
                new._adjust_thread_count()
        return new


#: Threads by event loop of the worker.
_THREADS: weakref.WeakKeyDictionary[Any, _Threads] = weakref.WeakKeyDictionary()
#: Number of calls that run or wait now.
_calls = 0


def _set_threads(threads: _Threads, loop: asyncio.AbstractEventLoop) -> None:
    _THREADS[loop] = threads
    loop.set_default_executor(threads)


async def _run_with_limit(
    seconds: float, coroutine: Coroutine[Any, Any, dict[str, Any]], *, is_limited: bool = True
) -> dict[str, Any]:
    """Return the result of ``coroutine``.

    Args:
        seconds: time limit. ``faulthandler`` ends the worker if the event loop is blocked for much longer.
        is_limited: whether ``coroutine`` is cancelled after ``seconds``.

    Raises:
        _TooSlowError: ``coroutine`` ran for longer than ``seconds``. It is cancelled; its work in a thread continues.
        _EscapedError: ``coroutine`` raised ``SystemExit``, or raised ``CancelledError`` without being cancelled.
        Exception: any other exception of ``coroutine``.
    """
    global _calls
    loop = asyncio.get_running_loop()
    if loop not in _THREADS:
        _set_threads(_Threads(), loop)
    call = _Call()
    token = _CALL.set(call)
    task = loop.create_task(_without_exit(coroutine))  # the task keeps this context
    _CALL.reset(token)
    _calls += 1
    try:
        while not task.done():
            left = seconds - call.seconds_running() if is_limited else seconds
            if left <= 0:
                raise _TooSlowError(f"took longer than {seconds:g} s")
            faulthandler.dump_traceback_later(max(_STUCK_FACTOR * seconds, _STUCK_AT_LEAST), exit=True, file=_STDERR)
            await asyncio.wait({task}, timeout=left)
        try:
            return task.result()
        except asyncio.CancelledError as error:  # if our caller is cancelled, ``asyncio.wait`` above raises
            raise _EscapedError(_why_escaped(error)) from error
    finally:
        _calls -= 1
        if not _calls:
            faulthandler.cancel_dump_traceback_later()
        if call.thread in _THREADS[loop]._threads:  # the call still occupies its thread, which is lost
            _set_threads(_THREADS[loop].replacement(), loop)
        if not task.done():
            # Retrieve the exception, because nobody else does and asyncio would log it.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            task.cancel()


async def _without_exit(coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        return await coroutine
    except SystemExit as error:
        raise _EscapedError(_why_escaped(error)) from error


# Texts of exceptions

#: Modules that call reward functions: verl's reward managers, and the laboratory.
_CALLERS = ("verl.experimental.reward_loop.", "verl_gsd.lab.training.verifier")
#: Modules between a reward worker, or the laboratory, and the function that it calls.
_OUTER_MODULES = (
    __name__,
    *_CALLERS,
    "verl.trainer.ppo.reward",
    "concurrent.futures.",
    "asyncio.",
)


def _why_escaped(error: BaseException) -> str:
    """What the reward function did to raise one of ``ESCAPING``."""
    if isinstance(error, SystemExit):
        return f"the reward function called sys.exit({error.code!r})"
    return "the reward function raised CancelledError or was cancelled"


def _traceback_of_function(error: BaseException) -> TracebackType | None:
    """The traceback from the frame of the reward function on; the whole traceback if no reward function raised."""
    entry = error.__traceback__
    while entry is not None and str(entry.tb_frame.f_globals.get("__name__")).startswith(_OUTER_MODULES):
        entry = entry.tb_next
    return entry or error.__traceback__


def _raised_by_caller(error: BaseException) -> bool:
    """Whether the caller of the reward function raised the exception, and not the function."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).startswith(_CALLERS)


def _printable(text: str, keep: str = "") -> str:
    """Replace characters of ``text`` that control a terminal, except those in ``keep``, and lone surrogates."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() or char in keep else " " for char in encodable)


def _shorten(trace: str) -> str:
    return trace if len(trace) <= _LONGEST_TRACEBACK else "[cut] ..." + trace[-_LONGEST_TRACEBACK:]
