"""Config sections that are dataclasses, and what their values may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")


def settings_of(cls: type[T], section: Mapping[str, Any], *, beside: Collection[str] = (), **made: Any) -> T:
    """The dataclass ``cls`` from a config section.

    Args:
        beside: keys of the section that somebody else reads.
        made: fields that were made of the section's values already.

    Raises:
        ValueError: it is no section, a key nobody reads, a null that no field has, or what ``cls`` raises.
    """
    if not isinstance(section, Mapping):
        raise ValueError(f"{section}: write a section with keys, or null")
    known = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := set(section) - set(known) - set(beside):
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"{names}: no such key. Keys are {', '.join([*known, *beside])}")
    for key, default in known.items():
        if key in section and section[key] is None and default is not None:
            raise ValueError(f"{key}=null: write a value, or leave it out")
    return cls(**{key: value for key, value in section.items() if key in known} | made)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number that a float can hold, infinite ones and NaN included, and no bool."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and float(value) is not None
    except OverflowError:  # 10**400
        return False


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number, and no infinite one or NaN."""
    return is_number(value) and math.isfinite(value)


def is_whole(value: Any, least: int) -> TypeGuard[int]:
    """Whether it is a whole number of ``least`` or more, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
