"""Keys that have no effect under the resolved config.

``run/checks/unused_keys.py`` rejects such a key on a command line, and the report does not advise it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_gsd.dial_settings import DIAL_SETTINGS
from verl_gsd.errors import OUR_MODES
from verl_gsd.extension import declarations, declared_object


@dataclass(frozen=True)
class UnusedKey:
    """A key, or all keys below it, that has no effect while a condition holds.

    Attributes:
        prefix: the key, or the section that contains the keys.
        unused: takes the resolved config, which contains the key; returns whether the key has no effect.
        reason: why, and what to set instead. It has no full stop at its end.
    """

    prefix: str
    unused: Callable[[DictConfig], bool]
    reason: str

    def has(self, key: str) -> bool:
        """Whether ``key`` is this key or a key of this section."""
        return key == self.prefix or key.startswith(self.prefix + ".")


def _is_verls_trainer(config: DictConfig) -> bool:
    return config.trainer.v1.trainer_mode not in OUR_MODES.values()


def _is_not_fsdp(config: DictConfig) -> bool:
    return (OmegaConf.select(config, "model_engine") or "dp") != "dp"


def _no_reference(config: DictConfig) -> bool:
    return not (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _no_kl_loss(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_kl_loss


def _no_critic(config: DictConfig) -> bool:
    return not (config.algorithm.adv_estimator == "gae" if config.critic.enable is None else config.critic.enable)


#: Keys that do not depend on an extension.
KEYS = (
    UnusedKey(
        "algorithm.norm_adv_by_std_in_grpo",
        lambda c: c.algorithm.adv_estimator not in ("grpo", "grpo_vectorized", "grpo_passk"),
        "only grpo, grpo_vectorized and grpo_passk read it. Set algorithm.gsd.alpha=1 to divide by sigma, 0 to keep it",
    ),
    *(
        UnusedKey(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.adv_estimator != "gsd",
            "only the estimator gsd reads it. Set algorithm.adv_estimator=gsd",
        )
        for name in DIAL_SETTINGS
    ),
    *(
        UnusedKey(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.gsd.alpha == 0,
            "nothing is divided by sigma, because algorithm.gsd.alpha=0",
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
        "verl's V1 replay buffer ignores it. Set algorithm.filter_groups.max_inflight_gen_batches",
    ),
    UnusedKey("algorithm.kl_ctrl", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    UnusedKey(
        "algorithm.kl_penalty", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"
    ),
    UnusedKey(
        "algorithm.gamma",
        lambda c: c.algorithm.adv_estimator in ("gsd", "grpo", "grpo_vectorized", "grpo_passk", "rloo"),
        "this estimator does not discount rewards",
    ),
    *(
        UnusedKey(
            f"actor_rollout_ref.actor.{size}",
            lambda c: c.actor_rollout_ref.actor.use_dynamic_bsz,
            "use_dynamic_bsz=true fills batches by tokens. Remove it, or set use_dynamic_bsz=false",
        )
        for size in ("ppo_micro_batch_size_per_gpu", "ppo_micro_batch_size")
    ),
    UnusedKey("algorithm.lam", lambda c: c.algorithm.adv_estimator != "gae", "only the estimator gae reads it"),
    UnusedKey(
        "algorithm.gsd.poll_interval",
        _is_verls_trainer,
        "only our trainer modes read it. Set trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey(
        "algorithm.gsd.limits",
        _is_verls_trainer,
        "only our trainer modes watch a run. Set trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey(
        "algorithm.gsd.state",
        _is_verls_trainer,
        "only our trainer modes keep a memory. Set trainer.v1.trainer_mode=gsd_sync",
    ),
    UnusedKey("actor_rollout_ref.actor.kl_loss_coef", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    UnusedKey("actor_rollout_ref.actor.kl_loss_type", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    UnusedKey("actor_rollout_ref.ref", _no_reference, "the config has no KL term, so there is no reference model"),
    UnusedKey(
        "actor_rollout_ref.actor.grad_clip",
        lambda c: c.actor_rollout_ref.actor.grad_clip != c.actor_rollout_ref.actor.optim.clip_grad,
        "verl's optimiser reads another key. Set actor_rollout_ref.actor.optim.clip_grad",
    ),
    UnusedKey(
        "actor_rollout_ref.actor.clip_ratio",
        lambda c: (
            c.actor_rollout_ref.actor.clip_ratio_low is not None
            and c.actor_rollout_ref.actor.clip_ratio_high is not None
        ),
        "clip_ratio_low and clip_ratio_high are set, and verl uses them instead. Set these two",
    ),
    UnusedKey(
        "actor_rollout_ref.actor.loss_scale_factor",
        lambda c: c.actor_rollout_ref.actor.loss_agg_mode != "seq-mean-token-sum-norm",
        "only loss_agg_mode=seq-mean-token-sum-norm reads it",
    ),
    *(
        UnusedKey(
            f"actor_rollout_ref.{role}.fsdp_config",
            _is_not_fsdp,
            "only model_engine=dp reads it",
        )
        for role in ("actor", "ref")
    ),
    UnusedKey("critic", _no_critic, "the estimator needs no critic, and critic.enable is not true"),
)


def unused_keys(key: str) -> Iterator[UnusedKey]:
    """All entries for ``key``: those of extensions come before the others."""
    if key != "critic.enable":  # it says whether there is a critic
        yield from (unused for unused in (*_of_extensions(), *KEYS) if unused.has(key))


def _of_extensions() -> Iterator[UnusedKey]:
    for declaration in declarations():
        if declaration.unused_keys is not None:
            yield from declared_object(declaration, "unused_keys")
