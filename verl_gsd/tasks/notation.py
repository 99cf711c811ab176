r"""Answers as math-verify reads them, and those it reads too kindly.

It takes the ``e`` of 4.5e33 for Euler's number, the right-hand side of any equation for the answer, so that 6 = 5 would
be a right 5, and a number's base for nothing.
"""

from __future__ import annotations

import re
from itertools import pairwise

from verl_gsd.tasks.plain import plain_equal

_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[eE]([-+]?[0-9]{1,3})(?![\w.])")
_TIMES = re.compile(r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{\s*([-+]?[0-9]{1,3})\s*\}|([0-9]))")
_ABOUT = re.compile(r"\s*(?:\\approx|\\simeq|≈)\s*")
_BASED = re.compile(r"[0-9]+_(?:[0-9]|\{[0-9]+\})")


def usual(text: str) -> str:
    r"""``4.5e33``, ``4.5×10^{33}`` and ``4.5 \cdot 10^33`` as ``4.5 \times 10^{33}``; without ``\approx`` in front."""
    text = _ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text
    text = _SCIENTIFIC.sub(lambda match: rf"{match[1]} \times 10^{{{int(match[2])}}}", text)
    return _TIMES.sub(lambda match: rf" \times 10^{{{int(match[1] or match[2])}}}", text).strip()


def is_wrong_by_sight(answer: str, truth: str) -> bool:
    """Whether ``answer`` is an equation of plain numbers that does not hold, or both are numbers written to a base,
    which stands below them, and are written otherwise."""
    if any(plain_equal(one, other) is False for one, other in pairwise(answer.split("="))):
        return True
    bases = [re.sub(r"[{}]", "", text) for text in (answer, truth) if _BASED.fullmatch(text)]
    return len(bases) == 2 and bases[0] != bases[1]
