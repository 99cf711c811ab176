r"""The verifier of mathematics: the last ``\boxed{}`` of a response against the reference answer, by math-verify.

math-verify ends what takes too long by SIGALRM, which works in no thread but the main one, and verl asks verifiers in
others; sympy, on text that a policy wrote, may take for ever and all memory. Answers that are not equal as texts are
therefore compared in processes of their own (``maths_worker.py``), few, kept, bounded in memory, and killed when they
do not answer.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import select
import subprocess
import sys
from collections import deque
from typing import Any

logger = logging.getLogger(__name__)

#: An answer of more characters than this is no answer and is not looked at.
LONGEST_ANSWER = 1000
#: Seconds for a comparison, and for a process to import sympy and be ready.
TIMEOUT_S = 10.0
START_S = 120.0
#: Processes that compare, in each of verl's reward workers: others wait for one.
PROCESSES = 2

#: A box, and where no brace follows, what stands in it: authors of MATH write ``\boxed 2`` too.
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


class _Worker:
    """A process that compares answers, one at a time. Whoever sees it fail kills it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.tasks.maths_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._read(START_S) != "ready":
            self.kill()
            raise RuntimeError("the process that compares answers did not start: is math-verify installed?")

    def are_equal(self, answer: str, truth: str, timeout_s: float) -> bool | None:
        """None where it did not answer in time, or at all: it is then of no further use."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return {"right": True, "wrong": False}.get(self._read(timeout_s))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self, timeout_s: float) -> str:
        """A line, or an empty text. It is short and comes at once, so that nothing blocks once it has begun."""
        output = self._process.stdout
        assert output is not None
        return output.readline().decode().strip() if select.select([output], [], [], timeout_s)[0] else ""


_idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
for _ in range(PROCESSES):
    _idle.put(None)


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    r"""Verify one response: right if what is in its last ``\boxed{}`` equals the reference answer, as mathematics.

    The signature is the one verl calls reward functions with. Any text is safe, from any thread.

    Args:
        ground_truth: LaTeX, without ``\boxed{}``.

    Returns:
        ``score`` and ``acc``, 0.0 or 1.0, the same; ``unverified`` is 1.0 where the comparison took more than
        ``TIMEOUT_S`` seconds or ended its process, which counts as wrong.

    Raises:
        RuntimeError: math-verify does not start.
    """
    answer, truth = last_boxed(solution_str) if isinstance(solution_str, str) else None, str(ground_truth).strip()
    if answer is None or len(answer) > LONGEST_ANSWER:
        return _verdict(False)
    return _verdict(True) if answer == truth else _verdict(_are_equal(answer, truth, TIMEOUT_S))


def last_boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{}``, ``\fbox{}`` or ``\boxed x`` of a text, stripped; None where there is none, its
    braces do not close, or it has more than ``LONGEST_ANSWER`` characters."""
    last = deque(_BOX.finditer(text), maxlen=1)
    if not last:
        return None
    (box,) = last
    if box["bare"] is not None:
        return box["bare"].rstrip(".,;")
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), box.end() + LONGEST_ANSWER + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped one is a letter
        if not depth:
            return text[box.end() : brace.start()].strip()
    return None


def _are_equal(answer: str, truth: str, timeout_s: float) -> bool | None:
    worker = _idle.get()
    try:
        worker = worker or _Worker()
        verdict = worker.are_equal(answer, truth, timeout_s)
        if verdict is None:
            logger.warning("an answer of %d characters could not be verified and counts as wrong", len(answer))
            worker.kill()
            worker = None
        return verdict
    finally:
        _idle.put(worker)


def _verdict(right: bool | None) -> dict[str, float]:
    return {"score": float(bool(right)), "acc": float(bool(right)), "unverified": float(right is None)}
