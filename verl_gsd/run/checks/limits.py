"""The config section ``algorithm.gsd.limits``: when a run that no longer works is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.run.compose import Line
from verl_gsd.sections import is_finite, settings_of

_SECTION = "algorithm.gsd.limits"
#: verl asks a reward model 16 times before it gives up, and waits 331 s in between.
_REWARD_MODEL_SECONDS = 600.0


@dataclass(frozen=True)
class Limits:
    """When a run is stopped.

    Attributes:
        quiet_seconds: seconds without a finished response and without any other progress, once the run has started.
            None: the limit adapts to the run (``trainer/progress.py``).
        reward_seconds: seconds that one call of the reward function may take. The response then counts as failed. A
            reward model without a custom reward function has at least 600 s. It does not apply to the reward managers
            ``rate_limited``, which has ``reward.timeout``, and ``remote``.
        failed_rewards: share of a step's responses, in [0, 1], whose reward may fail. The run stops above it, but not
            for a single one. The share is of the responses that were read for the step, and at least of a batch's.

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


def seconds_for_a_reward(config: DictConfig) -> float:
    """Seconds that one reward may take: ``reward_seconds``, and for a reward model no less than verl's own patience.

    Raises:
        ValueError: the section is wrong.
    """
    seconds = limits_of(config).reward_seconds
    model_alone = config.reward.custom_reward_function.path is None and config.reward.reward_model.enable
    return max(seconds, _REWARD_MODEL_SECONDS) if model_alone else seconds


def extension_waits(config: DictConfig) -> dict[str, float]:
    """Seconds that a group may wait for the extensions of this run, by the key that says so."""
    gsd, waits = OmegaConf.select(config, "algorithm.gsd") or {}, {}
    for declaration in extension.active(gsd):
        key, section = declaration.longest_wait, declaration.section(gsd)
        if key is None or not isinstance(section, Mapping):
            continue
        seconds = section[key] if key in section else _default(declaration, key)
        if is_finite(seconds):  # the check of the section reports what is no number
            waits[f"algorithm.gsd.{declaration.name}.{key}"] = float(seconds)
    return waits


def _default(declaration: extension.Declaration, key: str) -> Any:
    """The default of a key of its section; None where its settings have none."""
    model = None if declaration.settings is None else extension.load(declaration.settings)
    return None if model is None else model.model_fields[key].default


def check_limits(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a section that is wrong, or a limit that ends a run before another one can help it."""
    try:
        limits = limits_of(config)
    except ValueError as error:
        yield f"{_SECTION}: {error}."
        return
    if limits.quiet_seconds is None:
        return
    waits = {f"{_SECTION}.reward_seconds": seconds_for_a_reward(config), **extension_waits(config)}
    for key, seconds in waits.items():
        if limits.quiet_seconds <= seconds:
            yield (
                f"{_SECTION}.quiet_seconds={limits.quiet_seconds:g}: the run would be stopped before {key}={seconds:g} "
                "has passed. Set quiet_seconds to a larger number, or the other to a smaller one."
            )
