r"""Answers as math-verify reads them, and those it reads too kindly.

It takes the ``e`` of 4.5e33 for Euler's number, the right-hand side of any equation for the answer, so that 6 = 5 would
be a right 5, and a number's base, a.m. and p.m. for nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise

from verl_gsd.tasks import units
from verl_gsd.tasks.plain import MOST_SIDES, contradict

_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))[eE]([-+]?[0-9]{1,3})(?![\w.])")
_TIMES = re.compile(
    r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{\s*([-+]?[0-9]{1,3})\s*\}|([-+]?[0-9]{1,3})(?![0-9]))"
)
_ABOUT = re.compile(r"\s*(?:\\approx|\\simeq|≈)\s*")
#: All of an answer, where a number is in it; a word alone is a text to math-verify.
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}0-9]*[0-9][^{}]*)\}")
_PERIODIC = re.compile(r"(?<![\w.])([0-9]{0,9})\.([0-9]{0,9})\\overline\{([0-9]{1,9})\}")
_BASED = re.compile(r"[0-9]+_(?:[0-9]|\{[0-9]+\})")
_HALF_OF_DAY = re.compile(r"[0-9]\W*(?:text\W*)?([ap])\.?\s?m\b", re.I)


def usual(text: str) -> str:
    r"""One way of writing what has several.

    ``4.5e33``, ``4.5×10^{33}`` and ``4.5 \cdot 10^33`` as ``4.5 \times 10^{33}``; ``0.1\overline{6}`` as
    ``\frac{15}{90}``; without ``\approx`` in front, a full stop behind, or ``\text`` about it all; ``~`` as a space.
    """
    text = _ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text
    text = text.replace("~", " ").strip()
    if whole := _TEXT.fullmatch(text):
        text = whole[1].strip()
    text = text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
    text = _PERIODIC.sub(_fraction, text)
    text = _SCIENTIFIC.sub(lambda match: rf"{match[1]} \times 10^{{{int(match[2])}}}", text)
    return _TIMES.sub(lambda match: rf" \times 10^{{{int(match[1] or match[2])}}}", text).strip()


def _fraction(periodic: re.Match) -> str:
    whole, once, again = periodic.groups()
    top = int(whole + once + again) - int(whole + once or "0")
    return rf"\frac{{{top}}}{{{'9' * len(again)}{'0' * len(once)}}}"


def is_wrong_by_sight(answer: str, truth: str) -> bool:
    """Whether ``answer`` is an equation of plain numbers that does not hold, or both are numbers written to a base,
    which stands below them, and are written otherwise; or one is in the morning and the other is not; or a word behind
    a number of one alone makes another number of it, as ``squared`` does."""
    if any(contradict(one, other) for one, other in pairwise(answer.split("=", MOST_SIDES))):
        return True
    bases = [re.sub(r"[{}]", "", text) for text in (answer, truth) if _BASED.fullmatch(text)]
    halves = [half[1].lower() for half in map(_HALF_OF_DAY.search, (answer, truth)) if half]
    is_other = any(len(two) == 2 and two[0] != two[1] for two in (bases, halves))
    return is_other or units.changing(answer) != units.changing(truth)
