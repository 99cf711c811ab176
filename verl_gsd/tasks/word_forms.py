r"""Normal forms of answers in words: names of sets, numbers, ordinals, dates, yes and no.

Each function handles one kind of words and leaves other texts unchanged. ``in_usual_words`` applies all of them. They
read whole answers, so that a word in the middle of mathematics keeps its meaning.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\\[,;: ]|~|\s)+")
#: The longest answer that counts as words, in characters.
_LONGEST = 200

_IN = r"(?:[a-z]\s*\\in\s*)?"
_EMPTY = re.compile(
    rf"{_IN}\\(?:varnothing|emptyset)|\\\{{\s*\\\}}|(?:the )?(?:empty|null) set"
    r"|(?:there (?:are|is) )?no (?:real )?solutions?(?: exists?)?",
    re.I,
)
_NOWHERE = re.compile(r"(?:the limit )?(?:does not exist|doesn't exist)|DNE|d\.n\.e", re.I)
_BOARD = r"\\math(?:bb|bf)\s*\{?\s*"
_ALL = r"(?:the )?(?:set of )?(?:all )?(?:the )?"
_REALS = re.compile(
    rf"{_IN}(?:{_BOARD}R\s*\}}?|\\R|\(\s*-\s*\\infty\s*,\s*\+?\s*\\infty\s*\))"
    rf"|{_ALL}real numbers|all reals|all real (?:numbers|values)(?: of)? ?\$?[a-z]?\$?",
    re.I,
)
_POSITIVE_INTEGERS = re.compile(
    rf"{_IN}(?:{_BOARD}Z\s*\}}?\s*(?:\^\s*\{{?\s*\+\s*\}}?|_\s*\{{?\s*>\s*0\s*\}}?)|{_BOARD}N\s*\}}?\s*\^\s*\{{?\s*[+*]\s*\}}?)"
    rf"|{_ALL}positive integers",
    re.I,
)
_INTEGERS = re.compile(rf"{_IN}{_BOARD}Z\s*\}}?|{_ALL}integers", re.I)
_RATIONALS = re.compile(rf"{_IN}{_BOARD}Q\s*\}}?|{_ALL}rational numbers|all rationals", re.I)
_SETS = (
    (_EMPTY, r"\emptyset"),
    (_NOWHERE, r"\text{DNE}"),
    (_REALS, r"\mathbb{R}"),
    (_POSITIVE_INTEGERS, r"\mathbb{Z}^{+}"),
    (_INTEGERS, r"\mathbb{Z}"),
    (_RATIONALS, r"\mathbb{Q}"),
)


def named_set(words: str) -> str | None:
    """One notation for the empty set, a limit that does not exist, and the sets of numbers; None for other words."""
    return next((latex for pattern, latex in _SETS if pattern.fullmatch(words)), None)


_SMALL = {
    word: number
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_ORDINALS = {
    word: number
    for number, word in enumerate(
        [
            "first",
            "second",
            "third",
            "fourth",
            "fifth",
            "sixth",
            "seventh",
            "eighth",
            "ninth",
            "tenth",
            "eleventh",
            "twelfth",
        ],
        start=1,
    )
}
_ORDINAL_DIGITS = re.compile(r"([1-9][0-9]{0,3})\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?")
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
_PARTS |= {word + ending: number for word, number in _ORDINALS.items() if number > 2 for ending in ("", "s")}
_FRACTION = re.compile(r"([A-Za-z]+)[ -]([A-Za-z]+)")


def whole_number(words: str) -> int | None:
    """A whole number below a million in words: ``twenty-five``; None for other words."""
    pieces = words.lower().replace("-", " ").replace(" and ", " ").split()
    if not pieces or len(pieces) > 12:
        return None
    total = group = 0
    last = 0  # the size of the word before, which decides what may follow it
    for word in pieces:
        if word in _SMALL and (last in (0, 100, 1000) or (last == 10 and 0 < _SMALL[word] < 10)):
            group, last = group + _SMALL[word], 1
        elif word in _TENS and last in (0, 100, 1000):
            group, last = group + _TENS[word], 10
        elif word == "hundred" and last == 1 and 0 < group < 10:
            group, last = group * 100, 100
        elif word == "thousand" and last in (1, 10, 100) and not total:
            total, group, last = group * 1000, 0, 1000
        else:
            return None
    return total + group


def number_in_words(words: str) -> str | None:
    """A number in words as LaTeX: whole numbers, fractions such as ``three-fourths``, and ordinals."""
    if (number := whole_number(words)) is not None:
        return str(number)
    if words.lower() in _ORDINALS:
        return rf"{_ORDINALS[words.lower()]}\text{{th}}"
    if ordinal := _ORDINAL_DIGITS.fullmatch(words):
        return rf"{ordinal[1]}\text{{th}}"
    fraction = _FRACTION.fullmatch(words.lower())
    if fraction and fraction[1] in _TENS:  # a larger ordinal; the fraction 20/5 is four
        unit = _ORDINALS.get(fraction[2], 10)
        return rf"{_TENS[fraction[1]] + unit}\text{{th}}" if unit < 10 else None
    if fraction is None or fraction[2] not in _PARTS:
        return None
    top = 1 if fraction[1] in ("a", "an") else whole_number(fraction[1])
    return rf"\frac{{{top}}}{{{_PARTS[fraction[2]]}}}" if top else None


_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = r"(?P<month>" + "|".join(rf"{month[:3]}(?:{month[3:]})?" for month in _MONTHS) + r"|sept)\.?"
_DAY = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?"
_YEAR = r"(?:,?\s*(?P<year>[0-9]{4}))?"
_DATES = [
    re.compile(pattern, re.I)
    for pattern in (rf"{_MONTH}\s+{_DAY}{_YEAR}", rf"(?:the )?{_DAY}\s+(?:of )?{_MONTH}{_YEAR}")
]


def date(words: str) -> str | None:
    """A day of a year in one notation: ``Dec. 25`` and ``25 December``; None for other words."""
    for pattern in _DATES:
        if match := pattern.fullmatch(words):
            month = next(month for month in _MONTHS if month.startswith(match["month"].lower()[:3]))
            return rf"\text{{{month} {int(match['day'])}{' ' + match['year'] if match['year'] else ''}}}"
    return None


_YES_OR_NO = re.compile(r"(yes|no|true|false)\s*[,.;:]\s*([^0-9=\\]+)", re.I)
_OTHER_VERDICT = re.compile(
    r"\b(?:yes|no|true|false|or|unless|if|but|except|only|sometimes|when|whenever|where|while|until|once|for|provided"
    r"|providing|assuming|given|suppose|supposing|with|under|as long|in case|although|though|however|never|rarely"
    r"|seldom|usually|often|mostly|partly|almost|maybe|perhaps"
    r"|not (?:always|necessarily|all|every|really|entirely|quite))\b",
    re.I,
)


def yes_or_no(words: str) -> str | None:
    """Yes, no, true or false without its explanation; None for other words, or if the explanation limits it."""
    match = _YES_OR_NO.fullmatch(words)
    return rf"\text{{{match[1].lower()}}}" if match and not _OTHER_VERDICT.search(match[2]) else None


_ARTICLE = re.compile(r"(?:an?|the)\s+([A-Za-z][A-Za-z -]{2,})", re.I)
_SPELLING = {"anticlockwise": "counterclockwise", "counter-clockwise": "counterclockwise"}
_SPELLING |= {"anti-clockwise": "counterclockwise", "centre": "center", "rhombi": "rhombuses", "grey": "gray"}


def usual_spelling(words: str) -> str | None:
    """Words without an article, in American spelling; None for words that need no change."""
    bare = _ARTICLE.sub(r"\1", words) if _ARTICLE.fullmatch(words) else words
    spelt = _SPELLING.get(bare.lower(), bare)
    return rf"\text{{{spelt}}}" if spelt != words else None


def in_usual_words(text: str) -> str:
    r"""The normal form of an answer that is words or the name of a set; other texts are returned unchanged."""
    if len(text) > _LONGEST:
        return text
    words = _SPACE.sub(" ", _TEXT.sub(r"\1", text)).strip(" .")
    for form in (named_set, number_in_words, date, yes_or_no):
        if (latex := form(words)) is not None:
            return latex
    return usual_spelling(words) or text if text.startswith(r"\text{") else text  # a bcd is also a product
