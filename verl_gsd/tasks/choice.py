r"""The verifier of multiple choice (ARC-C, GPQA, MMLU-Pro): the letter a response decides for.

The letter is the last box's, ``\boxed{B}``, ``\boxed{\text{(B)}}``, ``\boxed{B. 42}``, ``\boxed{\text{Option B}}``,
``\boxed{B (42)}``; without any box that of the
last ``answer is (B)`` or ``Answer: B``. A capital counts where it cannot be a word: in brackets, or with nothing, a
mark, or a reason behind it; a response may be nothing else. Who names two has decided for none, and the text of an
option alone is no letter.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from verl_gsd.tasks.answers import BOX, last_boxed

LETTERS = "ABCDEFGHIJ"

_LETTER = r"(?:\(([A-J])\)|([A-J])(?=\s*(?:[.:;,()]|\\[,;:! ]|\\q?quad\b|$|(?:because|since|as|for)\b)))"
_AT_FIRST = re.compile(rf"(?:(?:option|choice|answer)\b[\s:]*)?(?-i:{_LETTER})", re.I | re.M)
_ALONE = re.compile(r"\(([A-J])\)|([A-J])\.?")
_ANNOUNCED = re.compile(
    rf"\b(?:answer|(?:right|correct) (?:option|choice))\s*(?:is\b|[:=])[\s:]*(?:(?:option|choice)\s)?(?-i:{_LETTER})",
    re.I | re.M,
)
#: What letters are dressed in.
_DRESS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|rm|bf)(?![A-Za-z])|\\[()]|[*${}]")
#: A second letter: who names two decides for none. ``A, I think`` is no second one, nor the ``F`` of ``C (5 F)``.
_ANOTHER = re.compile(
    r"[.)]*\s*(?:(?:,|/|;|&|\+|\bor\b|\band\b)\s*\(?(?!I\s[a-z])[A-J](?![A-Za-z])|\([A-J]\))"
    r"|[.)]*\s*:[^,;]*[,;]\s*\(?[A-J]\)?\s*:"
)


def compute_score(
    data_source: str, solution_str: Any, ground_truth: Any, extra_info: dict | None = None, **_: Any
) -> dict[str, float]:
    """Verify one response: right if it decides for the letter ``ground_truth``.

    The signature is the one verl calls reward functions with. Any text is safe, from any thread.

    Args:
        ground_truth: a letter, A to J.

    Returns:
        ``score`` and ``acc``, 0.0 or 1.0, the same; ``unverified``, which is 0.0: a letter can always be compared.

    Raises:
        ValueError: ``ground_truth`` is no such letter.
    """
    truth = str(ground_truth).strip()
    if len(truth) != 1 or truth not in LETTERS:
        raise ValueError(f"ground_truth={truth[:40]!r} of data_source={data_source}: write one letter, A to J")
    right = isinstance(solution_str, str) and final_letter(solution_str) == truth
    return {"score": float(right), "acc": float(right), "unverified": 0.0}


def final_letter(text: str) -> str | None:
    """The letter that a response decides for; None where it is not said."""
    if BOX.search(text):
        text = _DRESS.sub("", last_boxed(text) or "").strip()
        found = _AT_FIRST.match(text)
    else:
        text = _DRESS.sub("", text).strip()
        last = deque(_ANNOUNCED.finditer(text), maxlen=1)
        found = last[0] if last else _ALONE.fullmatch(text)
    if found is None or _ANOTHER.match(text, found.end()):
        return None
    return found[1] or found[2]
