"""Converts a prompt to the text that a judge reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def problem_text(prompt: Any) -> str:
    """The text of a prompt: a string unchanged, a one-message chat as its content, a longer chat as one line
    ``role: content`` per message.

    Raises:
        ValueError: ``prompt`` is neither a string nor a list of messages.
    """
    if isinstance(prompt, str):
        return prompt
    messages = list(prompt) if isinstance(prompt, Sequence) or hasattr(prompt, "tolist") else []
    if not messages or not all(isinstance(message, Mapping) and "content" in message for message in messages):
        raise ValueError(f"a prompt must be a text or a list of messages (role, content), not {type(prompt).__name__}")
    contents = [_content(message["content"]) for message in messages]
    if len(contents) == 1:
        return contents[0]
    return "\n".join(f"{message.get('role')}: {text}" for message, text in zip(messages, contents, strict=True))


def _content(content: Any) -> str:
    """The text of a message. If the content is a list of parts (texts and images), the texts only."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
