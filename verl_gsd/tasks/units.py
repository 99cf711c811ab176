r"""What stands behind a number: a word that multiplies it, a unit, which is dropped, or something that is neither."""

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
#: Words that make something else of a number than so many of a thing.
_NO_UNIT = re.compile(
    "and|or|to|than|through|if|when|where|for|mod|modulo|base|squared|cubed|factorial|choose|times|plus|minus|over"
    "|percent|percentage|pct|pi|alpha|beta|gamma|theta|sin|cos|tan|log|ln|exp|sqrt|infinity",
    re.I,
)
#: Units of two letters. Any other two, with no ``\text`` about them, are a product of variables.
_SHORT = re.compile("cm|mm|km|kg|mg|ml|ft|in|lb|oz|mi|hr|yd|am|pm", re.I)
_POWER = r"(?:\^(?:[23]|\{[23]\})|[²³])?"
_IN_TEXT = re.compile(rf"(?:\\[,\ ])?\s*\\(?:text|mathrm)\{{\s*([A-Za-z][A-Za-z /.]*)\}}{_POWER}")
_BARE = re.compile(rf"\s+([A-Za-z][A-Za-z /.]*){_POWER}")
_CHANGING = re.compile(r"[0-9](?:\\[,\ ])?\s*(?:\\(?:text|mathrm)\{\s*)?(squared|cubed|base|if|mod|modulo|factorial)\b")
#: Of more characters than this nothing is a unit.
_LONGEST = 40


def read(text: str) -> tuple[Fraction, bool] | None:
    r"""The factor, and whether there is a unit: ``\text{ million people}`` is (1,000,000, True).

    None where it is more than that: ``pi``, ``or more``, ``\text{ if even}``. A unit is a word or several, the first of
    two letters or more; without ``\text`` about them of three, or a common short one, for ``3 xy`` is a product.
    """
    if not text:
        return Fraction(1), False
    in_text = _IN_TEXT.fullmatch(text)
    found = in_text or _BARE.fullmatch(text)
    if found is None or len(found[1]) > _LONGEST:
        return None
    words = re.findall("[A-Za-z]+", found[1].replace(".", "").lower())
    factor = Fraction(1)
    while words and words[0] in _SCALES:
        factor *= _SCALES[words.pop(0)]
    if not words:
        return factor, False
    if len(words) > 1 and words[-1] in ("squared", "cubed"):  # of what stands before; alone it is no unit
        words.pop()
    is_long = len(words[0]) >= (2 if in_text else 3) or _SHORT.fullmatch(words[0])
    return (factor, True) if is_long and not any(map(_NO_UNIT.fullmatch, words)) else None


def changing(text: str) -> set[str]:
    """Words behind numbers that change their value, and that math-verify drops like a unit."""
    return set(_CHANGING.findall(text))
