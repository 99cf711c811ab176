"""Keys that have no effect under the config chosen. Set on the command line, such a key is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.dial_settings import DIAL_SETTINGS
from verl_gsd.run.checks.gsd_section import is_ours
from verl_gsd.run.compose import Line
from verl_gsd.run.engines import engine_of


@dataclass(frozen=True)
class UnusedKey:
    """A key, or all keys below it, that has no effect while a condition holds.

    Attributes:
        prefix: the key, or the section that has the keys.
        unused: whether it has no effect under a resolved config, which has the key.
        reason: why, and what to set instead. A part of a sentence without a full stop.
    """

    prefix: str
    unused: Callable[[DictConfig], bool]
    reason: str

    def has(self, key: str) -> bool:
        """Whether ``key`` is the key, or below it."""
        return key == self.prefix or key.startswith(self.prefix + ".")


def _no_reference(config: DictConfig) -> bool:
    return not (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _no_kl_loss(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_kl_loss


def _no_critic(config: DictConfig) -> bool:
    return not (config.algorithm.adv_estimator == "gae" if config.critic.enable is None else config.critic.enable)


#: Those that belong to no extension.
_KEYS = (
    UnusedKey(
        "algorithm.norm_adv_by_std_in_grpo",
        lambda c: c.algorithm.adv_estimator not in ("grpo", "grpo_vectorized", "grpo_passk"),
        "only grpo, grpo_vectorized and grpo_passk read it; write algorithm.gsd.alpha, 1 to divide and 0 not to",
    ),
    *(
        UnusedKey(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.adv_estimator != "gsd",
            "only the estimator gsd reads it; write algorithm.adv_estimator=gsd",
        )
        for name in DIAL_SETTINGS
    ),
    *(
        UnusedKey(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.gsd.alpha == 0,
            "alpha=0 divides by nothing",
        )
        for name in ("ddof", "eps")
    ),
    UnusedKey(
        "algorithm.filter_groups.metric",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    UnusedKey(
        "algorithm.filter_groups.max_inflight_gen_batches",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    UnusedKey(
        "algorithm.filter_groups.max_num_gen_batches",
        lambda c: True,
        "verl's V1 replay buffer ignores it; write algorithm.filter_groups.max_inflight_gen_batches",
    ),
    UnusedKey("algorithm.kl_ctrl", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    UnusedKey(
        "algorithm.kl_penalty", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"
    ),
    UnusedKey(
        "algorithm.gamma",
        lambda c: c.algorithm.adv_estimator in ("gsd", "grpo", "grpo_vectorized", "grpo_passk", "rloo"),
        "an outcome's reward is not discounted by this estimator",
    ),
    *(
        UnusedKey(
            f"actor_rollout_ref.actor.{size}",
            lambda c: c.actor_rollout_ref.actor.use_dynamic_bsz,
            "use_dynamic_bsz=true packs by tokens; write ppo_max_token_len_per_gpu, or turn that off",
        )
        for size in ("ppo_micro_batch_size_per_gpu", "ppo_micro_batch_size")
    ),
    UnusedKey("algorithm.lam", lambda c: c.algorithm.adv_estimator != "gae", "only the estimator gae reads it"),
    UnusedKey(
        "algorithm.gsd.poll_interval",
        lambda c: not is_ours(c),
        "only our trainer modes read it; write trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey(
        "algorithm.gsd.limits",
        lambda c: not is_ours(c),
        "only our trainer modes watch a run; set trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey(
        "algorithm.gsd.state",
        lambda c: not is_ours(c),
        "only our trainer modes remember; write trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey("actor_rollout_ref.actor.kl_loss_coef", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    UnusedKey("actor_rollout_ref.actor.kl_loss_type", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    UnusedKey("actor_rollout_ref.ref", _no_reference, "no KL term is on, so there is no reference model"),
    UnusedKey(
        "actor_rollout_ref.actor.clip_ratio",
        lambda c: (
            c.actor_rollout_ref.actor.clip_ratio_low is not None
            and c.actor_rollout_ref.actor.clip_ratio_high is not None
        ),
        "clip_ratio_low and clip_ratio_high are set and win; write those",
    ),
    UnusedKey(
        "actor_rollout_ref.actor.loss_scale_factor",
        lambda c: c.actor_rollout_ref.actor.loss_agg_mode != "seq-mean-token-sum-norm",
        "only loss_agg_mode=seq-mean-token-sum-norm reads it",
    ),
    *(
        UnusedKey(
            f"actor_rollout_ref.{role}.fsdp_config",
            lambda c: engine_of(c) != "dp",
            "only model_engine=dp reads it",
        )
        for role in ("actor", "ref")
    ),
    UnusedKey("critic", _no_critic, "the estimator needs no critic and critic.enable is not true"),
)


def keys_have_effect(config: DictConfig, line: Line) -> Iterator[str]:
    """Report keys of the line that have no effect, by the extensions' reasons first."""
    unused_keys = [*_of_extensions(), *_KEYS]
    for key in line.keys:
        for unused in unused_keys:
            if unused.has(key) and key != "critic.enable" and unused.unused(config):
                yield f"{key}={OmegaConf.select(config, key)} does nothing: {unused.reason}."
                break


def _of_extensions() -> Iterator[UnusedKey]:
    for declaration in extension.declarations():
        if declaration.unused_keys is not None:
            yield from extension.load(declaration.unused_keys)
