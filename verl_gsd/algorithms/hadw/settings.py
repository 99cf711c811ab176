"""The config section ``algorithm.gsd.hadw``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from verl_gsd.scalars import is_finite, is_number
from verl_gsd.settings import SectionSettings, did_you_mean

#: Anchors by name. ``paper`` is the rule as the paper writes it.
PRESETS = ("hard", "soft", "paper", "fixed", "off")


class HadwSettings(SectionSettings):
    """Settings of HA-DW.

    Attributes:
        preset: a name of ``PRESETS``, or a number in [0, 1] for an anchor fixed there.
        lambda_scale: the constant by which every factor is multiplied.
        include_current: use an anchor that has observed the current batch, as the authors' code does.
        n_min: responses that a data source must have shown before its own anchor is used.
        accuracy_range: (low, high) of a graded verifier, rescaled to [0, 1]; None for one that is in [0, 1].
    """

    preset: str | float = "hard"
    lambda_scale: float = Field(1.3, gt=0)
    include_current: bool = False
    n_min: int = Field(64, ge=1)
    accuracy_range: tuple[float, float] | None = None

    @field_validator("preset", mode="plain")
    @classmethod
    def _check_preset(cls, preset: Any) -> str | float:
        if preset is False:  # YAML reads off as false
            return "off"
        if preset in PRESETS or (is_number(preset) and 0 <= preset <= 1):
            return preset
        names = ", ".join(PRESETS)
        raise ValueError(f"no such value. Set it to {names}, or to a number in [0, 1].{did_you_mean(preset, PRESETS)}")

    @field_validator("accuracy_range", mode="plain")
    @classmethod
    def _check_accuracy_range(cls, ends: Any) -> tuple[float, float] | None:
        if ends is None:
            return None
        if isinstance(ends, Sequence) and len(ends) == 2 and all(map(is_finite, ends)) and ends[0] < ends[1]:
            return ends[0], ends[1]
        raise ValueError("not a range. Set it to [lowest,highest], two finite numbers, or to null")
