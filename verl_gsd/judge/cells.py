"""Converts the cells of a table of responses. Invalid cells raise a ValueError with the value and the fix."""

from __future__ import annotations

import math
from typing import Any

from verl_gsd.judge.problem import problem_text
from verl_gsd.scalars import is_number

#: In a dict, 0, 0.0 and False are the same key, and so are 1, 1.0 and True.
_VERDICTS: dict[Any, bool] = {
    **{0: False, "0": False, "0.0": False, "false": False},
    **{1: True, "1": True, "1.0": True, "true": True},
}


def as_response(value: Any) -> str:
    """A response: a text. Anything else, including null, raises a ValueError."""
    if not isinstance(value, str):
        raise ValueError(f'{_shorten(value)} is not a text. Use the response as a text, "" if it is empty')
    return value


def as_reference(value: Any) -> str:
    """A reference answer: a text, a number (converted by ``str``), or null for none. Else raises a ValueError."""
    if value is None or isinstance(value, str):
        return value or ""
    if not is_number(value):
        raise ValueError(f"{_shorten(value)} is not a reference answer. Use a text, a number, or null if there is none")
    return str(value)


def as_label(value: Any) -> str:
    """A group's label: a text, a whole number, or a chat. Anything else raises a ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return problem_text(value)


def as_score(value: Any) -> float:
    """A finite number; NaN for null, NaN, or an empty CSV cell. Anything else raises a ValueError."""
    if value is None or value == "":
        return math.nan
    try:
        score = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.inf
    if math.isinf(score):
        raise ValueError(f"{_shorten(value)} is not a score. Use a finite number, or null if the judgement failed")
    return score


def as_verdict(value: Any) -> bool:
    """Right or wrong: a bool, 0 or 1, or one of these as a text. Anything else raises a ValueError."""
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | int | float) or key not in _VERDICTS:
        raise ValueError(f"{_shorten(value)} is not a verdict. Use true or false, or 1 or 0")
    return _VERDICTS[key]


def _shorten(value: Any) -> str:
    """``repr(value)``, at most 40 characters of it, for an error message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
