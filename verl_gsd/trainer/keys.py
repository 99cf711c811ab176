"""Names and tags of rows in verl's queue. A name is ``<uid>_<session>_<output>``; padding's uid starts with ``pad``."""

from __future__ import annotations

#: The tag of a row that was not generated in this step: the step it was generated for.
GENERATED_IN = "generated_in"


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
