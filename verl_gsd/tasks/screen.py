"""Answers that no one should compute: towers of powers, exponents and factorials beyond reason.

What passes here may still take for ever; the process that compares is limited in time and memory. This is so that a
policy that writes nothing but towers costs nothing.
"""

from __future__ import annotations

import math
import re

#: Numbers of more decimal digits than this are not computed. Python itself prints few more.
DIGITS = 4000
#: A number below this is known by its value, any other by how many digits it has; neither exponents nor operands of a
#: factorial may be as large.
LARGE = 10**4

_SPACE = re.compile(r"\s|\\[,!;: ]|\\left|\\right|(?<=\^)-|(?<=\^[{(])-")
#: Digits as they stand in the text, or ``#12#``, a large number of 12 digits that was computed.
_NUMBER = r"(?:#[0-9]+#|[0-9]+)"
#: A number alone in braces, where an operator or another brace reads it.
_ALONE = re.compile(rf"(?<=[\^{{(])[{{(]({_NUMBER})[)}}]|[{{(]({_NUMBER})[)}}](?=[\^!)}}])")
_TOO_MUCH = re.compile(r"\^(?:#|[0-9]{5})|(?:[0-9]{5}|#)!")
#: The innermost operation on numbers: its exponent is the base of nothing.
_OPERATION = re.compile(rf"({_NUMBER})(?:!|\^([0-9]+)(?![0-9!^]))")


def is_monstrous(text: str) -> bool:
    """Whether ``text`` has a power or factorial of numbers in it that comes to more than ``DIGITS`` digits, or any
    exponent from ``LARGE`` on. What is no number is not looked into. For texts of some thousand characters."""
    text = _SPACE.sub("", text.replace("#", ""))
    while True:
        text, found = _ALONE.subn(lambda match: match[1] or match[2], text)
        if found:
            continue
        if _TOO_MUCH.search(text):
            return True
        operation = _OPERATION.search(text)
        if operation is None:
            return False
        log10 = _log10_of_result(*operation.groups())
        if log10 >= DIGITS:
            return True
        result = f"#{int(log10) + 1}#" if log10 >= math.log10(LARGE) else str(round(10**log10))
        text = text[: operation.start()] + result + text[operation.end() :]


def _log10_of_result(base: str, exponent: str | None) -> float:
    """Of a power, or of a factorial where there is no exponent; 0 is taken for 1."""
    if exponent is None:
        return math.lgamma(int(base) + 1) / math.log(10)
    return int(exponent) * (float(base.strip("#")) if "#" in base else _log10(base.lstrip("0") or "1"))


def _log10(digits: str) -> float:
    return len(digits) - len(digits[:15]) + math.log10(int(digits[:15]))
