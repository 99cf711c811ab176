r"""Reads the text after a number: words that multiply it, such as ``million``, and units, which are dropped."""

from __future__ import annotations

import re
from fractions import Fraction

_SCALES = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "tenths": Fraction(1, 10),
    "hundredths": Fraction(1, 100),
    "thousandths": Fraction(1, 1000),
}
#: Words after a number that are not units, because they change or restrict the number.
NOT_A_UNIT = re.compile(
    "and|or|to|than|through|if|when|where|unless|for|at|mod|modulo|base|squared|cubed|factorial|choose|times|plus|minus"
    "|over|too|most|least|not|below|above|under|except|remainder|double|triple|(?-i:k)|percent|percentage|pct|hundred|thousand|million|billion|trillion|dozen"
    "|hal(?:f|ves)|quarters?|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s?"
    "|pi|alpha|beta|gamma|theta|sin|cos|tan|log|ln|exp|sqrt|infinity",
    re.I,
)
#: Units of two letters. Outside ``\text``, any other two letters are a product of variables.
_SHORT_UNIT = re.compile("cm|mm|km|kg|mg|ml|ft|in|lb|oz|mi|hr|yd|am|pm", re.I)
_POWER = r"(?:\^(?:[23]|\{[23]\})|[²³])?"
_IN_TEXT = re.compile(rf"(?:\\[,\ ])?\s*\\(?:text|mathrm)\{{\s*([A-Za-z][A-Za-z /.]*)\}}{_POWER}")
_BARE = re.compile(rf"\s+([A-Za-z][A-Za-z /.]*){_POWER}")
_VALUE_CHANGING = re.compile(
    r"[0-9](?:\\[,\ ])?\s*(?:\\(?:text|mathrm)\{\s*)?(squared|cubed|base|if|mod|modulo|factorial)\b"
)
#: The longest unit, in characters.
_LONGEST = 40


def parse_unit(text: str) -> tuple[Fraction, bool] | None:
    r"""The factor by which a text multiplies the number before it, and whether the text has a unit.

    ``\text{ million people}`` gives (1,000,000, True). The result is None if the text is not only factors and a unit:
    ``pi``, ``or more``, ``\text{ if even}``. A unit is one or more words. Inside ``\text`` the first word has at least
    two letters. Outside it has at least three, or is a common short unit, because ``3 xy`` is a product.
    """
    if not text:
        return Fraction(1), False
    in_text = _IN_TEXT.fullmatch(text)
    match = in_text or _BARE.fullmatch(text)
    if match is None or len(match[1]) > _LONGEST:
        return None
    words = re.findall("[A-Za-z]+", match[1].replace(".", "").lower())
    factor = Fraction(1)
    while words and words[0] in _SCALES:
        factor *= _SCALES[words.pop(0)]
    if not words:
        return factor, False
    if len(words) > 1 and words[-1] in ("squared", "cubed"):  # part of the unit before it; alone it is not a unit
        words.pop()
    is_long = len(words[0]) >= (2 if in_text else 3) or _SHORT_UNIT.fullmatch(words[0])
    return (factor, True) if is_long and not any(map(NOT_A_UNIT.fullmatch, words)) else None


def value_changing_words(text: str) -> set[str]:
    """The words after numbers that change the number's value. Units are dropped; these are not."""
    return set(_VALUE_CHANGING.findall(text))
