r"""What a cell of somebody's table may hold, read as a problem, an answer or demonstrations.

Each function raises ValueError, saying what to write, on a value that is no such thing.
"""

from __future__ import annotations

import ast
import math
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from verl_gsd.tasks.maths import last_boxed

#: A text of more characters without a box is a solution and no answer.
_LONGEST_UNBOXED = 300


def problem(value: Any) -> str:
    """A text, or of a chat the last message of a user."""
    if isinstance(value, list):
        asked = [message["content"] for message in value if _is_by(message, "user")]
        value = asked[-1] if asked else None
    if not isinstance(value, str) or not _is_visible(value):
        raise ValueError("write a text, or a chat with a user's message")
    return value.strip()


def text(value: Any) -> str:
    """A text that is not empty, stripped."""
    if not isinstance(value, str) or not _is_visible(value):
        raise ValueError(f"write a text, not {_shown(value)}")
    return value.strip()


def answer(value: Any) -> str:
    r"""A text, a number, a solution with a ``\boxed{}``, whose last counts, a list of one of them, or verl's
    ``reward_model``; a whole float, as tables with gaps have them, is an integer."""
    if isinstance(value, Mapping):
        value = value.get("ground_truth")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(int(value)) if value == int(value) else f"{Decimal(str(value)):f}"
    if not isinstance(value, str):
        raise ValueError(f"write a text, a number, or a reward_model with a ground_truth, not {_shown(value)}")
    boxed = last_boxed(value)
    found = value.strip() if boxed is None else boxed
    if not _is_visible(found) or "\\boxed" in found or (boxed is None and len(found) > _LONGEST_UNBOXED):
        raise ValueError(f"no answer in {value[-60:]!r}; write it alone, or a solution that has it in \\boxed{{}}")
    return found


def has_box(value: Any) -> bool:
    r"""Whether a cell is a solution with its answer in a ``\boxed{}``."""
    return isinstance(value, str) and last_boxed(value) is not None


def demonstrations(value: Any) -> list[str] | None:
    """A text, a list of texts, or a chat, whose assistant's messages they are; None for null and for none."""
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = [message["content"] for message in value if _is_by(message, "assistant")]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ValueError("write a text, a list of texts, a chat with an assistant's message, or null")
    return [text for text in texts if _is_visible(text)] or None


def index(value: Any) -> int:
    """A whole number from 0 on that a column of int64 can hold."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        value = int(value)  # of CSV
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"write a whole number, 0 or more, not {_shown(value)}")
    return value


def options(value: Any) -> list[str]:
    """Two to ten texts."""
    if not isinstance(value, list) or not 2 <= len(value) <= 10:
        raise ValueError(f"write a list of two to ten options, not {_shown(value)}")
    return [text(one) for one in value]


def listed(value: Any) -> Any:
    """A list that a file spells out as a text, ``"['2']"``, as the list; anything else as it is."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            found = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
        return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else value
    return value


def _is_visible(value: str) -> bool:
    """Whether anything is to be seen: zero-width spaces and marks of direction are no text."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc") for character in value)


def _is_by(message: Any, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role and isinstance(message.get("content"), str)


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
