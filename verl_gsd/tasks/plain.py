r"""Compares answers that need no computer algebra: numbers, and tuples and intervals of numbers, read exactly.

The comparison process takes milliseconds of CPU for two intervals. Most answers are of these forms, and here they take
microseconds. Answers of other forms, and answers that are only nearly equal, are left to that process.

The verdicts agree with its verdicts (``tests/unit/tasks/test_plain.py`` compares them), except for these readings:

- p% is p and also p/100.
- ``°`` is a degree.
- ``1\,000``, ``+1,000`` and ``1,000^\circ`` are a thousand, and 5 million is 5,000,000.
- Nearly equal means a small relative difference, so that 3e-19 is not 1e-19.

Units are dropped: 5 cm is 5. ``quantities.py`` has compared units before, if both answers have one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verl_gsd.tasks import units

#: The longest plain answer, in characters.
LONGEST = 200
#: An equation is split at no more signs of equality than this; the text after the last of them is one side.
MOST_SIDES = 9
#: If the absolute and the relative difference of two decimals are smaller, the comparison process may find them
#: equal, because it rounds to six places.
NEAR = Fraction(1, 10**5)

_SIZE_COMMAND = re.compile(r"\\(?:left|right)(?=[(\[)\]])|\\!")
#: ``1,000``, ``1{,}000`` or ``1\,000``, also with a decimal part, or digits alone. There are few enough digits for a
#: float to be exact.
_NUMBER = r"""
    (?P<grouped>[1-9][0-9]{0,2}(?:(?:,|\{,\}|\\,)[0-9]{3}){1,3}(?:\.[0-9]{1,6})?)(?![0-9])
    | (?P<decimal>[0-9]{0,9}\.[0-9]{1,30})(?![0-9]) | (?P<whole>[0-9]{1,30})(?![0-9./])
    | (?P<over>[0-9]{1,15})/(?P<under>[0-9]{1,15})
    | \\[dt]?frac\s*(?:\{\s*(?P<minus>-?)\s*(?P<top>[0-9]{1,15})\s*\}\s*\{\s*(?P<bottom>[0-9]{1,15})\s*\}
                      |(?P<top_digit>[0-9])(?P<bottom_digit>[0-9]))
