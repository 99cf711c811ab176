"""Scalars of configs and data files: type checks of numbers, and the text of a value in YAML."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a number that fits into a float. Infinity and NaN are numbers, bools are not."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and float(value) is not None
    except OverflowError:  # 10**400
        return False


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a number, and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)


def is_whole(value: Any, least: int) -> TypeGuard[int]:
    """Whether ``value`` is an integer of at least ``least``. Bools are not integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


#: How far rounding may move a share. Nine ninths sum to 1.0000000000000002, and ten tenths to 0.9999999999999999.
_ROUNDING = 1e-6


def without_rounding(share: float) -> float:
    """``share``, or the end of [0, 1] from which only rounding has moved it. Other values and NaN stay."""
    return next((end for end in (0.0, 1.0) if abs(share - end) <= _ROUNDING), share)


def as_yaml(value: Any) -> str:
    """A scalar of a config as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
