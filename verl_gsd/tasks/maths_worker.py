"""The process that compares two answers by math-verify: a JSON pair a line in, a word a line out.

The words are ``right``, ``wrong``, ``late`` (it took more CPU than it may) and ``lost`` (it broke what compared it).

It has sympy imported and compares nothing itself: a fork of it does, one pair after the other. What goes wrong ends the
fork, and the next one is there in milliseconds. Time is CPU time, which the kernel counts and ends the fork by
(SIGPROF): it works within one operation of Python's on large integers, and a busy machine makes no answer wrong.
math-verify catches most of what goes wrong inside it, a lack of memory too, and then finds two answers different.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

#: Bytes of address space: sympy on ``9^{9^{9^9}}`` would take all there is.
MEMORY = 4 << 30
#: Comparisons that count as recent, and the seconds that any of them gets.
RECENT, LEAST_S = 100, 0.25
#: What two numbers may differ by, as a part of the larger, to be one number: of decimals, and of any others, which
#: are computed to so many digits.
NEAR, NEAREST, DIGITS = 1e-5, 1e-20, 30
#: What most answers are like: a fork starts with what their parsing has cached. A fraction, a surd, an interval, a
#: union, a polynomial, a set, an equation, a matrix, a word.
_USUAL = (
    ("0.5", r"\frac{1}{2}"),
    (r"3\sqrt{2}+\pi", r"\sqrt{18}+\pi"),
    (r"\left(-\infty,\frac{1}{2}\right]", r"(-\infty,0.5]"),
    (r"(0,1)\cup[2,3)", r"[2,3)\cup(0,1)"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"1,\sqrt{2}", r"\{\sqrt{2},1\}"),
    ("y=2x-1", "y=-1+2x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\text{even}", r"\text{odd}"),
)


def main(limit_s: float) -> None:
    """Answer until the input ends.

    Args:
        limit_s: seconds of CPU that a comparison may take.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever sympy or math-verify print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    are_equal = _comparison()
    for pair in _USUAL:
        are_equal(*pair)
    print("ready", file=answers, flush=True)
    fork, recent = None, deque[bool](maxlen=RECENT)
    for line in sys.stdin:
        fork = fork or _Fork(are_equal, unwanted=(0, answers.fileno()))
        word = fork.ask(patience_s(limit_s, sum(recent)), line)
        if word in ("late", "lost"):
            fork = None
        recent.append(word == "late")
        print(word, file=answers, flush=True)


def patience_s(limit_s: float, late: int) -> float:
    """Seconds of CPU for a comparison after ``late`` of the recent ones were late: fewer and fewer, so that a batch of
    nothing else passes; always enough for nearly all that can be compared at all."""
    return max(min(LEAST_S, limit_s), limit_s / (1 + late))


def _comparison() -> Callable[[str, str], bool]:
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)  # that its own time-outs are off, once a process
    latex = [LatexExtractionConfig(boxed_match_priority=0)]

    @functools.lru_cache(1024)  # a reference is compared with every response to its problem
    def read(text: str) -> list:
        return parse(rf"\boxed{{{text}}}", latex, parsing_timeout=None)

    def are_equal(answer: str, truth: str) -> bool:
        gold, found = read(truth), read(answer)
        # x > 3 is (3, oo), whichever of the two is the reference.
        is_right = gold and found and verify(gold, found, allow_set_relation_comp=True, timeout_seconds=None)
        return bool(is_right) and are_near(gold, found)

    return are_equal


def are_near(gold: Sequence[Any], found: Sequence[Any]) -> bool:
    """Whether two parsed answers, if both are numbers, differ by little in proportion.

    math-verify compares to 15 places behind the point and rounds decimals to six, so that to it 2^-60 and -2^-60, and
    1e-19 and 3e-19, are the same. Rational numbers without a decimal among them are compared exactly.
    """
    from sympy import Expr, Float, N

    numbers = [[one.doit() for one in parsed if isinstance(one, Expr) and one.is_number] for parsed in (gold, found)]
    if not all(numbers):
        return True
    (a, *_), (b, *_) = numbers
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    near = NEAR if a.has(Float) or b.has(Float) else NEAREST
    return bool(abs(N(a - b, DIGITS)) <= near * max(abs(N(a, DIGITS)), abs(N(b, DIGITS))))


class _Fork:
    """A fork of this process that compares one pair after the other.

    Args:
        unwanted: descriptors that it is not to keep open: who waits for their end waits for the first process alone.
    """

    def __init__(self, are_equal: Callable[[str, str], bool], unwanted: Sequence[int]) -> None:
        theirs, self._questions = os.pipe()
        self._answers, ours = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                for descriptor in (self._questions, self._answers, *unwanted):
                    os.close(descriptor)  # questions end with the first process
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                _serve(are_equal, theirs, ours)
            finally:
                os._exit(0)
        os.close(theirs)
        os.close(ours)

    def ask(self, limit_s: float, pair: str) -> str:
        """A word. After ``late`` and ``lost`` it is gone."""
        try:
            os.write(self._questions, f"{limit_s} {pair}".encode())
            word = os.read(self._answers, 16).decode()
        except BrokenPipeError:
            word = ""
        if word in ("right", "wrong"):
            return word
        os.close(self._questions)
        os.close(self._answers)
        _, status = os.waitpid(self._pid, 0)
        return "late" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "lost"


def _serve(are_equal: Callable[[str, str], bool], questions: int, answers: int) -> None:
    """Answer until there is no more question, or something cannot be answered."""
    with open(questions, encoding="utf-8") as lines:
        for line in lines:
            limit_s, pair = line.split(" ", 1)
            signal.setitimer(signal.ITIMER_PROF, float(limit_s))
            try:
                word = "right" if are_equal(*json.loads(pair)) else "wrong"
            except (MemoryError, RecursionError):
                return
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(answers, word.encode())


if __name__ == "__main__":
    main(float(sys.argv[1]))
