"""The config section ``algorithm.gsd.budget``, and what can be wrong with a config under it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_gsd.extension import ROLLOUTS
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import files_with
from verl_gsd.sections import is_finite, is_whole, settings_of

_SECTION = "algorithm.gsd.budget"

Objective = Literal["expected_std", "mixed"]


@dataclass(frozen=True)
class Settings:
    """See ``config/budget/adaptive.yaml``.

    Raises:
        ValueError: a value is out of range (naming it).
    """

    objective: Objective = "expected_std"
    prior: tuple[float, float] = (0.5, 0.5)
    minimum: int = 2
    maximum: int | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise ValueError(f"objective={self.objective}: write one of {', '.join(get_args(Objective))}")
        if len(self.prior) != 2 or not all(is_finite(value) and value > 0 for value in self.prior):
            raise ValueError(f"prior={list(self.prior)}: write [a,b], two numbers above 0")
        if not is_whole(self.minimum, 2):
            raise ValueError(f"minimum={self.minimum}: write 2 rollouts or more; a group of one has no baseline")
        if self.maximum is not None and not is_whole(self.maximum, 0):
            raise ValueError(f"maximum={self.maximum}: write a number of rollouts, or null")
        if self.half_life is not None and not (is_finite(self.half_life) and self.half_life > 0):
            raise ValueError(f"half_life={self.half_life}: write a number of steps above 0, or null")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Settings:
        """From a config section.

        Raises:
            ValueError: a key nobody reads, or a value out of range.
        """
        prior = section.get("prior", cls.prior) if isinstance(section, Mapping) else ()
        if not isinstance(prior, list | tuple | ListConfig):
            raise ValueError(f"prior={prior}: write [a,b], two numbers above 0")
        return settings_of(cls, section, prior=tuple(prior))


def budget_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """Everything that is wrong with a budget's settings, or with others under it."""
    section = OmegaConf.select(config, _SECTION)
    if section is None:
        return
    try:
        settings = Settings.of(section)
    except ValueError as error:
        yield f"{_SECTION}: {error}."
        return
    size = config.actor_rollout_ref.rollout.n
    largest = math.inf if settings.maximum is None else settings.maximum
    if isinstance(size, int) and not settings.minimum < size < largest:
        bound = "minimum" if settings.minimum >= size else "maximum"
        yield (
            f"{_SECTION}.{bound}={getattr(settings, bound)} with actor_rollout_ref.rollout.n={size}: the mean must lie "
            "between the bounds, or there is nothing to share out. Write a minimum below n and a maximum above it."
        )
    for file in files_with(ROLLOUTS, config.data.train_files):
        yield (
            f"data.train_files={file} has a column {ROLLOUTS}, and {_SECTION} sets one. Write budget=uniform, or drop "
            "the column."
        )
