r"""Where a response says what its answer is. Linear in its length, whatever it is: a policy wrote it.

Our reading, for mathematics:

1. The last box. One that is not closed, or holds too much, is no answer, and nothing else is looked for: who was asked
   for a box and wrote prose is not right by accident.
2. Without any box the last line ``#### 12``, or the last ``the answer is 12.`` or ``Answer: $x=3$``, whichever comes
   later: what stands in dollars right behind it, or the words up to the end of the sentence or line.
3. Without these the whole text, where it is one short line.

Under 2 and 3 a text of four words or more is prose and no answer, and so is an equation with a word in it: math-verify
takes the right-hand side of any. A number is never picked out of a text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

#: An answer of more characters than this is no answer and is not looked at.
LONGEST_ANSWER = 1000
#: A response that is its answer has at most as many characters.
LONGEST_LINE = 100
#: From so many words on, a text without a box is prose.
PROSE = 4

#: A box, and where no brace follows, what stands in it: authors of MATH write ``\boxed 2`` too.
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
#: GSM8K's line, which is not a heading of Markdown; or words that announce an answer.
_ANNOUNCED = re.compile(
    r"^(?P<line>####)(?![#A-Za-z])(?![ \t]*[A-Za-z])[ \t]*|\banswer\b\**\s*(?:is\b|[:=])[\s:*]*", re.I | re.M
)
_IN_MATHS = re.compile(r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_BETWEEN_MATHS = re.compile(r"\s*(?:,(?:\s*(?:and|or)\b)?|and\b|or\b)\s*(?=\$|\\[(\[])")
_END_OF_SENTENCE = re.compile(r"\.(?=\s|\**$)|\n")
_WORD = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]{2,}")

_T = TypeVar("_T")


def final_answer(text: str) -> str | None:
    """The answer of a response, stripped, by the reading above; None where it gives none."""
    if BOX.search(text):
        return last_boxed(text)
    announced = _last(_ANNOUNCED.finditer(text))
    if announced is not None:
        rest = text[announced.end() : announced.end() + LONGEST_ANSWER + 1]
        return _stated(rest.split("\n", 1)[0]) if announced["line"] else _stated(rest, in_a_sentence=True)
    line = text.strip() if len(text) <= LONGEST_ANSWER else ""
    return _stated(line) if len(line) <= LONGEST_LINE and "\n" not in line else None


def last_boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{}``, ``\fbox{}`` or ``\boxed x`` of a text, stripped; None where there is none, its
    braces do not close, or it has more than ``LONGEST_ANSWER`` characters."""
    box = _last(BOX.finditer(text))
    if box is None:
        return None
    if box["bare"] is not None:
        return box["bare"].rstrip(".,;")
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), box.end() + LONGEST_ANSWER + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped one is a letter
        if not depth:
            return text[box.end() : brace.start()].strip()
    return None


def _last(found: Iterable[_T]) -> _T | None:
    kept = deque(found, maxlen=1)
    return kept[0] if kept else None


def _stated(text: str, in_a_sentence: bool = False) -> str | None:
    """An answer without the dollars, stars and full stop around it; None for prose, too long a text, or nothing."""
    in_maths, end = _maths(text)
    if in_maths and (in_a_sentence or not text[end:].strip(". *")):
        return in_maths
    if in_a_sentence:
        text = _END_OF_SENTENCE.split(text, maxsplit=1)[0]
    answer = text.strip("* ").rstrip(".").rstrip("* ")
    words = [word[0] for word in _WORD.finditer(answer) if not word[0].startswith("\\")]
    is_prose = len(words) >= PROSE or ("=" in answer and not {"and", "or"}.issuperset(words))
    return answer if answer and len(answer) <= LONGEST_ANSWER and not is_prose else None


def _maths(text: str) -> tuple[str, int]:
    """The formulas in dollars that a text opens with, ``$3$ and $4$`` as ``3, 4``, and where they end."""
    formulas, end = [], 0
    between: re.Match | None = None
    while formula := _IN_MATHS.match(text, between.end() if between else end):
        formulas.append(next(filter(None, formula.groups())).strip())
        end = formula.end()
        between = _BETWEEN_MATHS.match(text, end)
        if between is None:
            break
    return ", ".join(formulas), end
