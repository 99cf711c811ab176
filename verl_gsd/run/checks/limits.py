"""The config section ``algorithm.gsd.limits``: when a run that no longer works is stopped."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from verl_gsd import extension
from verl_gsd.run.compose import Line
from verl_gsd.settings import SectionSettings, SettingsError

_SECTION = "algorithm.gsd.limits"
#: verl asks a reward model 16 times before it gives up, and waits 331 s in between.
_REWARD_MODEL_SECONDS = 600.0


class LimitSettings(SectionSettings):
    """When a run is stopped.

    Attributes:
        quiet_seconds: seconds without a finished response and without any other progress, once the run has started.
            None: the limit adapts to the run (``trainer/progress.py``).
        reward_seconds: seconds that one call of the reward function may take. The response then counts as failed. A
            reward model without a custom reward function has at least 600 s. It does not apply to the reward managers
            ``rate_limited``, which has ``reward.timeout``, and ``remote``.
        failed_rewards: share of a step's responses, in [0, 1], whose reward may fail. The run stops above it, but not
            for a single one. The share is of the responses that were read for the step, and at least of a batch's.
    """

    quiet_seconds: float | None = Field(None, gt=0)
    reward_seconds: float = Field(300.0, gt=0)
    failed_rewards: float = Field(0.05, ge=0, le=1)


def limits_of(config: DictConfig) -> LimitSettings:
    """The limits of a run; the defaults if there is no section.

    Raises:
        SettingsError: the section is wrong.
    """
    section = OmegaConf.select(config, _SECTION)
    return LimitSettings.of({} if section is None else section)


def seconds_for_a_reward(config: DictConfig) -> float:
    """Seconds that one reward may take: ``reward_seconds``, and for a reward model no less than verl's own patience.

    Raises:
        SettingsError: the section is wrong.
    """
    seconds = limits_of(config).reward_seconds
    model_alone = config.reward.custom_reward_function.path is None and config.reward.reward_model.enable
    return max(seconds, _REWARD_MODEL_SECONDS) if model_alone else seconds


def extension_waits(config: DictConfig) -> dict[str, float]:
    """Seconds that a group may wait for the extensions of this run, by the key that says so.

    It leaves out an extension whose section is wrong: another check reports that.
    """
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    waits: dict[str, float] = {}
    for declaration in extension.active(gsd):
        name = declaration.longest_wait
        if name is not None and not extension.settings_problems(declaration, gsd):
            seconds = getattr(extension.settings_of(declaration, gsd), name)
            waits[f"algorithm.gsd.{declaration.name}.{name}"] = seconds
    return waits


def check_limits(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a section that is wrong, or a limit that ends a run before another one can help it."""
    try:
        limits = limits_of(config)
    except SettingsError as error:
        yield from (f"{_SECTION}.{problem}" for problem in error.problems)
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
