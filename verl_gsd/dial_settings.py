"""The settings of the dial. This module checks them without torch, so that a wrong command line fails at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.scalars import is_finite

DIAL_SETTINGS = ("alpha", "ddof", "eps")


def dial_settings(gsd: Mapping[str, Any]) -> dict[str, Any]:
    """``alpha``, ``ddof`` and ``eps`` of a config section ``algorithm.gsd``.

    Raises:
        ValueError: a setting is missing or out of range. The message names it.
    """
    settings = {name: gsd.get(name) for name in DIAL_SETTINGS}
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"algorithm.gsd.{name} is missing. Set algo=gsd, or another algorithm of verl-gsd.")
    try:
        check_dial_settings(**settings)
    except ValueError as error:
        raise ValueError(f"algorithm.gsd.{error}") from error
    return settings


def check_dial_settings(alpha: Any, ddof: Any, eps: Any) -> None:
    """Check the values of the three settings.

    Raises:
        ValueError: a setting is wrong. The message names it.
    """
    if not is_finite(alpha):
        raise ValueError(f"alpha={alpha}: not a finite number. Set it to a number: 1 is GRPO, 0 is Dr. GRPO.")
    if ddof not in (0, 1):
        raise ValueError(f"ddof={ddof}: no such value. Set it to 0 (population) or 1 (sample).")
    if not (is_finite(eps) and eps >= 0):
        raise ValueError(f"eps={eps}: out of range. Set it to a finite number of 0 or more.")
