r"""Answers that need no computer algebra: numbers, and tuples and intervals of numbers, read exactly.

math-verify takes 2 ms of CPU for two integers and 80 ms for two intervals; most answers are these, and here they take
microseconds. What is not of these forms, or only nearly equal, is left to math-verify. Where an answer is given, it is
math-verify's (``tests/unit/tasks/test_plain.py`` compares), but in these readings of ours: p% is p and also p/100,
``°`` is a degree, ``1\,000``, ``+1,000`` and ``1,000^\circ`` are a thousand, 5 million is 5,000,000, and nearly equal
is a matter of proportion, so that 3e-19 is not 1e-19. Units are dropped, as math-verify drops them: 5 cm is 5.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verl_gsd.tasks import units

#: Of more characters than this nothing is plain.
LONGEST = 200
#: Of more signs of equality than this, what stands behind is no plain side.
MOST_SIDES = 9
#: Decimals that differ by less, and by a smaller part of the larger, may be one and the same to math-verify, which
#: rounds to six places.
NEAR = Fraction(1, 10**5)

_SIZED = re.compile(r"\\(?:left|right)(?=[(\[)\]])|\\!")
#: ``1,000``, ``1{,}000``, ``1\,000``, also with a decimal part, or digits alone, few enough to be exact as a float too.
_NUMBER = r"""
    (?P<grouped>[1-9][0-9]{0,2}(?:(?:,|\{,\}|\\,)[0-9]{3}){1,3}(?:\.[0-9]{1,6})?)(?![0-9])
    | (?P<decimal>[0-9]{0,9}\.[0-9]{1,30})(?![0-9]) | (?P<whole>[0-9]{1,30})(?![0-9./])
    | (?P<over>[0-9]{1,15})/(?P<under>[0-9]{1,15})
    | \\[dt]?frac\s*(?:\{\s*(?P<minus>-?)\s*(?P<top>[0-9]{1,15})\s*\}\s*\{\s*(?P<bottom>[0-9]{1,15})\s*\}
                      |(?P<top_digit>[0-9])(?P<bottom_digit>[0-9]))
"""
#: As ``notation.usual`` writes it.
_POWER = r"(?:\ \\times\ 10\^\{(?P<power>-?[0-9]{1,3})\})?"
_SUFFIX = r"(?:\s*(?P<percent>\\?%) | \s*\^\s*(?:\\circ|\{\s*\\circ\s*\}) | \s*° | (?P<words>.*?))"
_QUANTITY = re.compile(rf"(?:\\?\$\s*)?(?P<sign>[-+]?)\s*(?:\\?\$\s*)?(?:{_NUMBER}){_POWER}{_SUFFIX}\s*\$?", re.X)
_INFINITY = re.compile(r"([-+]?)\s*\\infty")
_ENCLOSED = re.compile(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])")


@dataclass(frozen=True)
class _Plain:
    """What a text says: one number, or several between ``brackets``; an infinity is a float."""

    values: tuple[Fraction | float, ...]
    is_exact: bool  # no number is a decimal, of which math-verify makes a float
    is_percent: bool = False
    brackets: str = ""
    has_unit: bool = False
    rounded: Fraction = Fraction(0)  # half a unit of the last place of a decimal

    def number(self) -> tuple[Any, Fraction]:
        """Its one value, of a percentage the hundredth, and by how much rounding may have moved it."""
        scale = Fraction(1, 100) if self.is_percent else Fraction(1)
        return self.values[0] * scale, self.rounded * scale


def plain_equal(answer: str, truth: str) -> bool | None:
    """Whether two plain answers are equal; None where one is not plain, or where math-verify has to decide."""
    one, other = _read(answer), _read(truth)
    if one is None or other is None or one.brackets != other.brackets:
        return None
    if len(one.values) != len(other.values):
        return False
    is_exact = one.is_exact and other.is_exact
    verdicts = [_same(a, b, is_exact) for a, b in zip(one.values, other.values, strict=True)]
    if one.is_percent != other.is_percent:  # of one number each
        a, b = (plain.values[0] / (100 if plain.is_percent else 1) for plain in (one, other))
        verdicts = [verdicts[0] or _same(a, b, is_exact)]
    return False if False in verdicts else None if None in verdicts else True


def contradict(one: str, other: str) -> bool:
    """Whether an equation of these two sides does not hold: plain numbers that differ by more than the places they are
    written to can say. With a unit on one side they may be of different units, and hold."""
    a, b = _read(one), _read(other)
    if a is None or b is None or a.has_unit or b.has_unit or plain_equal(one, other) is not False:
        return False
    if a.brackets or b.brackets:
        return True
    (x, x_rounded), (y, y_rounded) = a.number(), b.number()
    return abs(x - y) > x_rounded + y_rounded


def is_side(answer: str, truth: str) -> bool:
    """Whether ``answer`` is an equation of plain numbers, and ``truth`` equal to one of its sides."""
    sides = answer.split("=", MOST_SIDES)
    return len(sides) > 1 and None not in map(_read, sides) and any(plain_equal(side, truth) for side in sides)


def canonical(text: str) -> str:
    """A text that plain answers of one value share; any other, and a percentage, as it is."""
    plain = _read(text)
    return text if plain is None or plain.is_percent else f"{plain.brackets}{', '.join(map(str, plain.values))}"


def _same(a: Any, b: Any, is_exact: bool) -> bool | None:
    """Of two fractions, or infinities."""
    if a == b:
        return True
    difference, larger = abs(a - b), max(abs(a), abs(b))
    return False if is_exact or difference >= NEAR or difference >= NEAR * larger else None


def _read(text: str) -> _Plain | None:
    if len(text) > LONGEST:
        return None
    text = _SIZED.sub("", text).strip()
    enclosed = _ENCLOSED.fullmatch(text)
    if enclosed is None:
        return _quantity(text)
    parts = [_infinity(part) or _quantity(part) for part in map(str.strip, enclosed[2].split(","))]
    read = [part for part in parts if part is not None and not part.is_percent]
    if len(read) < len(parts):
        return None
    values: tuple[Any, ...] = tuple(part.values[0] for part in read)
    brackets = enclosed[1] + enclosed[3]
    # A half-open interval that is empty equals every other.
    if brackets in ("(]", "[)") and not (len(values) == 2 and values[0] < values[1]):
        return None
    return _Plain(values, all(part.is_exact for part in read), brackets=brackets)


def _infinity(text: str) -> _Plain | None:
    found = _INFINITY.fullmatch(text)
    return found and _Plain((-math.inf if found[1] == "-" else math.inf,), is_exact=True)


def _quantity(text: str) -> _Plain | None:
    found = _QUANTITY.fullmatch(text)
    behind = units.read((found["words"] or "").rstrip()) if found else None
    if found is None or behind is None:
        return None
    digits = found["grouped"] or found["decimal"] or found["whole"]
    if digits:
        value = Fraction(re.sub(r"[^0-9.]", "", digits))
    else:
        top, bottom = (found[a] or found[b] or found[c] for a, b, c in (_TOP, _BOTTOM))
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    scale = behind[0] * Fraction(10) ** int(found["power"] or 0)
    negative = (found["sign"] == "-") != (found["minus"] == "-")
    _, point, places = (digits or "").partition(".")
    return _Plain(
        (scale * (-value if negative else value),),
        is_exact=not point,
        is_percent=bool(found["percent"]),
        has_unit=behind[1],
        rounded=scale / 2 / 10 ** len(places) if point else Fraction(0),
    )


_TOP, _BOTTOM = ("over", "top", "top_digit"), ("under", "bottom", "bottom_digit")
