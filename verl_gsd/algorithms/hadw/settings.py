"""The config section ``algorithm.gsd.hadw``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from verl_gsd.scalars import is_finite, is_number
from verl_gsd.settings import SectionSettings, did_you_mean

#: Names of anchors. ``soft`` is the paper's method, with a floor and a cap where the paper states no constants.
#: ``hard`` is the anchor of the authors' code. ``paper`` is the soft anchor without floor and cap.
PRESETS = ("soft", "hard", "paper", "fixed", "off")


class HadwSettings(SectionSettings):
    """Settings of HA-DW.

    Attributes:
        preset: one of ``PRESETS``, or a number in [0, 1] at which the anchor is fixed.
        lambda_scale: the constant that multiplies every factor.
        include_current: whether the anchor has already observed the current batch, as in the authors' code.
        n_min: the number of observed responses from which on a data source uses its own anchor.
        accuracy_range: (low, high) of a graded verifier, which is rescaled to [0, 1], for all data sources or by data
            source. None, and for sources that it lacks: the verifier already returns values in [0, 1].
    """

    preset: str | float = "soft"
    lambda_scale: float = Field(1.3, gt=0)
    include_current: bool = False
    n_min: int = Field(64, ge=1)
    accuracy_range: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None

    def range_of(self, source: str) -> tuple[float, float] | None:
        """(low, high) of a data source's accuracies that are rescaled; None if they are not."""
        return self.accuracy_range.get(source) if isinstance(self.accuracy_range, Mapping) else self.accuracy_range

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
    def _check_accuracy_range(cls, value: Any) -> tuple[float, float] | dict[str, tuple[float, float]] | None:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {str(source): _range(ends) for source, ends in value.items()}
        return _range(value)


def _range(ends: Any) -> tuple[float, float]:
    """
    Raises:
        ValueError: ``ends`` is not a range.
    """
    if isinstance(ends, Sequence) and len(ends) == 2 and all(map(is_finite, ends)) and ends[0] < ends[1]:
        return ends[0], ends[1]
    raise ValueError(
        "not a range. Set it to [lowest,highest], two finite numbers, to {DATA_SOURCE:[lowest,highest]}, or to null"
    )
