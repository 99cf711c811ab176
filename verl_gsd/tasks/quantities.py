r"""Reconciles the units of two answers. Units of different sizes are converted, units of different kinds contradict.

A unit counts only if both answers have one that stands in the tables: ``5 \text{ m}`` is 5, and it is not
``5 \text{ cm}``. Prefixes and symbols keep their case, since ``mW`` is not ``MW``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from verl_gsd.tasks.forms import split_currency
from verl_gsd.tasks.plain import LONGEST
from verl_gsd.tasks.units import words_conflict

_PREFIXES = {"": 0, "k": 3, "c": -2, "m": -3, "M": 6, "G": 9, "T": 12, "d": -1, "n": -9, "p": -12, "u": -6, "f": -15}
#: Symbols that take prefixes, in SI base units: (factor, kind).
_SYMBOLS: dict[str, tuple[Fraction | int, dict[str, int]]] = {
    "m": (1, {"m": 1}),
    "g": (Fraction(1, 1000), {"kg": 1}),
    "s": (1, {"s": 1}),
    "L": (Fraction(1, 1000), {"m": 3}),
    "l": (Fraction(1, 1000), {"m": 3}),
    "N": (1, {"kg": 1, "m": 1, "s": -2}),
    "J": (1, {"kg": 1, "m": 2, "s": -2}),
    "W": (1, {"kg": 1, "m": 2, "s": -3}),
    "Pa": (1, {"kg": 1, "m": -1, "s": -2}),
    "Hz": (1, {"s": -1}),
    "A": (1, {"A": 1}),
    "V": (1, {"kg": 1, "m": 2, "s": -3, "A": -1}),
    "C": (1, {"A": 1, "s": 1}),
    "K": (1, {"K": 1}),
    "mol": (1, {"mol": 1}),
    "eV": (Fraction(1602176634, 10**28), {"kg": 1, "m": 2, "s": -2}),
}
_LENGTH, _MASS, _TIME, _MONEY = {"m": 1}, {"kg": 1}, {"s": 1}, {"dollar": 1}
_WORDS: dict[str, tuple[Fraction | int, dict[str, int]]] = {
    "meter": (1, _LENGTH),
    "metre": (1, _LENGTH),
    "inch": (Fraction(254, 10**4), _LENGTH),
    "in": (Fraction(254, 10**4), _LENGTH),
    "foot": (Fraction(3048, 10**4), _LENGTH),
    "feet": (Fraction(3048, 10**4), _LENGTH),
    "ft": (Fraction(3048, 10**4), _LENGTH),
    "yard": (Fraction(9144, 10**4), _LENGTH),
    "yd": (Fraction(9144, 10**4), _LENGTH),
    "mile": (Fraction(1609344, 1000), _LENGTH),
    "mi": (Fraction(1609344, 1000), _LENGTH),
    "gram": (Fraction(1, 1000), _MASS),
    "pound": (Fraction(45359237, 10**8), _MASS),
    "lb": (Fraction(45359237, 10**8), _MASS),
    "ounce": (Fraction(45359237, 16 * 10**8), _MASS),
    "oz": (Fraction(45359237, 16 * 10**8), _MASS),
    "tonne": (1000, _MASS),
    "second": (1, _TIME),
    "sec": (1, _TIME),
    "minute": (60, _TIME),
    "min": (60, _TIME),
    "hour": (3600, _TIME),
    "hr": (3600, _TIME),
    "h": (3600, _TIME),
    "day": (86400, _TIME),
    "week": (604800, _TIME),
    "month": (1, {"month": 1}),
    "year": (12, {"month": 1}),
    "liter": (Fraction(1, 1000), {"m": 3}),
    "litre": (Fraction(1, 1000), {"m": 3}),
    "newton": (1, {"kg": 1, "m": 1, "s": -2}),
    "joule": (1, {"kg": 1, "m": 2, "s": -2}),
    "watt": (1, {"kg": 1, "m": 2, "s": -3}),
    "volt": (1, {"kg": 1, "m": 2, "s": -3, "A": -1}),
    "hertz": (1, {"s": -1}),
    "mph": (Fraction(1609344, 3600000), {"m": 1, "s": -1}),
    "kph": (Fraction(1000, 3600), {"m": 1, "s": -1}),
    "dollar": (1, _MONEY),
    "buck": (1, _MONEY),
    "cent": (Fraction(1, 100), _MONEY),
    "penny": (Fraction(1, 100), _MONEY),
    "euro": (1, {"euro": 1}),
    "rupee": (1, {"rupee": 1}),
    "yen": (1, {"yen": 1}),
    "ruble": (1, {"ruble": 1}),
    "degree": (1, {"degree": 1}),
    "radian": (1, {"radian": 1}),
    "rad": (1, {"radian": 1}),
    "celsius": (1, {"celsius": 1}),
    "fahrenheit": (1, {"fahrenheit": 1}),
}
_WORD_PREFIXES: dict[str, int] = {
    "kilo": 3,
    "centi": -2,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "mega": 6,
    "deci": -1,
    "giga": 9,
}
_POWER = r"(?:\s*\^\s*(?:\{?-?[1-4]\}?))?"
_IN_TEXT = rf"\\text\{{[^{{}}]*\}}{_POWER}"
_END = re.compile(
    r"(?P<number>.*?(?:[0-9})!]|[a-z](?=\s*\\text)))\s*(?P<unit>(?:\\mu\s*)?"
    rf"{_IN_TEXT}(?:\s*(?:(?:/|\\cdot)\s*)?{_IN_TEXT})*|\s[A-Za-zµ][A-Za-z /.]*(?:\^\{{?[1-4]\}}?)?)"
)
_COMPOUND = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*\\text\{([^{}0-9]+)\}")
#: Factors between two units with more digits than this are not computed. A response may put together units at will,
#: and Python prints at most 4,300 digits.
FACTOR_DIGITS = 200
#: ``3 m`` without ``\text`` is a product.
_ONE_LETTER = re.compile(r"\s*[A-Za-zµ](?:\^\{?[1-4]\}?)?")


@dataclass(frozen=True)
class Unit:
    """A unit in SI base units: ``factor`` times the product of the bases in ``kind`` with their exponents."""

    factor: Fraction
    kind: tuple[tuple[str, int], ...]


_PERCENT, _DEGREE, _RADIAN = (Unit(Fraction(1), ((name, 1),)) for name in ("percent", "degree", "radian"))
#: An angle with one sign of degrees, at its end.
_SIGN = re.compile(r"((?:(?!\\circ|°)[^,=])*[0-9)}])\s*(?:(?P<percent>\\?%)|\^\s*\{?\s*\\circ\s*\}?|°)")


def reconciled(answer: str, truth: str) -> tuple[str, str] | None:
    """Two answers in one unit and without it.

    None if their units are of different kinds or of absurd sizes, or if other words conflict.

    A sign of percent or degrees stays if only one of the two has it, because the comparison then reads it.
    """
    (number, unit), (other_number, other_unit) = _split(answer), _split(truth)
    if other_words_conflict(answer, truth):
        return None
    if unit is None or other_unit is None:
        return (answer, truth) if (unit or other_unit) in (_PERCENT, _DEGREE) else (number, other_number)
    if (unit, other_unit) == (_DEGREE, _RADIAN):
        return _in_radians(number), other_number
    if (unit, other_unit) == (_RADIAN, _DEGREE):
        return number, _in_radians(other_number)
    if unit.kind != other_unit.kind:
        return None
    if unit.factor == other_unit.factor:
        return number, other_number
    factor = unit.factor / other_unit.factor
    return None if _is_long(factor) else (_scaled(number, factor), other_number)


def _is_long(factor: Fraction) -> bool:
    return max(abs(factor.numerator), factor.denominator) >= 10**FACTOR_DIGITS


def other_words_conflict(answer: str, truth: str) -> bool:
    """Whether words that are not units of the tables on both sides leave it in doubt that two answers are equal."""
    (number, unit), (other_number, other_unit) = _split(answer), _split(truth)
    is_money = any(split_currency(text)[1] for text in (answer, truth))
    if unit is not None and other_unit is not None:
        answer, truth = number, other_number
    return words_conflict(answer, truth, is_money=is_money)


def _in_radians(degrees: str) -> str:
    return rf"({degrees}) \cdot \frac{{\pi}}{{180}}"


def _scaled(number: str, factor: Fraction) -> str:
    if re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", number):
        value = Fraction(number) * factor
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}".replace(r"\frac{-", r"-\frac{")
    return rf"({number}) \cdot \frac{{{factor.numerator}}}{{{factor.denominator}}}"


def _split(text: str) -> tuple[str, Unit | None]:
    bare, currency = split_currency(text)
    if currency:
        return bare, Unit(Fraction(1), ((currency, 1),))
    if sign := _SIGN.fullmatch(text):
        return sign[1].rstrip(), _PERCENT if sign["percent"] else _DEGREE
    if len(compound := _COMPOUND.findall(text)) > 1:
        return _compound(text, compound)
    is_one_value = "," not in text and len(text) <= LONGEST  # a list is compared part by part
    match = _END.fullmatch(text) if is_one_value else None
    unit = parse_unit(match["unit"]) if match and not _ONE_LETTER.fullmatch(match["unit"]) else None
    return (match["number"].strip(), unit) if match and unit else (text, None)


def _compound(text: str, parts: list[tuple[str, str]]) -> tuple[str, Unit | None]:
    """The sum of quantities of one kind, in the unit of the first: ``5 feet 6 inches``."""
    rest = _COMPOUND.sub("", text)
    units = [parse_unit(re.sub(r"\band\b|,", "", word)) for _, word in parts]
    if re.sub(r"\\text\{\s*(?:and|,)\s*\}|and|,|\s", "", rest) or None in units:
        return text, None
    first = units[0]
    assert first is not None
    factors = [unit.factor for unit in units if unit is not None and unit.kind == first.kind]
    if len(factors) < len(units) or any(larger <= smaller for larger, smaller in pairwise(factors)):
        return text, None  # 5 cm, 3 cm are two answers
    value = sum(
        (Fraction(number) * unit.factor for (number, _), unit in zip(parts, units, strict=True) if unit), Fraction(0)
    )
    factor = value / first.factor
    return (text, None) if _is_long(factor) else (_scaled("1", factor), first)


def parse_unit(text: str) -> Unit | None:
    r"""The unit in a text such as ``\text{ km/h}``, ``\mu \text{m}`` or ``square feet``; None for other words."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\mu\s*|µ\s*|μ\s*", "u", text).replace(r"\cdot", " ").replace("{", "").replace("}", "")
    text = re.sub(r"\bper\b", "/", text.replace("²", "^2").replace("³", "^3")).replace(".", "")
    factor, kind, sign, power = Fraction(1), dict[str, int](), 1, 1
    words = re.findall(r"[A-Za-z]+|/|\^\s*-?[0-9]", text)
    if not words or re.sub(r"[A-Za-z/^0-9\s-]", "", text) or words[-1] == "/":
        return None
    for place, word in enumerate(words):
        if word == "/":
            sign = -1
            continue
        if word.lower() in ("square", "sq", "cubic", "cu"):
            power = 2 if word.lower() in ("square", "sq") else 3
            continue
        if word.startswith("^") or word in ("squared", "cubed"):
            continue
        following = words[place + 1] if place + 1 < len(words) else ""
        if following.startswith("^"):
            power = int(following[1:])
        elif following in ("squared", "cubed"):
            power = 2 if following == "squared" else 3
        known = _known(word)
        if known is None:
            return None
        factor *= Fraction(known[0]) ** (sign * power)
        for base, exponent in known[1].items():
            kind[base] = kind.get(base, 0) + sign * power * exponent
        power = 1
    return (
        Unit(factor, tuple(sorted((base, exponent) for base, exponent in kind.items() if exponent))) if kind else None
    )


