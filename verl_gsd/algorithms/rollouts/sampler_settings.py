"""The config section ``algorithm.gsd.sampler``, and checks of a config under it."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.run.compose import Line
from verl_gsd.settings import SectionSettings

_SECTION = "algorithm.gsd.sampler"


class SamplerSettings(SectionSettings):
    """Settings of the sampler. ``config/sampler/disagreement.yaml`` explains them in more detail.

    Attributes:
        explore: share of the probability that is equal for all prompts. It is above 0 so that no prompt waits forever.
        half_life: number of trainer steps after which a visit counts half. None: all visits count the same.
    """

    explore: float = Field(0.1, gt=0, le=1)
    half_life: float | None = Field(BudgetSettings.default("half_life"), gt=0)


def check_sampler(config: DictConfig, line: Line) -> Iterator[str]:
    """Check a sampler's settings against the other settings."""
    section = OmegaConf.select(config, _SECTION)
    if section is None:
        return
    settings = SamplerSettings.of(section)
    budget = OmegaConf.select(config, "algorithm.gsd.budget")
    if not isinstance(budget, DictConfig):
        return
    half_life = budget.get("half_life", BudgetSettings.default("half_life"))
    if half_life != settings.half_life:
        yield (
            f"{_SECTION}.half_life={section.get('half_life', settings.half_life)} with "
            f"algorithm.gsd.budget.half_life={half_life}: sampler and budget share one memory of prompts, which has "
            "one half-life. Set both to the same value, or remove the sampler's."
        )
