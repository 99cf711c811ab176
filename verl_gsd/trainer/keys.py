"""Names and tags of rows in verl's queue. A name is ``<uid>_<session>_<output>``; padding's uid starts with ``pad``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: The partition of training rows, and that of validation, which goes through the same buffer.
PARTITION, VALIDATION = "train", "val"

#: The tag of a row that was not generated in this step: the step it was generated for.
GENERATED_IN = "generated_in"
#: The tag of a demonstration: by whom, ``expert`` or ``self``.
DEMONSTRATED_BY = "demonstrated_by"
#: The step it was generated for, if the policy generated it; 0 for an expert's.
DEMONSTRATED_IN = "demonstrated_in"
#: And of one that stands in the place of a response: that one's reward, accuracy and tokens, which still count.
REPLACED = "replaced"


def uid_of(key: str) -> str:
    """The visit to a prompt that the row belongs to."""
    return key.rsplit("_", 2)[0]


def session_of(key: str) -> str:
    """``<uid>_<session>``: the response that the row is (a part of)."""
    return key.rsplit("_", 1)[0]


def session_number(key: str) -> int:
    return int(key.rsplit("_", 2)[1])


def output_number(key: str) -> int:
    return int(key.rsplit("_", 1)[1])


def is_padding(key: str) -> bool:
    return key.startswith("pad")


def is_own(tag: Mapping[str, Any]) -> bool:
    """Whether the policy generated the row in this step: it is no demonstration and no earlier response."""
    return GENERATED_IN not in tag and DEMONSTRATED_BY not in tag


def as_number(value: Any) -> float:
    """What a verifier returned under a name of its own choosing, as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # None, text, a tensor of several, 10**400
        return math.nan
