r"""The verifier of mathematics: the final answer of a response against the reference answer.

Which text is the answer, ``answers.py`` says: the last ``\boxed{}``, or what a response without any announces. Plain
numbers are compared here (``plain.py``), towers of powers not at all (``screen.py``), everything else by math-verify.

math-verify ends what takes too long by SIGALRM, which works in no thread but the main one, and verl asks verifiers in
others; sympy, on text that a policy wrote, may take for ever and all memory. It therefore runs in processes of its own
(``maths_worker.py``), few, kept, bounded in memory and in CPU time, and killed when they do not answer.
"""

from __future__ import annotations

import json
import logging
import queue
import select
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from verl_gsd.tasks.answers import LONGEST_ANSWER, final_answer
from verl_gsd.tasks.answers import last_boxed as last_boxed  # what reads reference solutions finds it here
from verl_gsd.tasks.notation import is_wrong_by_sight, usual
from verl_gsd.tasks.plain import is_side, plain_equal
from verl_gsd.tasks.screen import is_monstrous

logger = logging.getLogger(__name__)

#: Seconds of CPU for a comparison, which leave an answer unverified. What can be compared takes a tenth of one.
CPU_S = 2.0
#: Seconds for a comparison by the clock, after which its process is taken for dead, and for a process to be ready.
TIMEOUT_S = 60.0
START_S = 120.0
#: Processes that compare, in each of verl's reward workers: others wait for one.
PROCESSES = 2
#: Pairs whose comparison is remembered, the late ones too: a group of equal answers costs one.
REMEMBERED = 8192


class _Worker:
    """A process that compares answers, one pair at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.tasks.maths_worker", str(CPU_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._read(START_S) != "ready":
            self.kill()
            raise RuntimeError("the process that compares answers did not start: is math-verify installed?")

    def ask(self, answer: str, truth: str, timeout_s: float) -> str:
        """``right``, ``wrong``, ``late``, ``lost``; or, once it is of no further use, ``stuck`` or an empty text."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return ""
        return self._read(timeout_s)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self, timeout_s: float) -> str:
        """A line. It is short and comes at once, so that nothing blocks once it has begun."""
        output = self._process.stdout
        assert output is not None
        return output.readline().decode().strip() if select.select([output], [], [], timeout_s)[0] else "stuck"


_idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
for _ in range(PROCESSES):
    _idle.put(None)

_verdicts: OrderedDict[tuple[str, str], Future[bool | None]] = OrderedDict()
_lock = threading.Lock()


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    r"""Verify one response: right if its final answer equals the reference answer, as mathematics.

    The signature is the one verl calls reward functions with. Any text is safe, from any thread.

    Args:
        ground_truth: LaTeX, without ``\boxed{}``.

    Returns:
        ``score`` and ``acc``, 0.0 or 1.0, the same; ``unverified`` is 1.0 where nobody could tell, which counts as
        wrong: the comparison took more than ``CPU_S`` seconds, or less after others that did; it ended its process; or
        one of the two is a number beyond reason.

    Raises:
        RuntimeError: math-verify does not start.
    """
    answer, truth = final_answer(solution_str) if isinstance(solution_str, str) else None, str(ground_truth).strip()
    if answer is None or len(answer) > LONGEST_ANSWER:
        return _verdict(False)
    answer, truth = usual(answer), usual(truth)
    if answer == truth:
        return _verdict(True)
    if is_wrong_by_sight(answer, truth):
        return _verdict(False)
    if is_side(answer, truth):
        return _verdict(True)
    right = plain_equal(answer, truth)
    if right is None and not (is_monstrous(answer) or is_monstrous(truth)):
        right = _are_equal(answer, truth)
    return _verdict(right)


def _are_equal(answer: str, truth: str) -> bool | None:
    """What math-verify says, asked once for a pair; None where it did not."""
    with _lock:
        asked = _verdicts.get((answer, truth))
        verdict = _verdicts.setdefault((answer, truth), asked or Future())
        _verdicts.move_to_end((answer, truth))
        if len(_verdicts) > REMEMBERED:
            _verdicts.popitem(last=False)
    if asked is None:
        try:
            verdict.set_result(_compared(answer, truth))
        except BaseException as error:
            verdict.set_exception(error)
            _forget(answer, truth)
    return verdict.result()


def _compared(answer: str, truth: str) -> bool | None:
    worker = _idle.get()
    try:
        worker = worker or _Worker()
        word = worker.ask(answer, truth, TIMEOUT_S)
        if word in ("stuck", ""):
            worker.kill()
            worker = None
    finally:
        _idle.put(worker)
    if word not in ("right", "wrong"):
        logger.warning("an answer of %d characters could not be verified and counts as wrong", len(answer))
    if word in ("lost", ""):  # maybe by no fault of this pair
        _forget(answer, truth)
    return {"right": True, "wrong": False}.get(word)


def _forget(answer: str, truth: str) -> None:
    with _lock:
        _verdicts.pop((answer, truth), None)


def _verdict(right: bool | None) -> dict[str, float]:
    return {"score": float(bool(right)), "acc": float(bool(right)), "unverified": float(right is None)}
