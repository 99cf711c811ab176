"""The config section ``algorithm.gsd.budget``, and checks of a config under it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, field_validator

from verl_gsd.extension import ROLLOUTS
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import files_with
from verl_gsd.scalars import is_finite
from verl_gsd.settings import SectionSettings

_SECTION = "algorithm.gsd.budget"


class BudgetSettings(SectionSettings):
    """Settings of a budget. ``config/budget/adaptive.yaml`` explains them in more detail.

    Attributes:
        objective: the sum to maximize over a batch. ``expected_std``: the expected standard deviation of a group's
            outcomes. ``mixed``: the probability that they are mixed.
        prior: (a, b) of the Beta distribution of a prompt's solve rate before its first visit.
        minimum, maximum: bounds of the rollouts per prompt; None for no maximum.
        half_life: number of trainer steps after which a visit counts half. None: all visits count the same.
    """

    objective: Literal["expected_std", "mixed"] = "expected_std"
    prior: tuple[float, float] = (0.5, 0.5)
    minimum: int = Field(2, ge=2)  # a group of one has no baseline
    maximum: int | None = Field(None, ge=0)
    half_life: float | None = Field(100.0, gt=0)

    @field_validator("prior", mode="plain")
    @classmethod
    def _check_prior(cls, prior: Any) -> tuple[float, float]:
        if isinstance(prior, Sequence) and len(prior) == 2 and all(is_finite(value) and value > 0 for value in prior):
            return prior[0], prior[1]
        raise ValueError("not a prior. Set it to [a,b], two finite numbers above 0")


def check_budget(config: DictConfig, line: Line) -> Iterator[str]:
    """Check a budget's settings against the other settings."""
    section = OmegaConf.select(config, _SECTION)
    if section is None:
        return
    settings = BudgetSettings.of(section)
    size = config.actor_rollout_ref.rollout.n
    largest = math.inf if settings.maximum is None else settings.maximum
    if isinstance(size, int) and not settings.minimum < size < largest:
        bound = "minimum" if settings.minimum >= size else "maximum"
        yield (
            f"{_SECTION}.{bound}={getattr(settings, bound)} with actor_rollout_ref.rollout.n={size}: the mean n must "
            "lie between the bounds, or there are no rollouts to redistribute. Set a minimum below n and a maximum "
            "above it."
        )
    for file in files_with(ROLLOUTS, config.data.train_files):
        yield (
            f"data.train_files={file} has a column {ROLLOUTS}, but {_SECTION} sets this column itself. Set "
            "budget=uniform, or remove the column from the data."
        )
