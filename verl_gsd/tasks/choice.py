r"""The verifier for multiple choice (ARC-C, GPQA, MMLU-Pro): extracts the letter that a response chooses.

The letter is in the last box: ``\boxed{B}``, ``\boxed{\text{(B)}}``, ``\boxed{B. 42}``,
``\boxed{\text{Option B}}``, ``\boxed{B (42)}``. Without a box it follows the last ``answer is (B)`` or ``Answer: B``,
or the response is the letter alone.

A capital counts only if it cannot be a word: in brackets, or followed by nothing, a punctuation mark or a reason. A
response that names two letters chooses none. The text of an option without its letter does not count.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from verl_gsd.tasks.answers import BOX, last_boxed

LETTERS = "ABCDEFGHIJ"

#: A dash after the letter needs two words after it, because ``A - B`` is a difference.
_REASON = r"\s*(?:[.:;,()]|\\[,;:! ]|\\q?quad\b|$|[-–—]+\s+[A-Za-z]+\s[A-Za-z]|(?:because|since|as|for)\b)"
_LETTER = rf"(?:\(([A-J])\)|([A-J])(?={_REASON}))"
_AT_START = re.compile(rf"(?:(?:option|choice|answer)\b[\s:]*)?(?-i:{_LETTER})", re.I | re.M)
_ALONE = re.compile(r"\(([A-J])\)|([A-J])\.?")
_ANNOUNCED = re.compile(
    rf"\b(?:answer|(?:right|correct) (?:option|choice))\s*(?:is\b|[:=])[\s:]*(?:(?:option|choice)\s)?(?-i:{_LETTER})",
    re.I | re.M,
)
#: Markup around letters.
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|rm|bf)(?![A-Za-z])|\\[()]|[*${}]")
#: A second letter after the first. ``A, I think`` has no second letter, and neither has ``C (5 F)``.
_SECOND_LETTER = re.compile(
    r"[.)]*\s*(?:(?:,|/|;|&|\+|\bor\b|\band\b)\s*\(?(?!I\s[a-z])[A-J](?![A-Za-z])|\([A-J]\))"
    r"|[.)]*\s*:[^,;]*[,;]\s*\(?[A-J]\)?\s*:"
)


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float | str]:
    """Verify one response. It is right if it chooses the letter ``ground_truth``.

    The signature is that of verl's reward functions. Any text is safe, from any thread.

    Args:
        ground_truth: a letter, A to J.

    Returns:
        ``score`` and ``acc``, both 0.0 or both 1.0. ``unverified`` and ``doubtful`` are always 0.0, because letters
        can be compared. ``answer`` is the letter, and empty if the response chooses none.

    Raises:
        ValueError: ``ground_truth`` is not such a letter.
    """
    truth = str(ground_truth).strip()
    if len(truth) != 1 or truth not in LETTERS:
        raise ValueError(
            f"ground_truth={truth[:40]!r} of data_source={data_source}: not a letter from A to J. Set ground_truth to "
            "one letter, or use another reward function"
        )
    letter = final_letter(solution_str) if isinstance(solution_str, str) else None
    right = float(letter == truth)
    return {"score": right, "acc": right, "unverified": 0.0, "doubtful": 0.0, "answer": letter or ""}


def final_letter(text: str) -> str | None:
    """The letter that a response chooses; None if it chooses none."""
    if BOX.search(text):
        text = _MARKUP.sub("", last_boxed(text) or "").strip()
        letter = _AT_START.match(text)
    else:
        text = _MARKUP.sub("", text).strip()
        last = deque(_ANNOUNCED.finditer(text), maxlen=1)
        letter = last[0] if last else _ALONE.fullmatch(text)
    if letter is None or _SECOND_LETTER.match(text, letter.end()):
        return None
    return letter[1] or letter[2]


_LETTERS_ONLY = re.compile(r"\(?[A-J]\)?(?:[\s,]*(?:and\s+)?\(?[A-J]\)?)*")


#: A small letter needs a bracket, because it may also be a variable.
_IN_BRACKETS = re.compile(r"\(?([a-j])\)|\[([A-Ja-j])\]")


_SEPARATED = re.compile(r"\(?[A-J]\)?(?:(?:\s*,\s*(?:and\s+)?|\s*and\s+)\(?[A-J]\)?)+")


def chosen_letters(answer: str, or_with_reason: bool = False) -> tuple[str, ...]:
    r"""The letters of options that an answer names, in order; empty if it is not letters of options.

    ``\text{(B)}`` and ``A, C, D`` are. A single letter without brackets is, if it is a capital up to J. Several letters
    need to be different, and in order if nothing separates them, because ``BA`` may also be a product.

    Args:
        or_with_reason: whether the text of the option may follow the letter: ``(D) 12``, ``E - a score``. The letter
            may then also be a small one with a bracket, ``(d)``, or stand in square brackets.
    """
    text = _MARKUP.sub("", answer).strip(" .")
    if _LETTERS_ONLY.fullmatch(text):
        letters = tuple(re.findall("[A-J]", text))
        in_order = tuple(sorted(set(letters)))
        return in_order if letters == in_order or (_SEPARATED.fullmatch(text) and len(in_order) == len(letters)) else ()
    if or_with_reason and (bracketed := _IN_BRACKETS.fullmatch(text)):
        return ((bracketed[1] or bracketed[2]).upper(),)
    letter = final_letter(rf"\boxed{{{answer}}}") if or_with_reason else None
    return (letter,) if letter else ()
