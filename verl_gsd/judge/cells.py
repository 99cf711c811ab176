"""What a cell of a table of responses may hold. Readers raise ValueErrors with the value and what to write."""

from __future__ import annotations

import math
from typing import Any

from verl_gsd.judge.problem import problem_text
from verl_gsd.sections import is_number

#: 0, 0.0 and False are one key, as are 1, 1.0 and True.
_VERDICTS: dict[Any, bool] = {
    **{0: False, "0": False, "0.0": False, "false": False},
    **{1: True, "1": True, "1.0": True, "true": True},
}


def as_response(value: Any) -> str:
    """A response, which is a text; a ValueError for anything else, a null included."""
    if not isinstance(value, str):
        raise ValueError(f'{_shown(value)} is no text: write what the policy answered, "" if nothing')
    return value


def as_reference(value: Any) -> str:
    """A reference answer: a text, a number as Python writes it, or a null, which is none; a ValueError otherwise."""
    if value is None or isinstance(value, str):
        return value or ""
    if not is_number(value):
        raise ValueError(f"{_shown(value)} is no reference answer: write a text, a number, or null where there is none")
    return str(value)


def as_label(value: Any) -> str:
    """What tells one group from another: a text, a whole number, or a chat; a ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return problem_text(value)


def as_score(value: Any) -> float:
    """A finite number; NaN for a null, a NaN or, as CSV has it, nothing; a ValueError otherwise."""
    if value is None or value == "":
        return math.nan
    try:
        score = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.inf
    if math.isinf(score):
        raise ValueError(f"{_shown(value)} is no score: write a finite number, or null where the judgement failed")
    return score


def as_verdict(value: Any) -> bool:
    """Right or wrong: a bool, 0 or 1, or one of these as a text; a ValueError otherwise."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(plain, str | int | float) or plain not in _VERDICTS:
        raise ValueError(f"{_shown(value)} is no verdict: write true or false, or 1 or 0")
    return _VERDICTS[plain]


def _shown(value: Any) -> str:
    """A value as an error has it: short, whatever was in the file."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
