"""Config sections that are dataclasses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def settings_of(cls: type[T], section: Mapping[str, Any], *, beside: Collection[str] = (), **made: Any) -> T:
    """The dataclass ``cls`` from a config section; null is its default.

    Args:
        beside: keys of the section that somebody else reads.
        made: fields that were made of the section's values already.

    Raises:
        ValueError: a key nobody reads, or what ``cls`` raises.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown := set(section) - set(known) - set(beside):
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"{names}: no such key. Keys are {', '.join([*known, *beside])}")
    given = {key: value for key, value in section.items() if key in known and value is not None}
    return cls(**given | made)
