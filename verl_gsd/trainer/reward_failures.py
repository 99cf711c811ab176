"""Rewards that fail: what verl's reward workers do when a reward function raises, hangs, or returns no score.

verl 0.9.1 has no answer to it. An exception ends the session in the agent loop, and the response is gone without a
trace in any metric. None ends the run. ``install`` wraps ``RewardLoopWorker.compute_score``: under a trainer mode of
ours a failed reward becomes a score of 0.0 with a mark in ``reward_extra_info``. ``trainer/replay.py`` finds the mark
and takes the response out of its group. No other trainer looks for it, so under verl's own modes, which would train on
the 0.0, the wrapper does nothing.

A call that hangs in a thread cannot be ended. Its thread is lost, and the worker gets new threads instead, as many as
Python gives to a pool (CPUs + 4, at most 32). A worker that cannot start further threads fails all its calls, and the
run then stops because too many rewards fail.

A call that keeps the interpreter to itself (a regular expression that backtracks without end, ``time.sleep`` in an
async function) stops the whole worker, this module included. Python's ``faulthandler`` then prints where it hangs and
ends the worker, and the run with it. It does the same to a worker that was suspended for as long (SIGSTOP, ``docker
pause``, ``scontrol suspend``) while it computed a reward: the deadline has then passed, and faulthandler acts before
Python code can move the deadline. Python has no deadline that stands still meanwhile and needs no interpreter.

Two reward managers of verl's let calls wait in queues of their own before the function begins: ``rate_limited`` and
``remote``. The seconds that a call may take do not apply to them. ``rate_limited`` has a limit (``reward.timeout``); it
turns the exception or the timeout into a score of 0.0, which counts as a failed reward here.
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

#: The entry of ``reward_extra_info`` that says so.
MARK = "verl_gsd_failed_reward"
#: Where a trainer of ours tells verl's reward workers how many seconds a call may take, and that marks are looked for.
_SECONDS = "trainer.v1.gsd_reward_seconds"

#: An exception's text can have the response in it, which is untrusted and long.
_LONGEST_TEXT, _LONGEST_TRACEBACK = 300, 4_000

#: A worker whose loop has not moved for this many times the seconds that a call may take is ended, but not before this
#: many seconds: a busy machine can stop any process for some.
_STUCK, _STUCK_AT_LEAST = 1.5, 60.0
_STDERR = 2


@dataclass(frozen=True)
class Failure:
    """A reward that failed.

    Attributes:
        kind: how. ``prompt_too_long`` is the agent loop's (``prompt_truncation.py``); the others are of the function.
        what: the same in words, for a count: ``KeyError``, ``returned None``. Few different ones in a run.
        text: what the exception says, or what the agent loop did; empty otherwise.
        trace: the exception's traceback; empty without one.
    """

    kind: Kind
    what: str
    text: str = ""
    trace: str = ""

    def described(self) -> str:
        """``raised KeyError: 'x'``, ``returned None``: what the reward function or the agent loop did."""
        if self.kind == "raised":
            return f"raised {self.what}" + (f": {self.text}" if self.text else "")
        return self.text or self.what

    def as_info(self) -> dict[str, Any]:
        """The ``reward_extra_info`` of a response whose reward failed like this."""
        return {MARK: asdict(self)}

    @classmethod
    def of_info(cls, info: Mapping[str, Any] | None) -> Failure | None:
        """The failure that ``reward_extra_info`` is marked with; None without a mark."""
        mark = (info or {}).get(MARK)
        return cls(**mark) if isinstance(mark, dict) else None


def failure_of_score(score: Any) -> Failure | None:
    """What is wrong with a reward function's score; None if it is a finite number."""
    if score is None:
        return Failure("none", "returned None")
    try:
        number = None if isinstance(score, str | bytes) else float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a list, a tensor of several, 10**400
        number = None
    if number is None:
        return Failure("not_a_number", f"returned a score of type {type(score).__name__}")
    return None if math.isfinite(number) else Failure("not_finite", f"returned {number}")


