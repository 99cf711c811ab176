r"""Rewrites answers into a uniform notation, and rejects answers that the parser of LaTeX misreads.

The parser takes the ``e`` of 4.5e33 for Euler's number, and it could take the right-hand side of an equation:
6 = 5 would count as a right 5. It ignores the base of a number, a.m. and p.m.
"""

from __future__ import annotations

import functools
import re
from itertools import pairwise

from verl_gsd.tasks import units
from verl_gsd.tasks.forms import latex_form
from verl_gsd.tasks.plain import MOST_SIDES, sides_contradict

_SCIENTIFIC = re.compile(r"(?<![\w.\\])([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))[eE]([-+]?[0-9]{1,3})(?![\w.])")
_TIMES = re.compile(
    r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{\s*([-+]?[0-9]{1,3})\s*\}|([-+]?[0-9]{1,3})(?![0-9]))"
)
_APPROXIMATELY = re.compile(r"\s*(?:\\approx|\\simeq|≈)\s*")
#: A whole answer inside ``\text``, with a number in it. An answer without digits is text.
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}0-9]*[0-9][^{}]*)\}")
_PERIODIC = re.compile(r"(?<![\w.])([0-9]{0,9})\.([0-9]{0,9})\\overline\{([0-9]{1,9})\}")
_BASED = re.compile(r"[0-9]+_(?:[0-9]|\{[0-9]+\})")
_INTEGER = re.compile(r"-?[0-9]+")
_HALF_OF_DAY = re.compile(r"[0-9]\W*(?:text\W*)?([ap])\.?\s?m\b", re.I)


@functools.lru_cache(4096)  # the responses to a prompt share a reference, and often an answer
def normalize_latex(text: str) -> str:
    r"""An answer in a uniform notation.

    - ``4.5e33``, ``4.5×10^{33}`` and ``4.5 \cdot 10^33`` become ``4.5 \times 10^{33}``.
    - ``0.1\overline{6}`` becomes ``\frac{15}{90}``.
    - A leading ``\approx``, a final full stop and a ``\text`` around the whole answer are removed.
    - ``~`` becomes a space.
    """
    text = _APPROXIMATELY.sub("", text, count=1) if _APPROXIMATELY.match(text) else text
    if _INTEGER.fullmatch(text):
        return text
    text = latex_form(text)
    if in_text := _TEXT.fullmatch(text):
        text = in_text[1].strip()
    text = text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
    text = _PERIODIC.sub(_periodic_as_fraction, text)
    text = _SCIENTIFIC.sub(lambda match: rf"{match[1]} \times 10^{{{int(match[2])}}}", text)
    return _TIMES.sub(lambda match: rf" \times 10^{{{int(match[1] or match[2])}}}", text).strip()


def _periodic_as_fraction(periodic: re.Match) -> str:
    whole, fixed, repeating = periodic.groups()
    numerator = int(whole + fixed + repeating) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{'9' * len(repeating)}{'0' * len(fixed)}}}"


def is_trivially_wrong(answer: str, truth: str) -> bool:
    """Whether ``answer`` is wrong in one of these ways, before they are parsed:

    - It is an equation of plain numbers that does not hold.
    - Both are numbers with a subscript base, and digits or base differ.
    - One is a.m. and the other p.m.
    - A word such as ``squared`` changes the value of a number in only one of them.
    """
    if any(sides_contradict(left, right) for left, right in pairwise(answer.split("=", MOST_SIDES))):
        return True
    based_numbers = [re.sub(r"[{}]", "", text) for text in (answer, truth) if _BASED.fullmatch(text)]
    day_halves = [match[1].lower() for match in map(_HALF_OF_DAY.search, (answer, truth)) if match]
    differ = any(len(pair) == 2 and pair[0] != pair[1] for pair in (based_numbers, day_halves))
    return differ or units.value_changing_words(answer) != units.value_changing_words(truth)
