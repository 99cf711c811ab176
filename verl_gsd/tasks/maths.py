r"""The verifier for mathematics: compares the final answer of a response with the reference answer.

``answers.py`` extracts the answer: the last ``\boxed{}``, or the answer that a response without a box announces.
``notation.py`` and ``forms.py`` bring both texts into one notation, and ``quantities.py`` their units into one unit.
Plain numbers are compared here (``plain.py``), towers of powers are not compared (``screen.py``), and ``compare.py``
compares everything else. docs/verifier.md says what counts as equal.

``compare.py`` runs in separate processes (``maths_worker.py``), because sympy may take forever and use all memory on
text that a policy wrote. The processes are few and reused. Their memory and CPU time are limited, and they are
killed if they do not reply.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import select
import subprocess
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from verl_gsd.python_commands import module_command
from verl_gsd.tasks.answers import LONGEST_ANSWER, final_answer
from verl_gsd.tasks.answers import last_boxed as last_boxed  # code that reads reference solutions imports it from here
from verl_gsd.tasks.choice import chosen_letters
from verl_gsd.tasks.forms import split_qualifier
from verl_gsd.tasks.notation import is_trivially_wrong, normalize_latex
from verl_gsd.tasks.plain import equals_one_side, plain_equal
from verl_gsd.tasks.quantities import reconciled, same_time
from verl_gsd.tasks.screen import is_too_large

#: Numbers without a unit.
_NUMBER = re.compile(r"[-0-9.,/ ]+")

logger = logging.getLogger(__name__)

#: CPU seconds per comparison, after which an answer stays unverified. A comparison that succeeds takes about 0.1 s.
CPU_S = 2.0
#: Seconds of wall-clock time per comparison, after which the process counts as dead.
TIMEOUT_S = 60.0
#: Seconds until a new process must be ready.
START_S = 120.0
#: Comparison processes per reward worker of verl. Further comparisons wait for a free process.
PROCESSES = 2
#: Pairs whose verdict is cached, time-outs included. A group of equal answers therefore costs one comparison.
REMEMBERED = 8192


class _Worker:
    """A process that compares pairs of answers, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            module_command("verl_gsd.tasks.maths_worker", str(CPU_S)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self._read(START_S) != "ready":
            self.kill()
            raise RuntimeError(
                "The process that compares answers did not start; its error message is above. Install math-verify if "
                "it is missing"
            )

    def ask(self, answer: str, truth: str, timeout_s: float) -> str:
        """The process's reply: ``right``, ``wrong``, ``late`` or ``lost`` (see ``maths_worker.py``).

        ``stuck`` means that it did not reply in time, and an empty text that it has ended. In both cases it is of no
        further use.
        """
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
        """One line of output. Lines are short and written at once, so reading does not block once data is available."""
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
) -> dict[str, float | str]:
    r"""Verify one response. It is right if its final answer is mathematically equal to the reference answer.

    The signature is that of verl's reward functions. Any text is safe, from any thread.

    Args:
        ground_truth: LaTeX, without ``\boxed{}``.

    Returns:
        ``score`` and ``acc``, both 0.0 or both 1.0, and ``unverified``. ``unverified`` is 1.0 if the comparison failed,
        which counts as wrong: it took more than ``CPU_S`` seconds (less if recent comparisons did, too), its process
        ended, one of the two numbers is too large, or the reference is too long. ``answer`` is the final answer as
        normalised LaTeX: the reference answer if the response is right, so that equal answers in other words are not
        different, and empty if there is none.

    Raises:
        RuntimeError: the process that compares answers does not start.
    """
    answer, truth = final_answer(solution_str) if isinstance(solution_str, str) else None, str(ground_truth).strip()
    if answer is None or len(answer) > LONGEST_ANSWER:
        return _scores(False, "")
    if len(truth) > LONGEST_ANSWER:
        logger.warning(
            "a reference of %d characters is too long to be compared; the answer counts as wrong", len(truth)
        )
        return _scores(None, normalize_latex(answer))
    answer, truth = normalize_latex(answer), normalize_latex(truth)
    right = _verdict(answer, truth)
    return _scores(right, truth if right else answer)


def _verdict(answer: str, truth: str) -> bool | None:
    """Whether two answers in normal form are equal; None if they could not be compared."""
    if answer == truth:
        return True
    if (letters := chosen_letters(truth)) and (chosen := chosen_letters(answer, or_with_reason=True)):
        return chosen == letters
    (answer, qualifier), (truth, other_qualifier) = split_qualifier(answer), split_qualifier(truth)
    if (qualifier and other_qualifier and qualifier != other_qualifier) or is_trivially_wrong(answer, truth):
        return False
    if equals_one_side(answer, truth):
        return True
    right = plain_equal(answer, truth) if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(truth) else None
    if right is not None:
        return right
    right = same_time(answer, truth)
    if right is not None:
        return right
    reconciled_pair = reconciled(answer, truth)
    if reconciled_pair is None:
        return False
    answer, truth = reconciled_pair
    right = plain_equal(answer, truth)
    if right is None and not (is_too_large(answer) or is_too_large(truth)):
        right = _are_equal(answer, truth)
    return right


def _are_equal(answer: str, truth: str) -> bool | None:
    """The verdict of the comparison process, computed once per pair; None if there is none."""
    with _lock:
        earlier = _verdicts.get((answer, truth))
        verdict = _verdicts.setdefault((answer, truth), earlier or Future())
        _verdicts.move_to_end((answer, truth))
        if len(_verdicts) > REMEMBERED:
            _verdicts.popitem(last=False)
    if earlier is None:
        try:
            verdict.set_result(_compare(answer, truth))
        except BaseException as error:
            verdict.set_exception(error)
            _forget(answer, truth)
    return verdict.result()


def _compare(answer: str, truth: str) -> bool | None:
    worker = _idle.get()
    try:
        worker = worker or _Worker()
        reply = worker.ask(answer, truth, TIMEOUT_S)
        if reply in ("stuck", ""):
            worker.kill()
            worker = None
    finally:
        _idle.put(worker)
    if reply not in ("right", "wrong"):
        logger.warning("an answer of %d characters could not be verified and counts as wrong", len(answer))
    if reply in ("lost", ""):  # this pair may not be the cause, so compare it again the next time
        _forget(answer, truth)
    return {"right": True, "wrong": False}.get(reply)


def _forget(answer: str, truth: str) -> None:
    with _lock:
        _verdicts.pop((answer, truth), None)


def _scores(right: bool | None, answer: str) -> dict[str, float | str]:
    verdict = float(bool(right))
    return {"score": verdict, "acc": verdict, "unverified": float(right is None), "answer": answer}
