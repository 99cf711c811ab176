"""Keys of DaGRPO that have no effect under its other settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms.dagrpo.checks import is_dagrpo_loss
from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.unused_keys import UnusedKey

_SECTION, _LOSS = "algorithm.gsd.dagrpo", "actor_rollout_ref.actor.policy_loss"
_UNSET = object()  # unlike null, an absent key has a default, which is a file
#: Key of a judge -> the scorers that read it.
_READ_BY = {
    "base_url": ("openai",),
    "api_key_env": ("openai",),
    "answer": ("openai",),
    "retries": ("openai",),
    "model": ("openai", "distilled"),
    "timeout_s": ("openai", "reward_model"),
}


def _setting(config: DictConfig, key: str, default: str | None = None) -> Any:
    value = OmegaConf.select(config, f"{_SECTION}.{key}")
    return default if value is None else value


def _not_scored_by(scorers: tuple[str, ...]) -> Callable[[DictConfig], bool]:
    return lambda config: _setting(config, "judge.scorer", JudgeSettings.default("scorer")) not in scorers


UNUSED_KEYS = (
    *(
        UnusedKey(
            f"{_SECTION}.judge.{name}", _not_scored_by(scorers), f"only judge.scorer={' and '.join(scorers)} reads it"
        )
        for name, scorers in _READ_BY.items()
    ),
    UnusedKey(
        f"{_SECTION}.judge.cache_mb",
        lambda config: OmegaConf.select(config, f"{_SECTION}.judge.cache", default=_UNSET) is None,
        f"{_SECTION}.judge.cache is null",
    ),
    *(
        UnusedKey(
            f"{_SECTION}.{name}",
            lambda config: _setting(config, "judge") is None,
            "without a judge, every pair counts. Set algo=dagrpo or algo=dagrpo_mask",
        )
        for name in ("signed", "mask", "rescale", "fail_closed")
    ),
    UnusedKey(
        f"{_SECTION}.demonstrations.column",
        lambda config: _setting(config, "demonstrations.source", DemonstrationSettings.default("source")) == "self",
        f"{_SECTION}.demonstrations.source=self reads no column",
    ),
    UnusedKey(
        f"{_LOSS}.gamma",
        lambda config: config.actor_rollout_ref.actor.policy_loss.get("ratio") == "one",
        "policy_loss.ratio=one does not use it",
    ),
    *(
        UnusedKey(
            f"{_LOSS}.{name}",
            lambda config: not is_dagrpo_loss(config),
            "only policy_loss.loss_mode=dagrpo reads it. Set algo=dagrpo or algo=dagrpo_anchors",
        )
        for name in ("on_policy", "ratio", "gamma")
    ),
)
