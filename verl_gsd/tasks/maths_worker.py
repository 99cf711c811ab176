"""The process that compares two answers by computer algebra (``compare.py``).

It reads one JSON pair per line and prints one reply per line. A reply is ``right``, ``wrong``, ``doubtful`` (one of the
two could not be read as mathematics), ``late`` (the comparison exceeded its CPU time) or ``lost`` (it ended its
process). A pair is a final answer and its reference. With a third element, true, it is a whole response and its
reference, which math-verify compares without our rules.

This process imports sympy and then only forks. A fork compares one pair after the other until something goes wrong,
which ends the fork; a new one takes milliseconds. The limit is CPU time, so that a busy machine makes no answer wrong.
The kernel counts it and ends the fork by SIGPROF, even within a single Python operation on large integers.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence

#: Address space in bytes. On ``9^{9^{9^9}}`` sympy would use all memory.
MEMORY = 4 << 30
#: How many comparisons count as recent.
RECENT = 100
#: The shortest limit of a comparison, in CPU seconds.
LEAST_S = 0.25
#: Typical pairs: a fraction, a surd, an interval, a union, a polynomial, a set, an equation, a matrix, a word.
#: Comparing them first fills caches that every fork then shares.
_WARM_UP_PAIRS = (
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

#: Compares an answer with its reference; None if it is not sure that they differ.
Comparison = Callable[[str, str], bool | None]
_REPLIES = {True: "right", False: "wrong", None: "doubtful"}


def main(limit_s: float) -> None:
    """Reply to pairs until the input ends.

    Args:
        limit_s: CPU seconds per comparison.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what sympy and math-verify print must not mix with the replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    from verl_gsd.tasks import math_verify_alone  # noqa: F401  so that forks need not import it
    from verl_gsd.tasks.compare import are_equal  # after the limits are set

    for pair in _WARM_UP_PAIRS:
        are_equal(*pair)
    print("ready", file=answers, flush=True)
    fork, recent = None, deque[bool](maxlen=RECENT)
    for line in sys.stdin:
        fork = fork or _Fork(are_equal, unwanted=(0, answers.fileno()))
        reply = fork.ask(current_limit_s(limit_s, sum(recent)), line)
        if reply in ("late", "lost"):
            fork = None
        recent.append(reply == "late")
        print(reply, file=answers, flush=True)


def current_limit_s(limit_s: float, late: int) -> float:
    """The limit in CPU seconds if ``late`` of the recent comparisons were late.

    The limit shrinks, so that a batch of only such answers does not take too long. It stays long enough for nearly all
    answers that can be compared at all.
    """
    return max(min(LEAST_S, limit_s), limit_s / (1 + late))


class _Fork:
    """A fork of this process that compares one pair after the other.

    Args:
        unwanted: file descriptors that the fork closes, so that only the first process holds them open.
    """

    def __init__(self, are_equal: Comparison, unwanted: Sequence[int]) -> None:
        fork_reads, self._questions = os.pipe()
        self._answers, fork_writes = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                for descriptor in (self._questions, self._answers, *unwanted):
                    os.close(descriptor)  # so that the fork's input ends when the first process ends
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                _serve(are_equal, fork_reads, fork_writes)
            finally:
                os._exit(0)
        os.close(fork_reads)
        os.close(fork_writes)

    def ask(self, limit_s: float, pair: str) -> str:
        """The reply to one pair. The fork has ended after ``late`` and ``lost``."""
        try:
            os.write(self._questions, f"{limit_s} {pair}".encode())
            reply = os.read(self._answers, 16).decode()
        except BrokenPipeError:
            reply = ""
        if reply in _REPLIES.values():
            return reply
        os.close(self._questions)
        os.close(self._answers)
        _, status = os.waitpid(self._pid, 0)
        return "late" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "lost"


def _serve(are_equal: Comparison, questions: int, answers: int) -> None:
    """Reply to pairs until the input ends, or until a comparison runs out of memory or recursion depth."""
    from verl_gsd.tasks.math_verify_alone import is_right as is_right_alone

    with open(questions, encoding="utf-8") as lines:
        for line in lines:
            limit_s, pair = line.split(" ", 1)
            signal.setitimer(signal.ITIMER_PROF, float(limit_s))
            try:
                answer, truth, *alone = json.loads(pair)
                reply = _REPLIES[(is_right_alone if any(alone) else are_equal)(answer, truth)]
            except (MemoryError, RecursionError):
                return
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(answers, reply.encode())


if __name__ == "__main__":
    main(float(sys.argv[1]))
