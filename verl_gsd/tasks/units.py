r"""Reads the text after a number: words that multiply it, such as ``million``, and units, which are dropped."""

from __future__ import annotations

import re
from fractions import Fraction

_SCALES = {
    "dozen": Fraction(12),
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "lakh": Fraction(10**5),
    "million": Fraction(10**6),
    "crore": Fraction(10**7),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "tenths": Fraction(1, 10),
    "hundredths": Fraction(1, 100),
    "thousandths": Fraction(1, 1000),
}
_SCALES |= {f"{word}s": factor for word, factor in _SCALES.items() if not word.endswith("s")}
#: Words that multiply, deny, or turn the number before them. An answer with one is right only if the other has it too.
CHANGES_NUMBER = (
    r"bn|mil|mn|kilo|mega|giga|milli|ppm|ppb|tens|pairs?|couples?|gross|scores?|(?-i:[MB])"
    r"|[a-z]+(?:teenth|twelfth|elevenths?|twentieth|thirtieth|hundredth|millionth|billionth)s?|twelfths?|elevenths?"
    r"|doubled|halved|tripled|quadrupled|reciprocal|inverse|inverted|opposite|negated|negative"
    r"|incorrect|wrong|false|impossible|invalid|never|no|none|cannot|isn|untrue"
    r"|north(?:east|west|ern)?|south(?:east|west|ern)?|east(?:ern)?|west(?:ern)?|(?-i:N[EW]|S[EW])|left(?:wards?)?"
    r"|right(?:wards?)?|up(?:wards?)?|down(?:wards?)?|clockwise|counterclockwise|anticlockwise|counter|backwards?|forwards?"
    r"|(?-i:BCE?|AD|CE)|loss(?:es)?|profits?|gains?|debts?|owed|deficit|surplus|fewer|less|late|early|ago|before|after"
    r"|earlier|later|short|excess|decrease|increase|drop|rise"
)
#: Words after a number that are not units, because they change or restrict the number.
NOT_A_UNIT = re.compile(
    rf"{CHANGES_NUMBER}|"
    "and|or|to|than|through|if|when|where|unless|for|at|mod|modulo|base|squared|cubed|factorial|choose|times|plus|minus"
    "|over|too|most|least|not|below|above|under|except|remainder|double|triple|(?-i:k)|percent|percentage|pct|hundreds?|thousands?|lakhs?|crores?|millions?|billions?|trillions?|dozens?"
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
#: The longest answer whose words are compared, in characters.
LONGEST = 200
_CHANGES_NUMBER = re.compile(CHANGES_NUMBER, re.I)
#: Letters that multiply an amount of money.
_MONEY_FACTORS = {"K", "k", "M", "m", "B", "b", "T"}


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


#: Words that say only that a number counts or measures something.
_NEUTRAL = re.compile(
    r"units?|squared?|sq|cubic|cubed|\^[23]|ways?|times?|in|of|total|altogether|different|distinct|possible|such|the|are|is"
    r"|there|solutions?|values?|numbers?|points?|items?|objects?|things?|people|persons?|approx|exactly|about|whole|more",
    re.I,
)
_WORD_AFTER = re.compile(r"[A-Za-z]+|\^-?[0-9]|/")
_COMPASS = {"N": "north", "S": "south", "E": "east", "W": "west"}
_WORDS_AFTER = re.compile(
    r"(?<=[0-9A-Za-z)}\]!%$])\s*(?:\\[, ])?\s*"
    r"((?:\(?\\text\{[^{}]*\}\)?(?:\s*\^\s*(?:[0-9]|\{-?[0-9]\}))?[\s/]*)+)$"
)
_BARE_WORDS_AFTER = re.compile(r"(?<=[0-9)}])(\s+[A-Za-z]{2,}(?:[ /][A-Za-z]+)*)$")
_SEVERAL = re.compile(r",(?![0-9]{3}(?![0-9]))|;|\\(?:text\{\s*(?:or|and)\s*\}|or(?![a-z])|and(?![a-z]))")


def words_conflict(answer: str, truth: str, *, is_money: bool = False) -> bool:
    """Whether the words after two single values exclude that the values are equal, or leave it in doubt.

    A word on only one side is dropped, because the other may have left it out, unless it changes the number. Different
    words on both sides are in conflict: ``3 heads`` and ``3 tails``. Lists are compared part by part.

    Args:
        is_money: whether a value is an amount of money, after which ``K`` and ``M`` multiply.
    """
    if len(answer) > LONGEST or len(truth) > LONGEST or _SEVERAL.search(answer) or _SEVERAL.search(truth):
        return False
    words, other_words = _words_after(answer), _words_after(truth)
    if words == other_words:
        return False
    on_one_side = {*words} ^ {*other_words}
    if any(map(_CHANGES_NUMBER.fullmatch, on_one_side)) or (is_money and on_one_side & _MONEY_FACTORS):
        return True
    rest, other_rest = ([word for word in side if not _NEUTRAL.fullmatch(word)] for side in (words, other_words))
    return bool(rest and other_rest) and rest != other_rest


def _words_after(text: str) -> list[str]:
    """The words after a value, long ones in lower case and singular; symbols of units keep their case."""
    found = _WORDS_AFTER.search(text) or _BARE_WORDS_AFTER.search(text)
    if found is None:
        return []
    words = _WORD_AFTER.findall(re.sub(r"[{}]|\\text", " ", found[1]).replace("^ ", "^"))
    if words and words[-1] in _COMPASS and (len(words) > 1 or text[: found.start()].endswith(("circ", "circ}", "°"))):
        words[-1] = _COMPASS[words[-1]]  # alone, N and W are units
    words = [word if len(word) < 4 else word.lower().removesuffix("s") for word in words]
    return [word for word in words if word not in _SCALES]


def value_changing_words(text: str) -> set[str]:
    """The words after numbers that change the number's value. Units are dropped; these are not."""
    return set(_VALUE_CHANGING.findall(text))