"""
#: In the notation of ``notation.normalize_latex``.
_POWER = r"(?:\ \\times\ 10\^\{(?P<power>-?[0-9]{1,3})\})?"
_SUFFIX = r"(?:\s*(?P<percent>\\?%) | \s*\^\s*(?:\\circ|\{\s*\\circ\s*\}) | \s*° | (?P<words>.*?))"
_QUANTITY = re.compile(rf"(?:\\?\$\s*)?(?P<sign>[-+]?)\s*(?:\\?\$\s*)?(?:{_NUMBER}){_POWER}{_SUFFIX}\s*\$?", re.X)
_INFINITY = re.compile(r"([-+]?)\s*\\infty")
_ENCLOSED = re.compile(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])")


@dataclass(frozen=True)
class _PlainAnswer:
    """One number, or a tuple or interval of several.

    Attributes:
        values: the numbers; an infinity is a float.
        is_exact: whether none of the numbers is a decimal, which may be rounded.
        is_percent: whether the number is a percentage; ``values`` has it before the division by 100.
        brackets: the opening and the closing bracket; empty for one number.
        has_unit: whether a unit follows the number.
        rounding_error: half a unit in the last place of a decimal; 0 for an exact number.
    """

    values: tuple[Fraction | float, ...]
    is_exact: bool
    is_percent: bool = False
    brackets: str = ""
    has_unit: bool = False
    rounding_error: Fraction = Fraction(0)

    def number(self) -> tuple[Any, Fraction]:
        """The value of a single number, with a percentage divided by 100, and its rounding error."""
        scale = Fraction(1, 100) if self.is_percent else Fraction(1)
        return self.values[0] * scale, self.rounding_error * scale


def plain_equal(answer: str, truth: str) -> bool | None:
    """Whether two plain answers are equal; None if one of them is not plain, or if the comparison process decides."""
    left, right = _parse(answer), _parse(truth)
    if left is None or right is None or left.brackets != right.brackets:
        return None
    if len(left.values) != len(right.values) or _is_percent_of_unit(left, right):
        return False
    is_exact = left.is_exact and right.is_exact
    verdicts = [_same_value(a, b, is_exact) for a, b in zip(left.values, right.values, strict=True)]
    if left.is_percent != right.is_percent:  # both are single numbers
        a, b = (plain.values[0] / (100 if plain.is_percent else 1) for plain in (left, right))
        verdicts = [verdicts[0] or _same_value(a, b, is_exact)]
    return False if False in verdicts else None if None in verdicts else True


def _is_percent_of_unit(a: _PlainAnswer, b: _PlainAnswer) -> bool:
    """Whether one of two answers is a percentage, and the other has a unit: ``5\\%`` and ``5\\text{ people}``."""
    return a.is_percent != b.is_percent and (a.has_unit or b.has_unit)


def sides_contradict(left: str, right: str) -> bool:
    """Whether the equation of two plain numbers is false: they differ by more than their rounding errors.

    An equation with a unit on either side is not called false, because the units may differ.
    """
    a, b = _parse(left), _parse(right)
    if a is None or b is None or a.has_unit or b.has_unit or plain_equal(left, right) is not False:
        return False
    if a.brackets or b.brackets:
        return True
    (x, x_error), (y, y_error) = a.number(), b.number()
    return abs(x - y) > x_error + y_error


def equals_one_side(answer: str, truth: str) -> bool:
    """Whether ``answer`` is an equation of plain numbers with a side that equals ``truth``."""
    sides = answer.split("=", MOST_SIDES)
    return len(sides) > 1 and None not in map(_parse, sides) and any(plain_equal(side, truth) for side in sides)


def canonical(text: str) -> str:
    """The same text for all plain answers of equal value. Percentages and other answers are returned unchanged."""
    plain = _parse(text)
    return text if plain is None or plain.is_percent else f"{plain.brackets}{', '.join(map(str, plain.values))}"


def _same_value(a: Any, b: Any, is_exact: bool) -> bool | None:
    """Whether two fractions or infinities are equal; None if two inexact ones are nearly equal."""
    if a == b:
        return True
    difference, larger = abs(a - b), max(abs(a), abs(b))
    return False if is_exact or difference >= NEAR or difference >= NEAR * larger else None


def _parse(text: str) -> _PlainAnswer | None:
    if len(text) > LONGEST:
        return None
    text = _SIZE_COMMAND.sub("", text).strip()
    enclosed = _ENCLOSED.fullmatch(text)
    if enclosed is None:
        return _quantity(text)
    parts = [_infinity(part) or _quantity(part) for part in map(str.strip, enclosed[2].split(","))]
    numbers = [part for part in parts if part is not None and not part.is_percent]
    if len(numbers) < len(parts):
        return None
    values: tuple[Any, ...] = tuple(number.values[0] for number in numbers)
    brackets = enclosed[1] + enclosed[3]
    # All empty half-open intervals are equal, so they cannot be compared by their values.
    if brackets in ("(]", "[)") and not (len(values) == 2 and values[0] < values[1]):
        return None
    return _PlainAnswer(values, all(number.is_exact for number in numbers), brackets=brackets)


def _infinity(text: str) -> _PlainAnswer | None:
    match = _INFINITY.fullmatch(text)
    return match and _PlainAnswer((-math.inf if match[1] == "-" else math.inf,), is_exact=True)


def _quantity(text: str) -> _PlainAnswer | None:
    match = _QUANTITY.fullmatch(text)
    unit = units.parse_unit((match["words"] or "").rstrip()) if match else None
    if match is None or unit is None:
        return None
    factor, has_unit = unit
    digits = match["grouped"] or match["decimal"] or match["whole"]
    if digits:
        value = Fraction(re.sub(r"[^0-9.]", "", digits))
    else:
        top, bottom = (match[a] or match[b] or match[c] for a, b, c in (_TOP, _BOTTOM))
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    scale = factor * Fraction(10) ** int(match["power"] or 0)
    negative = (match["sign"] == "-") != (match["minus"] == "-")
    _, point, places = (digits or "").partition(".")
    return _PlainAnswer(
        (scale * (-value if negative else value),),
        is_exact=not point,
        is_percent=bool(match["percent"]),
        has_unit=has_unit,
        rounding_error=scale / 2 / 10 ** len(places) if point else Fraction(0),
    )


_TOP, _BOTTOM = ("over", "top", "top_digit"), ("under", "bottom", "bottom_digit")