def _known(word: str) -> tuple[Fraction, dict[str, int]] | None:
    """Factor and kind of one symbol or word."""
    if word not in ("min", "h", "in", "ft", "yd", "mi", "cd", "pt"):
        for size in (0, 1):
            prefix, symbol = word[:size], word[size:]
            if prefix in _PREFIXES and symbol in _SYMBOLS:
                factor, kind = _SYMBOLS[symbol]
                return Fraction(factor) * Fraction(10) ** _PREFIXES[prefix], kind
    lower = word.lower()
    for name in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _WORDS:
            return Fraction(_WORDS[name][0]), _WORDS[name][1]
        for prefix, power in _WORD_PREFIXES.items():
            if name.startswith(prefix) and name[len(prefix) :] in _WORDS:
                factor, kind = _WORDS[name[len(prefix) :]]
                return Fraction(factor) * Fraction(10) ** power, kind
    return None


_CLOCK = re.compile(
    r"([01]?[0-9]|2[0-4])\s*(?:\{?:\}?)\s*([0-5][0-9])\s*(?:\\text\{\s*)?\s*(?:([ap])\.?\s?m\.?)?\s*\}?", re.I
)


def same_time(answer: str, truth: str) -> bool | None:
    """Whether two times of day are the same; None if one is not a time. ``3:30`` may be in either half of the day."""
    times = [_CLOCK.fullmatch(text.strip()) for text in (answer, truth)]
    if None in times:
        return None
    (hour, minute, half), (other_hour, other_minute, other_half) = (_time(time) for time in times if time)
    if (half is None) != (other_half is None) and max(hour, other_hour) <= 12:
        return (hour % 12, minute) == (other_hour % 12, other_minute)
    return (_hour(hour, half), minute) == (_hour(other_hour, other_half), other_minute)


def _time(match: re.Match) -> tuple[int, int, str | None]:
    return int(match[1]), int(match[2]), match[3].lower() if match[3] else None


def _hour(hour: int, half: str | None) -> int:
    return hour if half is None else hour % 12 + (12 if half == "p" else 0)
