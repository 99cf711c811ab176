"""verl's names of rows in its queue: ``<uid>_<session>_<output>``; a padding row's uid starts with ``pad``."""

from __future__ import annotations


def uid_of(key: str) -> str:
    """The visit to a prompt that the row belongs to."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """``<uid>_<session>``: the response that the row is (a part of)."""
    return key.rsplit("_", 1)[0]


def session_number(key: str) -> int:
    return int(key.rsplit("_", 2)[1])


def is_padding(key: str) -> bool:
    return key.startswith("pad")
