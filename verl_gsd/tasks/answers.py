r"""Extracts the final answer of a response, for mathematics. Takes time linear in the length of any text.

The rules, in this order:

1. If there is a box, the last one is the answer, together with those that ``and``, ``or`` or a comma joins to it. If
   it is not closed or too long, the response has no answer. No other text is searched, because a response that was
   asked for a box must not be right by accident.
2. Without a box, the answer follows the last ``#### 12``, ``the answer is 12.`` or ``Answer: $x=3$``, whichever comes
   last. It is the mathematics in dollar signs right after it, or else the words up to the end of the sentence or line.
3. Without any of these, the whole text is the answer if it is one short line.

Under rules 2 and 3, a text of four or more words is prose and not an answer. The same holds for an equation with a word
in it, because its right-hand side could be taken for the answer. A number is never picked out of a text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

#: The longest answer in characters. A longer text is not an answer and is not examined.
LONGEST_ANSWER = 1000
#: The longest response, in characters, that as a whole can be the answer.
LONGEST_LINE = 100
#: A text without a box that has at least this many words is prose.
PROSE_WORDS = 4

#: A box, and its content if no brace follows: the authors of MATH also write ``\boxed 2``.
BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>[^\s{}$\\]+))")
#: What joins two boxes to one answer, and how many boxes one answer has at most.
_JOINS = re.compile(
    r"(?:\s|\$|\\[()\[\]]|\\[,;: ]|\\q?quad(?![A-Za-z]))*"
    r"(?:,|;|(?:,\s*)?(?:\\text\{\s*)?(?:and|or)(?:\s*\})?)(?:\s|\$|\\[()\[\]]|\\[,;: ]|\\q?quad(?![A-Za-z]))*"
)
MOST_BOXES = 10
#: A letter and an equals sign before a box: ``x=\boxed{4}, y=\boxed{9}`` is ``x=4, y=9``.
_NAME = re.compile(r"(?:[$(,;]|\s(?:and|or))\s*([A-Za-z])\s*=\s*$")
_LONGEST_NAME = 10
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
#: GSM8K's line, which must not be a Markdown heading, or words that announce an answer.
_ANNOUNCED = re.compile(
    r"^(?P<line>####)(?![#A-Za-z])(?![ \t]*[A-Za-z])[ \t]*|\banswer\b\**\s*(?:is\b|[:=])[\s:*]*", re.I | re.M
)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\\])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_SEPARATOR = re.compile(r"\s*(?:,(?:\s*(?:and|or)\b)?|and\b|or\b)\s*(?=\$|\\[(\[])")
_END_OF_SENTENCE = re.compile(r"\.(?=\s|\**$)|\n")
_WORD = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]{2,}")

_T = TypeVar("_T")


def final_answer(text: str) -> str | None:
    """The answer of a response by the rules above, stripped; None if there is none."""
    if BOX.search(text):
        return last_boxed(text)
    announced = _last(_ANNOUNCED.finditer(text))
    if announced is not None:
        rest = text[announced.end() : announced.end() + LONGEST_ANSWER + 1]
        if announced["line"]:
            return _clean_answer(rest.split("\n", 1)[0])
        return _clean_answer(rest, in_sentence=True)
    line = text.strip() if len(text) <= LONGEST_ANSWER else ""
    return _clean_answer(line) if len(line) <= LONGEST_LINE and "\n" not in line else None


def has_announcement(text: str) -> bool:
    """Whether words such as ``####`` or ``the answer is`` announce an answer in the text."""
    return _ANNOUNCED.search(text) is not None


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{}``, ``\fbox{}`` or ``\boxed x`` of a text, stripped.

    Boxes that only ``and``, ``or`` or a comma joins to the last one are one answer with it: ``\boxed{1} and
    \boxed{3}`` is ``1, 3``. If there is a letter before each of them, it is ``x=4, y=9``. None if there is no box, the
    braces of the last one do not close, or the answer has more than ``LONGEST_ANSWER`` characters.
    """
    contents: list[tuple[str, str]] = []  # with the names before them
    start_of_next = 0
    for box in reversed(deque(BOX.finditer(text), maxlen=MOST_BOXES)):
        content, end = _box_content(text, box)
        if contents and (end is None or end > start_of_next or not _JOINS.fullmatch(text, end, start_of_next)):
            break
        if content is None:
            return None
        name = _NAME.search(text, max(0, box.start() - _LONGEST_NAME), box.start())
        named = (name[1] if name else "", content)
        contents = contents if named in contents else [named, *contents]
        start_of_next = name.start(1) if name else box.start()
    names = {name for name, _ in contents}
    if "" not in names and len(names) == len(contents) > 1:
        joined = ", ".join(f"{name}={content}" for name, content in contents)
    else:
        joined = ", ".join(dict.fromkeys(content for _, content in contents))
    return joined if contents and len(joined) <= LONGEST_ANSWER else None


def _box_content(text: str, box: re.Match) -> tuple[str | None, int | None]:
    """The content of a box and where the box ends; None twice if its braces do not close within the longest answer."""
    if box["bare"] is not None:
        return box["bare"].rstrip(".,;"), box.end()
    depth = 1
    for brace in _BRACE.finditer(text, box.end(), box.end() + LONGEST_ANSWER + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)  # an escaped brace does not count
        if not depth:
            return text[box.end() : brace.start()].strip(), brace.end()
    return None, None


def _last(items: Iterable[_T]) -> _T | None:
    last = deque(items, maxlen=1)
    return last[0] if last else None


def _clean_answer(text: str, in_sentence: bool = False) -> str | None:
    """An answer without the dollar signs, asterisks and full stop around it.

    None if the text is prose, too long, or empty.
    """
    formulas, end = _leading_formulas(text)
    if formulas and (in_sentence or not text[end:].strip(". *")):
        return formulas
    if in_sentence:
        text = _END_OF_SENTENCE.split(text, maxsplit=1)[0]
    answer = text.strip("* ").rstrip(".").rstrip("* ")
    words = [word[0] for word in _WORD.finditer(answer) if not word[0].startswith("\\")]
    is_prose = len(words) >= PROSE_WORDS or ("=" in answer and not {"and", "or"}.issuperset(words))
    return answer if answer and len(answer) <= LONGEST_ANSWER and not is_prose else None


def _leading_formulas(text: str) -> tuple[str, int]:
    """The formulas in dollar signs that a text starts with, and where they end; ``$3$ and $4$`` become ``3, 4``."""
    formulas, end = [], 0
    separator: re.Match | None = None
    while formula := _FORMULA.match(text, separator.end() if separator else end):
        formulas.append(next(filter(None, formula.groups())).strip())
        end = formula.end()
        separator = _SEPARATOR.match(text, end)
        if separator is None:
            break
    return ", ".join(formulas), end
