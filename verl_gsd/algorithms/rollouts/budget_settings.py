"""The config section ``algorithm.gsd.budget``, and what can be wrong with a config under it."""

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
    """Settings of a budget; ``config/budget/adaptive.yaml`` says more of each.

    Attributes:
        objective: what is maximized over a batch: the expected standard deviation of a group's outcomes, or the
            probability that they are mixed.
        prior: (a, b) of Beta, of a prompt's solve rate before its first visit.
        minimum, maximum: rollouts per prompt; a maximum of None is no limit.
        half_life: trainer steps after which a visit counts half; None: every visit counts the same.
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


def budget_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """Everything that is wrong with a budget's settings together with others."""
    section = OmegaConf.select(config, _SECTION)
    if section is None:
        return
    settings = BudgetSettings.of(section)
    size = config.actor_rollout_ref.rollout.n
    largest = math.inf if settings.maximum is None else settings.maximum
    if isinstance(size, int) and not settings.minimum < size < largest:
        bound = "minimum" if settings.minimum >= size else "maximum"
        yield (
            f"{_SECTION}.{bound}={getattr(settings, bound)} with actor_rollout_ref.rollout.n={size}: the mean must lie "
            "between the bounds, or there is nothing to share out. Set a minimum below n and a maximum above it."
        )
    for file in files_with(ROLLOUTS, config.data.train_files):
        yield (
            f"data.train_files={file} has a column {ROLLOUTS}, and {_SECTION} sets one. Set budget=uniform, or drop "
            "the column."
        )
