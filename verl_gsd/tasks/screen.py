"""Recognises answers that are too large to compute: towers of powers, huge exponents and factorials.

Other answers can still take very long, and the process that compares answers limits their time and memory. The check
here makes sure that a policy that writes only towers of powers costs next to nothing.
"""

from __future__ import annotations

import math
import re

#: Numbers with more decimal digits than this are not computed. Python itself prints at most 4,300 digits.
DIGITS = 4000
#: Smaller numbers are tracked by value, larger ones by their number of digits. Exponents and operands of factorials
#: must be smaller.
LARGE = 10**4

_SPACE = re.compile(r"\s|\\[,!;: ]|\\left|\\right|(?<=\^)-|(?<=\^[{(])-")
#: The numbers on both sides are factors: ``7^3 2^5``.
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])(?:\s|\\[,!;: ])+(?=[0-9])")
#: Digits as in the text, or ``#12#`` for a computed large number of 12 digits.
_NUMBER = r"(?:#[0-9]+#|[0-9]+)"
#: A number alone in braces or parentheses, next to an operator or another brace.
_ALONE = re.compile(rf"(?<=[\^{{(])[{{(]({_NUMBER})[)}}]|[{{(]({_NUMBER})[)}}](?=[\^!)}}])")
_TOO_LARGE = re.compile(r"\^(?:#|[0-9]{5})|(?:[0-9]{5}|#)!")
#: The innermost operation on numbers: its exponent is not itself the base of a power.
_OPERATION = re.compile(rf"({_NUMBER})(?:!|\^([0-9]+)(?![0-9!^]))")


def is_too_large(text: str) -> bool:
    """Whether a power or factorial in ``text`` has more than ``DIGITS`` digits, or an exponent is at least ``LARGE``.

    Everything else in the text is ignored. Meant for texts of up to some thousand characters.
    """
    text = _SPACE.sub("", _BETWEEN_DIGITS.sub("*", text.replace("#", "")))
    while True:
        text, replaced = _ALONE.subn(lambda match: _apart(match, match[1] or match[2]), text)
        if replaced:
            continue
        if _TOO_LARGE.search(text):
            return True
        operation = _OPERATION.search(text)
        if operation is None:
            return False
        log10 = _log10_of_result(*operation.groups())
        if log10 >= DIGITS:
            return True
        result = f"#{int(log10) + 1}#" if log10 >= math.log10(LARGE) else str(round(10**log10))
        text = text[: operation.start()] + _apart(operation, result) + text[operation.end() :]


def _apart(found: re.Match, number: str) -> str:
    """The number that replaces a match, kept apart from its neighbours: ``7!3!`` is the product of 5040 and 3!."""
    before = "*" if re.search("[0-9#)}]$", found.string[: found.start()]) else ""
    after = "*" if re.match("[0-9#({]", found.string[found.end() :]) else ""
    return before + number + after


def _log10_of_result(base: str, exponent: str | None) -> float:
    """log10 of a power, or of a factorial if ``exponent`` is None. A base of 0 counts as 1."""
    if exponent is None:
        return math.lgamma(int(base) + 1) / math.log(10)
    return int(exponent) * (float(base.strip("#")) if "#" in base else _log10(base.lstrip("0") or "1"))


def _log10(digits: str) -> float:
    return len(digits) - len(digits[:15]) + math.log10(int(digits[:15]))
