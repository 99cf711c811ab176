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
from dataclasses import dataclass
from typing import Any

from verl_gsd.python_commands import module_command
from verl_gsd.tasks.answers import LONGEST_ANSWER, final_answer
from verl_gsd.tasks.answers import last_boxed as last_boxed  # code that reads reference solutions imports it from here
from verl_gsd.tasks.choice import chosen_letters
from verl_gsd.tasks.forms import is_restriction, split_qualifier
from verl_gsd.tasks.notation import is_trivially_wrong, normalize_latex
from verl_gsd.tasks.plain import equals_one_side, plain_equal
from verl_gsd.tasks.quantities import other_words_conflict, reconciled, same_time
from verl_gsd.tasks.screen import is_too_large

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

#: What decides about an answer, in the order in which it is tried.
RULES = {
    "no answer": "the response has no final answer, or a very long one",
    "same text": "the answer is the reference, apart from notation",
    "letters": "both are letters of options",
    "contradiction": "the answer is an equation that does not hold, or differs in a word that changes a value",
    "one side": "the answer is an equation of numbers that holds, and the reference is one side of it",
    "time": "both are times of day",
    "units": "both have a unit, and the units measure different things",
    "numbers": "both are numbers, or tuples or intervals of numbers, in the same unit",
    "algebra": "computer algebra compared both as mathematics",
    "doubtful": "one of the two is in words or could not be read as mathematics, and they differ; counts as wrong",
    "too large": "a number is too large to compute, or the reference is very long; unverified, counts as wrong",
    "no verdict": "the comparison took too long, or its process ended; unverified, counts as wrong",
}
#: A word of an answer, once the names of LaTeX commands are left out. Fewer letters may be a product of variables.
_COMMAND, _WORD = re.compile(r"\\[A-Za-z]+"), re.compile(r"[A-Za-z]{4}")


