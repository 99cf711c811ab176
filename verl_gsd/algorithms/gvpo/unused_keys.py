"""Keys that have no effect under GVPO, and keys of GVPO that have no effect under other losses."""

from __future__ import annotations

from omegaconf import DictConfig

from verl_gsd.algorithms.gvpo.checks import is_gvpo
from verl_gsd.unused_keys import UnusedKey

_ACTOR = "actor_rollout_ref.actor"


def _no_kl_loss(config: DictConfig) -> bool:
    actor = config.actor_rollout_ref.actor
    return not (actor.use_kl_loss and actor.kl_loss_coef)


def _no_other_term(config: DictConfig) -> bool:
    return is_gvpo(config) and not config.actor_rollout_ref.actor.entropy_coeff and _no_kl_loss(config)


def _reference_is_unused(config: DictConfig) -> bool:
    actor = config.actor_rollout_ref.actor
    has_zero_weight = actor.use_kl_loss and actor.kl_loss_coef == 0
    return is_gvpo(config) and has_zero_weight and actor.policy_loss.get("reference") == "old"


def _no_second_kl(config: DictConfig) -> bool:
    allowed = config.algorithm.gsd.gvpo.allow_second_kl
    return allowed and not config.algorithm.use_kl_in_reward and _no_kl_loss(config)


UNUSED_KEYS = (
    *(
        UnusedKey(f"{_ACTOR}.{clip}", is_gvpo, "GVPO has no probability ratio and clips nothing")
        for clip in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")
    ),
    UnusedKey(
        f"{_ACTOR}.loss_agg_mode",
        _no_other_term,
        "GVPO averages its own loss over groups, and the loss has no other term",
    ),
    UnusedKey(
        f"{_ACTOR}.use_kl_loss",
        _reference_is_unused,
        "with kl_loss_coef=0 and policy_loss.reference=old, nothing reads the reference model",
    ),
    UnusedKey("algorithm.gsd.gvpo.allow_second_kl", _no_second_kl, "the config has no second KL term"),
    *(
        UnusedKey(
            f"{_ACTOR}.policy_loss.{name}",
            lambda config: not is_gvpo(config),
            "only policy_loss.loss_mode=gvpo reads it. Set algo=gvpo",
        )
        for name in ("beta", "reference", "normalizer", "var", "cov")
    ),
)
