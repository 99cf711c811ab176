"""Builds the prompts of judges and parses their answers. Both the graded texts and the answers are untrusted."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from importlib import resources
from string import Template

from verl_gsd.judge.scorer import HIGHEST, LOWEST, JudgementError, Question

#: File name (without .txt) in prompts/ of the prompt that asks for a score. It is part of the cache key: if you change
#: the text, create a file with a new name.
PROMPT_VERSION = "v1"
#: The same for the prompt that asks for right or wrong.
VERDICT_VERSION = "verdict_v1"

#: Only this many characters at the end of an answer are parsed.
_TAIL = 4096
_VERDICT = re.compile(r"(?:verdict\s*:\s*)?[*]*(correct|incorrect)[*]*\.?[*]*", re.ASCII | re.IGNORECASE)
#: An integer, also as 7/10, 7 out of 10, 7.0, \boxed{7} or in bold, alone or after the name of a grade. Stars are
#: limited, so that matching takes linear time.
_GRADE = re.compile(
    r"\*{0,3}(?:(?:final )?(?:score|rating|grade)\*{0,3}\s*[:=]\*{0,3}\s*\*{0,3})?"
    r"(?:(-?[0-9]+)(?:\.0+)?\*{0,3}(?:\s*/\s*10|\s+out\s+of\s+10)?|\\boxed\{(-?[0-9]+)(?:/10)?\})"
    r"\*{0,3}\.?\*{0,3}",
    re.ASCII | re.IGNORECASE,
)
#: Where a chat template's control token may begin: <|im_end|>, </s>, [/INST], <-hist->. If a text spells one out, the
#: tokenizer would treat it as a real control token, and the text after it would no longer belong to the user's message.
#: A bracket is left alone only where ordinary text has it: before white space, in <=, <>, << and "<- ", in [], and
#: before a digit, another bracket, or a single letter with an operator after it, except s, because of [s]. Before
#: anything else a token could begin, also before characters that tokenizers drop, such as zero-width spaces. Tokenizers
#: also turn the full-width and small forms into < and [.
_CONTROL = re.compile(
    r"[<＜﹤](?![ \t\r\n<＜﹤=>]|-(?:[ \t\r\n]|\Z)|\Z)"
    r"|[\[［﹇](?![ \t\r\n\d\]()\[{\\$]|[+\-.][\d\\]|[a-rt-zA-RT-Z](?:[\] \t\r\n,+\-*/^=()<>]|\Z)|\Z)"
)


def digest(*texts: str) -> bytes:
    """SHA-256 of these texts in this order (32 bytes). It depends on where one text ends and the next begins."""
    hasher = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(8, "big"))
        hasher.update(encoded)
    return hasher.digest()


def build_messages(question: Question, version: str = PROMPT_VERSION) -> list[dict[str, str]]:
    """The chat (system and user message) that asks about ``question`` with the prompt ``version``. Deterministic.

    Each text is enclosed by two lines that end with a mark which occurs in none of the texts. A space is inserted into
    control tokens that a text spells out, and characters that UTF-8 cannot encode become question marks.
    """
    texts = {
        "problem": _neutralize(question.problem),
        "reference": _neutralize(question.reference),
        "response": _neutralize(question.response),
    }
    system, user = _prompt(version)
    reference_status = "known" if question.reference else "there is none"
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user.substitute(texts, known=reference_status, mark=_mark(list(texts.values())))},
    ]


def parse_score(text: str) -> float:
    r"""The score in a judge's answer: a last line with only an integer or ``score: N``, or the "score" of an object.

    ``rating``, ``grade``, ``final`` before the name, and ``=`` are read, too. In the last line, the integer may be in
    bold, have only zeros after its point, be of ten (``7/10``, ``7 out of 10``), stand in ``\boxed{}``, and be followed
    by a full stop.

    Raises:
        JudgementError: "unreadable" if there is no such integer, "off_scale" if it is outside 0..10.
    """
    tail = text[-_TAIL:].strip()
    if tail.startswith("{") and tail.endswith("}") and len(text) <= _TAIL:
        score = _score_of_object(tail)
    else:
        match = _match_last_line(text, _GRADE)
        if match is None:
            raise JudgementError("unreadable", "the last line of the answer is not an integer")
        score = int(match[1] or match[2])
    if not LOWEST <= score <= HIGHEST:
        raise JudgementError("off_scale", f"the answer is an integer outside {LOWEST}..{HIGHEST}")
    return float(score)


def parse_verdict(text: str) -> bool:
    """The verdict in a verifier's answer: a last line with only ``Correct`` or ``Incorrect``.

    Raises:
        JudgementError: "unreadable" if the last line is neither.
    """
    match = _match_last_line(text, _VERDICT)
    if match is None:
        raise JudgementError("unreadable", "the last line of the answer is neither Correct nor Incorrect")
    return match[1].lower() == "correct"


def _match_last_line(text: str, pattern: re.Pattern) -> re.Match | None:
    """The match of ``pattern`` with the whole last line of an answer, or None."""
    _, newline, line = text[-_TAIL:].strip().rpartition("\n")
    # If the line began before the tail, only a part of it is known.
    return pattern.fullmatch(line.strip()) if newline or len(text) <= _TAIL else None


def _score_of_object(text: str) -> int:
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a list, so that a repeated key can be detected
    except (ValueError, RecursionError):
        pairs = []
    scores = [value for key, value in pairs if key == "score"]
    if len(scores) != 1 or type(scores[0]) is not int:
        raise JudgementError("unreadable", "the answer is not a JSON object with an integer as its score")
    return scores[0]


@functools.cache
def _prompt(version: str) -> tuple[str, Template]:
    file = resources.files("verl_gsd.judge") / "prompts" / f"{version}.txt"
    system, user = file.read_text("utf-8").split("=== user ===\n")
    return system.rstrip("\n"), Template(user.rstrip("\n"))


def _neutralize(text: str) -> str:
    """``text`` with control tokens broken up and without lone surrogates."""
    return _CONTROL.sub(r"\g<0> ", text.encode("utf-8", "replace").decode("utf-8"))


def _mark(texts: list[str]) -> str:
    """16 hexadecimal digits that occur in none of the texts."""
    mark = digest(*texts).hex()[:16]
    while any(mark in text for text in texts):
        mark = digest(mark, *texts).hex()[:16]
    return mark