@dataclass(frozen=True)
class Decision:
    """How an answer compares with its reference.

    Attributes:
        right: None if the comparison failed, which counts as wrong.
        rule: what decided, a key of ``RULES``.
        answer: the final answer as normalised LaTeX: the reference if the answer is right, and empty if there is none.
    """

    right: bool | None
    rule: str
    answer: str

    @property
    def is_doubtful(self) -> bool:
        """Whether the answer counts as wrong although no rule was sure that it is."""
        return self.rule == "doubtful"


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

    def ask(self, answer: str, truth: str, timeout_s: float, alone: bool = False) -> str:
        """The process's reply: ``right``, ``wrong``, ``doubtful``, ``late`` or ``lost`` (see ``maths_worker.py``).

        ``stuck`` means that it did not reply in time, and an empty text that it has ended. In both cases it is of no
        further use.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, truth, alone]).encode() + b"\n")
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

_verdicts: OrderedDict[tuple[str, str], Future[str]] = OrderedDict()
_lock = threading.Lock()


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float | str]:
    r"""Verify one response. It is right if its final answer is mathematically equal to the reference answer.

    The signature is that of verl's reward functions. Any text is safe, from any thread.

    Args:
        ground_truth: LaTeX, without ``\boxed{}``.

    Returns:
        ``score`` and ``acc``, both 0.0 or both 1.0, ``unverified`` and ``doubtful``. ``unverified`` is 1.0 if the
        comparison failed, which counts as wrong: it took more than ``CPU_S`` seconds (less if recent comparisons did,
        too), its process ended, a number is too large, or the reference is too long. ``doubtful`` is 1.0 if the
        comparison ended and found the two different, but nothing is sure of it, which also counts as wrong: one of the
        two is in words, or is no mathematics that the verifier can read. ``answer`` is the final answer as normalised
        LaTeX: the reference answer if the response is right, so that equal answers in other words are not different,
        and empty if there is none.

    Raises:
        RuntimeError: the process that compares answers does not start.
    """
    decision = decide(solution_str, ground_truth)
    verdict = float(bool(decision.right))
    return {
        "score": verdict,
        "acc": verdict,
        "unverified": float(decision.right is None),
        "doubtful": float(decision.is_doubtful),
        "answer": decision.answer,
    }


def decide(response: Any, ground_truth: Any) -> Decision:
    """Compare the final answer of a response with the reference answer; arguments as for ``compute_score``.

    Raises:
        RuntimeError: the process that compares answers does not start.
    """
    answer = final_answer(response) if isinstance(response, str) else None
    return Decision(False, "no answer", "") if answer is None else compare(answer, str(ground_truth))


def compare(answer: str, truth: str) -> Decision:
    """Compare a final answer with the reference answer. Both are LaTeX without a box, of any length.

    Raises:
        RuntimeError: the process that compares answers does not start.
    """
    if len(answer) > LONGEST_ANSWER:
        return Decision(False, "no answer", "")
    answer = normalize_latex(answer.strip())
    if not answer:
        return Decision(False, "no answer", "")
    if len(truth) > LONGEST_ANSWER:
        logger.warning("a reference of %d characters is too long to compare; the answer counts as wrong", len(truth))
        return Decision(None, "too large", answer)
    truth = normalize_latex(truth.strip())
    right, rule = _verdict(answer, truth)
    return Decision(right, rule, truth if right else answer)


def _verdict(answer: str, truth: str) -> tuple[bool | None, str]:
    """Whether two answers in normal form are equal (None if this is unverified), and the rule that decided."""
    if answer == truth:
        return True, "same text"
    if (letters := chosen_letters(truth)) and (chosen := chosen_letters(answer, or_with_reason=True)):
        return chosen == letters, "letters"
    (answer, qualifier), (truth, other_qualifier) = split_qualifier(answer), split_qualifier(truth)
    if (qualifier and other_qualifier and qualifier != other_qualifier) or is_trivially_wrong(answer, truth):
        return False, "contradiction"
    if qualifier != other_qualifier and is_restriction(qualifier or other_qualifier):
        return False, "doubtful"
    if equals_one_side(answer, truth):
        return True, "one side"
    is_same_time = same_time(answer, truth)
    if is_same_time is not None:
        return is_same_time, "time"
    return _verdict_on_quantities(answer, truth)


def _verdict_on_quantities(answer: str, truth: str) -> tuple[bool | None, str]:
    """The same for answers without qualifiers, which may have units."""
    in_one_unit = reconciled(answer, truth)
    if in_one_unit is None:
        return False, "doubtful" if other_words_conflict(answer, truth) else "units"
    right = plain_equal(*in_one_unit)
    if right is not None:
        return right, "numbers"
    if any(map(is_too_large, in_one_unit)):
        return None, "too large"
    reply = _reply(*in_one_unit)
    if reply == "right":
        return True, "algebra"
    if reply == "doubtful" or (reply == "wrong" and (_is_in_words(answer) or _is_in_words(truth))):
        return False, "doubtful"
    return (False, "algebra") if reply == "wrong" else (None, "no verdict")


def is_right_by_math_verify(response: str, truth: str) -> bool | None:
    """The verdict of math-verify alone on a whole response, without any rule of this package; None if there is none.

    The settings are those of verl's reward function ``math_verify``. Verdicts are not cached.

    Raises:
        RuntimeError: the process that compares answers does not start.
    """
    return {"right": True, "wrong": False}.get(_ask(response, truth, alone=True))


def _is_in_words(text: str) -> bool:
    """Whether an answer has a word and no digit. The parser of LaTeX reads words as products of letters."""
    return _WORD.search(_COMMAND.sub("", text)) is not None and not any(map(str.isdigit, text))


def _reply(answer: str, truth: str) -> str:
    """What a comparison process says of a pair (see ``_Worker.ask``), asked once per pair."""
    with _lock:
        earlier = _verdicts.get((answer, truth))
        verdict = _verdicts.setdefault((answer, truth), earlier or Future())
        _verdicts.move_to_end((answer, truth))
        if len(_verdicts) > REMEMBERED:
            _verdicts.popitem(last=False)
    if earlier is None:
        try:
            reply = _ask(answer, truth)
            verdict.set_result(reply)
            if reply in ("lost", ""):  # this pair may not be the cause, so compare it again the next time
                _forget(answer, truth)
        except BaseException as error:
            verdict.set_exception(error)
            _forget(answer, truth)
    return verdict.result()


def _ask(answer: str, truth: str, alone: bool = False) -> str:
    worker = _idle.get()
    try:
        worker = worker or _Worker()
        reply = worker.ask(answer, truth, TIMEOUT_S, alone)
        if reply in ("stuck", ""):
            worker.kill()
            worker = None
    finally:
        _idle.put(worker)
    if reply not in ("right", "wrong", "doubtful") and not alone:
        logger.warning("an answer of %d characters could not be verified and counts as wrong", len(answer))
    return reply


def _forget(answer: str, truth: str) -> None:
    with _lock:
        _verdicts.pop((answer, truth), None)