def failure_of_error(error: Exception) -> Failure:
    """The failure that an exception from ``RewardLoopWorker.compute_score`` means."""
    if isinstance(error, _TooSlowError):
        return Failure("too_slow", str(error))
    if isinstance(error, KeyError) and error.args == ("score",) and _raised_in_verl(error):
        return Failure("no_score", "returned a dict without score")
    if isinstance(error, _SwallowedError):
        return Failure("raised", "an error", _plain(str(error))[:_LONGEST_TEXT])
    name = type(error.__cause__ if isinstance(error, _EscapedError) else error).__name__
    try:
        text = str(error)
    except Exception:  # somebody else's code
        text = ""
    trace = "".join(traceback.format_exception(type(error), error, _of_the_function(error), limit=-12))
    return Failure("raised", _plain(name), _plain(text)[:_LONGEST_TEXT], _last_lines(_plain(trace, "\n")))


def mark_failures(config: DictConfig, seconds: float) -> None:
    """Make verl's reward workers mark failed rewards. For a trainer that takes marked responses out.

    Args:
        config: the whole config, which verl gives to its reward workers later.
        seconds: how long one call of the reward function may take.
    """
    with open_dict(config):
        OmegaConf.update(config, _SECONDS, float(seconds), force_add=True)


def install(reward_loop: ModuleType) -> None:
    """Make reward workers mark rewards that fail, where ``mark_failures`` told them to.

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
            result = await _within(seconds, _swallows_nothing(manager, original(self, data)), ends=not _queues(manager))
            failure = failure_of_score(result["reward_score"])
        except Exception as error:
            failure = failure_of_error(error)
        return result if failure is None else {"reward_score": 0.0, "reward_extra_info": failure.as_info()}

    worker.compute_score = compute_score


# Calls that may take some seconds


class _TooSlowError(Exception):
    """A call of the reward function took too long."""


class _EscapedError(Exception):
    """A reward function raised its cause, which is no ``Exception`` and would end the worker or the session."""


class _SwallowedError(Exception):
    """A reward manager of verl's caught what the reward function raised, and kept the text alone."""


def _queues(manager: Any) -> bool:
    """Whether calls wait in queues of the manager's, so that nobody here knows when the reward function begins."""
    from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager
    from verl.experimental.reward_loop.reward_manager.remote import RemoteRewardManager

    return isinstance(manager, RateLimitedRewardManager | RemoteRewardManager)


