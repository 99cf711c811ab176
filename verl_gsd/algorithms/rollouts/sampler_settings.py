"""The config section ``algorithm.gsd.sampler``, and what can be wrong with a config under it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import Line
from verl_gsd.sections import is_finite, is_number, settings_of

_SECTION = "algorithm.gsd.sampler"


@dataclass(frozen=True)
class Settings:
    """See ``config/sampler/disagreement.yaml``.

    Raises:
        ValueError: a value is out of range (naming it).
    """

    explore: float = 0.1
    half_life: float | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.explore) and 0 < self.explore <= 1):
            raise ValueError(
                f"explore={self.explore}: write a share above 0, so that no prompt waits for ever, and up to 1"
            )
        if self.half_life is not None and not (is_finite(self.half_life) and self.half_life > 0):
            raise ValueError(f"half_life={self.half_life}: write a number of steps above 0, or null")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Settings:
        """From a config section.

        Raises:
            ValueError: a key nobody reads, or a value out of range.
        """
        return settings_of(cls, section)


def sampler_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """Everything that is wrong with a sampler's settings, or with others under it."""
    section = OmegaConf.select(config, _SECTION)
    if section is None:
        return
    try:
        settings = Settings.of(section)
    except ValueError as error:
        yield f"{_SECTION}: {error}."
        return
    budget = OmegaConf.select(config, "algorithm.gsd.budget")
    if isinstance(budget, DictConfig) and budget.get("half_life") != settings.half_life:
        yield (
            f"{_SECTION}.half_life={settings.half_life} with algorithm.gsd.budget.half_life={budget.get('half_life')}: "
            "both read one memory, which forgets at one rate. Write the same, or leave the sampler's out."
        )
