"""The config section ``algorithm.gsd.limits``: when a run that no longer works is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.sections import is_finite, settings_of
from verl_gsd.trainer.config import Line

_SECTION = "algorithm.gsd.limits"


@dataclass(frozen=True)
class Limits:
    """When a run is stopped.

    Attributes:
        quiet_seconds: seconds without a finished response and without any other progress. None: the limit adapts to
            the run (``trainer/progress.py``).
        reward_seconds: seconds that one call of the reward function may take. The response then counts as failed.
        failed_rewards: share of a step's responses, in [0, 1], whose reward may fail. The run stops above it.

    Raises:
        ValueError: a value is out of range (the message names it).
    """

    quiet_seconds: float | None = None
    reward_seconds: float = 300.0
    failed_rewards: float = 0.05

    def __post_init__(self) -> None:
        if self.quiet_seconds is not None and not (is_finite(self.quiet_seconds) and self.quiet_seconds > 0):
            raise ValueError(
                f"quiet_seconds={self.quiet_seconds}: set a number of seconds above 0, or null for a limit that adapts"
            )
        if not (is_finite(self.reward_seconds) and self.reward_seconds > 0):
            raise ValueError(f"reward_seconds={self.reward_seconds}: set a number of seconds above 0")
        if not (is_finite(self.failed_rewards) and 0 <= self.failed_rewards <= 1):
            raise ValueError(f"failed_rewards={self.failed_rewards}: set a share of a step's responses, from 0 to 1")

    @classmethod
    def of(cls, section: Mapping[str, Any] | None) -> Limits:
        """From a config section; the defaults if it is None.

        Raises:
            ValueError: an unknown key, or a value out of range.
        """
        return cls() if section is None else settings_of(cls, section)


def limits_of(config: DictConfig) -> Limits:
    """The limits of a run.

    Raises:
        ValueError: the section is wrong.
    """
    return Limits.of(OmegaConf.select(config, _SECTION))


def check_limits(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a section that is wrong."""
    try:
        limits_of(config)
    except ValueError as error:
        yield f"{_SECTION}: {error}."
