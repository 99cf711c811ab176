"""The config section ``algorithm.gsd.limits``: when the trainer stops a run that no longer works."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from verl_gsd import extension
from verl_gsd.run.compose import Line
from verl_gsd.settings import SectionSettings, SettingsError

_SECTION = "algorithm.gsd.limits"
#: verl calls a reward model up to 16 times, and waits 331 s in total between the calls.
_REWARD_MODEL_SECONDS = 600.0


class LimitSettings(SectionSettings):
    """Limits at which the trainer stops a run.

    Attributes:
        quiet_seconds: seconds without a finished response or any other progress, after the run has started. None: the
            limit adapts to the run (``trainer/progress.py``).
        reward_seconds: seconds that one call of the reward function may take. After that, the response counts as
            failed. If a reward model is used without a custom reward function, the limit is at least 600 s. The limit
            does not apply to the reward managers ``rate_limited``, which has ``reward.timeout``, and ``remote``.
        failed_rewards: share of a step's responses, in [0, 1], whose reward may fail. The run stops if more fail, but
            never for a single response. The share is relative to the responses that were read for the step, and at
            least to the size of a batch.
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
    """Seconds that one reward may take: ``reward_seconds``, but for a reward model at least as long as verl tries.

    Raises:
        SettingsError: the section is wrong.
    """
    seconds = limits_of(config).reward_seconds
    only_model = config.reward.custom_reward_function.path is None and config.reward.reward_model.enable
    return max(seconds, _REWARD_MODEL_SECONDS) if only_model else seconds


def extension_waits(config: DictConfig) -> dict[str, float]:
    """Key -> seconds: how long a group may wait for each extension of this run, by the key that sets this time.

    Extensions with a wrong section are left out. Another check reports them.
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
    """Report a wrong section, and a limit that would stop the run while it may still wait for a reward or extension."""
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
                f"{_SECTION}.quiet_seconds={limits.quiet_seconds:g}: the trainer would stop the run before "
                f"{key}={seconds:g} seconds have passed. Set quiet_seconds to a larger number, or {key} to a smaller "
                "one."
            )
