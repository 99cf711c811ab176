r"""Reads one cell of a table as a problem, an answer, demonstrations, an index or options.

Each function raises ValueError if the value has the wrong form; the message says what the cell must hold.
"""

from __future__ import annotations

import ast
import math
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from verl_gsd.tasks.answers import final_answer, has_announcement, last_boxed

#: A message of a chat: its role and its content.
Message = dict[str, str]
#: Who can speak before a problem.
ROLES = ("system", "user", "assistant")
#: A longer text without a box is taken for a solution that has no answer. In characters.
_MAX_UNBOXED_CHARACTERS = 300


def conversation(value: Any) -> tuple[tuple[Message, ...], str]:
    """The messages before a problem, and the problem: a text, or the last user message of a chat.

    Messages after the last user message are solutions, and are left out.
    """
    earlier: tuple[Message, ...] = ()
    if isinstance(value, list):
        roles = [message.get("role") if isinstance(message, Mapping) else None for message in value]
        last = max((place for place, role in enumerate(roles) if role == "user"), default=None)
        earlier = tuple(_message(place, message) for place, message in enumerate(value[: last or 0]))
        value = None if last is None else value[last].get("content")
    if not isinstance(value, str) or not _is_visible(value):
        raise ValueError("no problem. Use a text that is not empty, or a chat whose last user message is one")
    return earlier, value.strip()


def problem(value: Any) -> str:
    """A text, or the only user message of a chat. A system message is left out."""
    earlier, text = conversation(value)
    if any(message["role"] != "system" for message in earlier):
        raise ValueError("the chat has several turns. Prepare this data set as a table of your own, with --input")
    return text


def text(value: Any) -> str:
    """A text that is not empty, stripped."""
    if not isinstance(value, str) or not _is_visible(value):
        raise ValueError(f"{_describe(value)} is not a text. Use a text that is not empty")
    return value.strip()


def answer(value: Any) -> str:
    r"""A reference answer.

    The value is a text, a number, a solution, a list of one of these, or verl's ``reward_model``. The answer of a
    solution is its last ``\boxed{}``, or what follows its last ``####`` or ``the answer is``: the verifier of
    mathematics reads responses in this way, but compares them with the whole reference. A float with an integer value
    becomes an integer, because tables with gaps store integers as floats.
    """
    if isinstance(value, Mapping):
        value = value.get("ground_truth")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(int(value)) if value == int(value) else f"{Decimal(str(value)):f}"
    if not isinstance(value, str):
        raise ValueError(
            f"{_describe(value)} is not an answer. Use a text, a number, or a reward_model with a ground_truth"
        )
    boxed = last_boxed(value)
    result = value.strip() if boxed is None else boxed
    if boxed is None and has_announcement(value):
        result = final_answer(value) or ""
    if not _is_visible(result) or "\\boxed" in result or (boxed is None and len(result) > _MAX_UNBOXED_CHARACTERS):
        raise ValueError(
            f"{value[-60:]!r} contains no answer. Use the answer alone, or a solution with the answer in \\boxed{{}} "
            "or after ####"
        )
    return result


def has_box(value: Any) -> bool:
    r"""Whether a cell is a solution with its answer in a ``\boxed{}``."""
    return isinstance(value, str) and last_boxed(value) is not None


def demonstrations(value: Any) -> list[str] | None:
    """A text, a list of texts, or the assistant messages of a chat. None for null and if there is no such text."""
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = [message["content"] for message in value if _has_role(message, "assistant")]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
        raise ValueError(
            f"{_describe(value)} is not a demonstration. Use a text, a list of texts, a chat with an assistant "
            "message, or null"
        )
    return [text for text in texts if _is_visible(text)] or None


def index(value: Any) -> int:
    """A non-negative integer that fits an int64 column."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        value = int(value)  # a CSV file stores numbers as texts
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{_describe(value)} is not an index. Use an integer from 0 to 2**63 - 1")
    return value


def options(value: Any) -> list[str]:
    """Two to ten texts."""
    if not isinstance(value, list) or not 2 <= len(value) <= 10:
        raise ValueError(f"{_describe(value)} is not a list of options. Use a list of two to ten texts")
    return [text(option) for option in value]


def parse_list_literal(value: Any) -> Any:
    """A list of texts that a file stores as its Python literal, such as ``"['2']"``; any other value unchanged."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            parsed = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return value
        return parsed if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed) else value
    return value


def _is_visible(value: str) -> bool:
    """Whether a text has any visible character: zero-width spaces and direction marks do not count."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc") for character in value)


def _message(place: int, message: Any) -> Message:
    """A message before the problem, with its role and text alone."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES or not isinstance(message.get("content"), str):
        raise ValueError(
            f"message {place} of the chat (the first is 0) has role {role!r:.40}, or its content is not a text. Use "
            f"the roles {', '.join(ROLES)}, and texts"
        )
    return {"role": role, "content": message["content"]}


def _has_role(message: Any, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role and isinstance(message.get("content"), str)


def _describe(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
