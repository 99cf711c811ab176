"""What a judge reads, and how its grade is read. The texts it grades are untrusted, and so is what it writes."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from importlib import resources
from string import Template

from verl_gsd.judge.scorer import HIGHEST, LOWEST, JudgementError, Question

#: The name of the file in prompts/. Scores are cached under it: a text that changes is a file of another name.
PROMPT_VERSION = "v1"
#: And of the one that asks for right or wrong.
VERDICT_VERSION = "verdict_v1"

#: Characters at the end of an answer that are looked at.
_TAIL = 4096
_VERDICT = re.compile(r"(?:verdict\s*:\s*)?[*]*(correct|incorrect)[*]*\.?[*]*", re.ASCII | re.IGNORECASE)
_GRADE = re.compile(r"(?:score\s*:\s*)?(-?[0-9]+)", re.ASCII | re.IGNORECASE)
#: Where a chat template's control token may begin: <|im_end|>, </s>, [/INST]. A tokenizer would take one that a text
#: spells out for the real thing, and what comes after it would no longer be the text of a user.
_CONTROL = re.compile(r"<(?=[|｜/\w])|\[(?=[|/]?[A-Za-z]\w{2,}\|?\])")


def digest(*texts: str) -> bytes:
    """32 bytes that stand for these texts in this order; where one ends and the next begins counts."""
    whole = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.digest()


def messages(question: Question, version: str = PROMPT_VERSION) -> list[dict[str, str]]:
    """The chat that asks for a grade, or for what the prompt ``version`` asks for, the same for the same question: a
    system message and one of the user.

    Each text lies between two lines that end with a mark that occurs in none of them. Control tokens spelled out in a
    text are broken by a space, and what UTF-8 cannot encode becomes a question mark.
    """
    texts = {
        "problem": _harmless(question.problem),
        "reference": _harmless(question.reference),
        "response": _harmless(question.response),
    }
    system, user = _prompt(version)
    known = "known" if question.reference else "there is none"
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user.substitute(texts, known=known, mark=_mark(list(texts.values())))},
    ]


def parse_score(text: str) -> float:
    """The grade in a judge's answer: its last line, an integer alone or ``score: N``, or a JSON object's "score".

    Raises:
        JudgementError: "unreadable" where there is no such integer, "off_scale" for one outside 0..10.
    """
    tail = text[-_TAIL:].strip()
    if tail.startswith("{") and tail.endswith("}") and len(text) <= _TAIL:
        score = _score_of_object(tail)
    else:
        match = _last_line(text, _GRADE)
        if match is None:
            raise JudgementError("unreadable", "the last line of the answer is no integer")
        score = int(match[1])
    if not LOWEST <= score <= HIGHEST:
        raise JudgementError("off_scale", f"the answer is an integer outside {LOWEST}..{HIGHEST}")
    return float(score)


def parse_verdict(text: str) -> bool:
    """The verdict in a verifier's answer: its last line, ``Correct`` or ``Incorrect``.

    Raises:
        JudgementError: "unreadable" where it is neither.
    """
    match = _last_line(text, _VERDICT)
    if match is None:
        raise JudgementError("unreadable", "the last line of the answer is neither Correct nor Incorrect")
    return match[1].lower() == "correct"


def _last_line(text: str, wanted: re.Pattern) -> re.Match | None:
    """The last line of an answer, if it is all of what is wanted."""
    _, newline, line = text[-_TAIL:].strip().rpartition("\n")
    # A line that began before the tail was not seen whole.
    return wanted.fullmatch(line.strip()) if newline or len(text) <= _TAIL else None


def _score_of_object(text: str) -> int:
    try:
        pairs = json.loads(text, object_pairs_hook=list)  # a key given twice stays visible
    except (ValueError, RecursionError):
        pairs = []
    scores = [value for key, value in pairs if key == "score"]
    if len(scores) != 1 or type(scores[0]) is not int:
        raise JudgementError("unreadable", "the answer is no JSON object with an integer as its score")
    return scores[0]


@functools.cache
def _prompt(version: str) -> tuple[str, Template]:
    file = resources.files("verl_gsd.judge") / "prompts" / f"{version}.txt"
    system, user = file.read_text("utf-8").split("=== user ===\n")
    return system.rstrip("\n"), Template(user.rstrip("\n"))


def _harmless(text: str) -> str:
    return _CONTROL.sub(r"\g<0> ", text.encode("utf-8", "replace").decode("utf-8"))


def _mark(texts: list[str]) -> str:
    """Sixteen hexadecimal digits that occur in none of the texts."""
    mark = digest(*texts).hex()[:16]
    while any(mark in text for text in texts):
        mark = digest(mark, *texts).hex()[:16]
    return mark