async def _swallows_nothing(manager: Any, coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """The result of ``coroutine``, a call of the manager.

    Raises:
        _TooSlowError, _SwallowedError: the manager ``rate_limited`` made a score of 0.0 of a timeout or an exception.
    """
    from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager

    result = await coroutine
    if isinstance(manager, RateLimitedRewardManager):
        info = result["reward_extra_info"]
        if "score" not in info:  # which a dict of the function's has, whatever else it calls error
            if "timeout" in info:
                raise _TooSlowError(f"took longer than reward.timeout={manager.timeout:g} s")
            if "error" in info:
                raise _SwallowedError(info["error"])
    return result


class _Call:
    """One call of the reward function.

    Attributes:
        thread: runs it now; None if no thread does.
    """

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self._since = time.monotonic()
        self._waits = False

    def waits(self) -> None:
        self._waits = True

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function``, in the thread that was waited for."""
        self._waits, self.thread, self._since = False, threading.current_thread(), time.monotonic()
        try:
            return function(*args)
        finally:
            self.thread, self._since = None, time.monotonic()

    def runs_for(self) -> float:
        """Seconds; 0 while the call waits for a thread, which will come: no call that hangs keeps one from others."""
        return 0.0 if self._waits else time.monotonic() - self._since


_CALL: contextvars.ContextVar[_Call] = contextvars.ContextVar("call")


class _Threads(ThreadPoolExecutor):
    """An event loop's threads; each ``_Call`` knows when its work begins there."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="reward")

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        call = _CALL.get(None)
        if call is None:
            return super().submit(function, *args, **kwargs)
        call.waits()
        return super().submit(call.run, functools.partial(function, **kwargs), *args)

    def successors(self) -> _Threads:
        """New threads that take over what waits for these. Each of these ends when it has nothing to do."""
        new = _Threads()
        with contextlib.suppress(queue.Empty):
            while True:
                new._work_queue.put(self._work_queue.get_nowait())
                new._adjust_thread_count()
        return new


#: By the worker's event loop.
_THREADS: weakref.WeakKeyDictionary[Any, _Threads] = weakref.WeakKeyDictionary()
#: Calls that run or wait now.
_calls = 0


def _use(threads: _Threads, loop: asyncio.AbstractEventLoop) -> None:
    _THREADS[loop] = threads
    loop.set_default_executor(threads)


async def _within(
    seconds: float, coroutine: Coroutine[Any, Any, dict[str, Any]], *, ends: bool = True
) -> dict[str, Any]:
    """The result of ``coroutine``.

    Args:
        ends: whether it is ended after ``seconds``. If not, they only limit how long it may block the event loop.

    Raises:
        _TooSlowError: it ran for longer than ``seconds``. It is cancelled, but not what it does in a thread.
        _EscapedError: it raised ``SystemExit`` or ``CancelledError``, and nobody had cancelled it.
        Exception: whatever it raises.
    """
    global _calls
    loop = asyncio.get_running_loop()
    if loop not in _THREADS:
        _use(_Threads(), loop)
    call = _Call()
    token = _CALL.set(call)
    task = loop.create_task(_without_exit(coroutine))  # which keeps this context
    _CALL.reset(token)
    _calls += 1
    try:
        while not task.done():
            left = seconds - call.runs_for() if ends else seconds
            if left <= 0:
                raise _TooSlowError(f"took longer than {seconds:g} s")
            faulthandler.dump_traceback_later(max(_STUCK * seconds, _STUCK_AT_LEAST), exit=True, file=_STDERR)
            await asyncio.wait({task}, timeout=left)
        try:
            return task.result()
        except asyncio.CancelledError as error:  # not ours: whoever is cancelled here is so while it waits, above
            raise _EscapedError("the reward function raised CancelledError or was cancelled") from error
    finally:
        _calls -= 1
        if not _calls:
            faulthandler.cancel_dump_traceback_later()
        if call.thread in _THREADS[loop]._threads:  # it is lost
            _use(_THREADS[loop].successors(), loop)
        if not task.done():
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
            task.cancel()


async def _without_exit(coroutine: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    try:
        return await coroutine
    except SystemExit as error:
        raise _EscapedError(f"the reward function called sys.exit({error.code!r})") from error


# What is said of exceptions

#: Modules between a reward worker and the function that it calls.
_BETWEEN = (__name__, "verl.experimental.reward_loop.", "verl.trainer.ppo.reward", "concurrent.futures.", "asyncio.")


def _of_the_function(error: Exception) -> TracebackType | None:
    """The traceback from the reward function on; all of it if no reward function raised."""
    entry = error.__traceback__
    while entry is not None and str(entry.tb_frame.f_globals.get("__name__")).startswith(_BETWEEN):
        entry = entry.tb_next
    return entry or error.__traceback__


def _raised_in_verl(error: Exception) -> bool:
    """Whether the exception comes from a reward manager of verl's, and not from the function that it calls."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).startswith("verl.experimental.reward_loop")


def _plain(text: str, kept: str = "") -> str:
    """``text`` without characters that control a terminal, ``kept`` excepted, and without halves of surrogate pairs."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(char if char.isprintable() or char in kept else " " for char in whole)


def _last_lines(trace: str) -> str:
    return trace if len(trace) <= _LONGEST_TRACEBACK else "[cut] ..." + trace[-_LONGEST_TRACEBACK:]
