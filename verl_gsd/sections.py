"""What a config value is: a number, a finite number, or a whole number."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


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


def shown(value: Any) -> str:
    """A config value as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
