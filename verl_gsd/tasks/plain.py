r"""Answers that need no computer algebra: numbers, and tuples and intervals of numbers, read exactly.

math-verify takes 2 ms of CPU for two integers and 80 ms for two intervals; most answers are these, and here they take
microseconds. What is not of these forms, or only nearly equal, is left to math-verify. Where an answer is given, it is
math-verify's (``tests/test_plain.py`` compares), but in three readings of ours: p% is p and also p/100, ``°`` is a
degree, and ``1\,000``, ``+1,000`` and ``1,000^\circ`` are a thousand. Units are dropped, as math-verify drops them:
5 cm is 5.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

#: Of more characters than this nothing is plain.
LONGEST = 200
#: Decimals that differ by less may be one and the same to math-verify, which rounds to six places.
NEAR = Fraction(1, 10**5)

_SIZED = re.compile(r"\\(?:left|right)(?=[(\[)\]])|\\!")
#: ``1,000``, ``1{,}000``, ``1\,000``, also with a decimal part, or digits alone, few enough to be exact as a float too.
_NUMBER = r"""
    (?P<grouped>[1-9][0-9]{0,2}(?:(?:,|\{,\}|\\,)[0-9]{3}){1,3}(?:\.[0-9]{1,6})?)
    | (?P<decimal>[0-9]{0,9}\.[0-9]{1,6}) | (?P<whole>[0-9]{1,30})(?!\.|/)
    | (?P<over>[0-9]{1,15})/(?P<under>[0-9]{1,15})
    | \\[dt]?frac\s*(?:\{\s*(?P<minus>-?)\s*(?P<top>[0-9]{1,15})\s*\}\s*\{\s*(?P<bottom>[0-9]{1,15})\s*\}
                      |(?P<top_digit>[0-9])(?P<bottom_digit>[0-9]))
"""
#: Percent, degrees, or a unit of words; ``and``, ``or`` and a percent in words are none.
_SUFFIX = r"""
    (?P<percent>\\?%)?
    | \^\s*(?:\\circ|\{\s*\\circ\s*\}) | °
    | (?:\\[,\ ])?\s*\\(?:text|mathrm)\{\s*(?!(?:[A-Za-z .]*\ )?(?:and|or|pct|percent|percentage)[\ }])
      [A-Za-z]{2}[A-Za-z .]{0,18}\}(?:\^[23])?
"""
_QUANTITY = re.compile(rf"(?:\\?\$\s*)?(?P<sign>[-+]?)\s*(?:\\?\$\s*)?(?:{_NUMBER})\s*(?:{_SUFFIX})\$?", re.X)
_INFINITY = re.compile(r"([-+]?)\s*\\infty")
_ENCLOSED = re.compile(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])")


@dataclass(frozen=True)
class _Plain:
    """What a text says: one number, or several between ``brackets``; an infinity is a float."""

    values: tuple[Fraction | float, ...]
    is_exact: bool  # no number is a decimal, of which math-verify makes a float
    is_percent: bool = False
    brackets: str = ""


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


def canonical(text: str) -> str:
    """A text that plain answers of one value share; any other, and a percentage, as it is."""
    plain = _read(text)
    return text if plain is None or plain.is_percent else f"{plain.brackets}{', '.join(map(str, plain.values))}"


def _same(a: Fraction | float, b: Fraction | float, is_exact: bool) -> bool | None:
    if a == b:
        return True
    difference: Any = a - b
    return False if is_exact or abs(difference) >= NEAR else None


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
    if found is None:
        return None
    digits = found["grouped"] or found["decimal"] or found["whole"]
    if digits:
        value = Fraction(re.sub(r"[^0-9.]", "", digits))
    else:
        top, bottom = (found[a] or found[b] or found[c] for a, b, c in (_TOP, _BOTTOM))
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    negative = (found["sign"] == "-") != (found["minus"] == "-")
    return _Plain((-value if negative else value,), not (digits and "." in digits), bool(found["percent"]))


_TOP, _BOTTOM = ("over", "top", "top_digit"), ("under", "bottom", "bottom_digit")
