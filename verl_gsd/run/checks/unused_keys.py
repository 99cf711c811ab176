"""Keys that do nothing for the algorithm chosen: written on the line, they are an error and not a surprise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from verl_gsd.audit import is_dagrpo_loss, is_gvpo
from verl_gsd.dial_settings import DIAL_SETTINGS
from verl_gsd.run.checks.gsd_section import is_ours
from verl_gsd.run.compose import Line
from verl_gsd.run.engines import engine_of


@dataclass(frozen=True)
class _Idle:
    """A key (or everything below it) that has no effect while ``idle`` holds."""

    prefix: str
    idle: Callable[[DictConfig], bool]
    because: str


def _no_reference(config: DictConfig) -> bool:
    return not (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _no_kl_loss(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_kl_loss


def _no_critic(config: DictConfig) -> bool:
    return not (config.algorithm.adv_estimator == "gae" if config.critic.enable is None else config.critic.enable)


def _dagrpo(config: DictConfig, key: str, default: str | None) -> str | None:
    found = OmegaConf.select(config, f"algorithm.gsd.dagrpo.{key}")
    return default if found is None else found


def _not_scored_by(scorers: tuple[str, ...]) -> Callable[[DictConfig], bool]:
    return lambda config: _dagrpo(config, "judge.scorer", "openai") not in scorers


#: Keys of a judge, by the scorers that read them.
_READ_BY = {
    "base_url": ("openai",),
    "api_key_env": ("openai",),
    "answer": ("openai",),
    "retries": ("openai",),
    "model": ("openai", "distilled"),
    "timeout_s": ("openai", "reward_model"),
}

_IDLE_KEYS = (
    *(
        _Idle(f"actor_rollout_ref.actor.{clip}", is_gvpo, "GVPO has no ratio and clips nothing")
        for clip in ("clip_ratio", "clip_ratio_low", "clip_ratio_high", "clip_ratio_c")
    ),
    _Idle(
        "actor_rollout_ref.actor.loss_agg_mode",
        lambda c: (
            is_gvpo(c)
            and not c.actor_rollout_ref.actor.entropy_coeff
            and not (c.actor_rollout_ref.actor.use_kl_loss and c.actor_rollout_ref.actor.kl_loss_coef)
        ),
        "GVPO averages its own loss over groups, and no other term is on",
    ),
    _Idle(
        "actor_rollout_ref.actor.use_kl_loss",
        lambda c: (
            is_gvpo(c)
            and c.actor_rollout_ref.actor.use_kl_loss
            and c.actor_rollout_ref.actor.kl_loss_coef == 0
            and c.actor_rollout_ref.actor.policy_loss.get("reference") == "old"
        ),
        "at kl_loss_coef=0 with policy_loss.reference=old nobody reads the reference model",
    ),
    _Idle(
        "algorithm.gsd.gvpo.allow_second_kl",
        lambda c: (
            c.algorithm.gsd.gvpo.allow_second_kl
            and not c.algorithm.use_kl_in_reward
            and not (c.actor_rollout_ref.actor.use_kl_loss and c.actor_rollout_ref.actor.kl_loss_coef)
        ),
        "no second KL term is on",
    ),
    *(
        _Idle(
            f"actor_rollout_ref.actor.policy_loss.{name}",
            lambda c: not is_gvpo(c),
            "only policy_loss.loss_mode=gvpo reads it; write algo=gvpo",
        )
        for name in ("beta", "reference", "normalizer", "var", "cov")
    ),
    *(
        _Idle(
            f"algorithm.gsd.dagrpo.judge.{name}",
            _not_scored_by(scorers),
            f"only judge.scorer={' and '.join(scorers)} reads it",
        )
        for name, scorers in _READ_BY.items()
    ),
    _Idle(
        "algorithm.gsd.dagrpo.judge.cache_mb",
        lambda c: _dagrpo(c, "judge.cache", None) is None,
        "algorithm.gsd.dagrpo.judge.cache is null",
    ),
    *(
        _Idle(
            f"algorithm.gsd.dagrpo.{name}",
            lambda c: OmegaConf.select(c, "algorithm.gsd.dagrpo.judge") is None,
            "nobody judges, and every pair counts; write algo=dagrpo or dagrpo_mask",
        )
        for name in ("signed", "mask", "rescale", "fail_closed")
    ),
    _Idle(
        "algorithm.gsd.dagrpo.demonstrations.column",
        lambda c: _dagrpo(c, "demonstrations.source", "expert") == "self",
        "algorithm.gsd.dagrpo.demonstrations.source=self reads no column",
    ),
    _Idle(
        "actor_rollout_ref.actor.policy_loss.gamma",
        lambda c: c.actor_rollout_ref.actor.policy_loss.get("ratio") == "one",
        "policy_loss.ratio=one is not shaped",
    ),
    *(
        _Idle(
            f"actor_rollout_ref.actor.policy_loss.{name}",
            lambda c: not is_dagrpo_loss(c),
            "only policy_loss.loss_mode=dagrpo reads it; write algo=dagrpo or dagrpo_anchors",
        )
        for name in ("on_policy", "ratio", "gamma")
    ),
    _Idle(
        "algorithm.norm_adv_by_std_in_grpo",
        lambda c: c.algorithm.adv_estimator not in ("grpo", "grpo_vectorized", "grpo_passk"),
        "only grpo, grpo_vectorized and grpo_passk read it; write algorithm.gsd.alpha, 1 to divide and 0 not to",
    ),
    *(
        _Idle(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.adv_estimator != "gsd",
            "only the estimator gsd reads it; write algorithm.adv_estimator=gsd",
        )
        for name in DIAL_SETTINGS
    ),
    *(
        _Idle(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.gsd.alpha == 0,
            "alpha=0 divides by nothing",
        )
        for name in ("ddof", "eps")
    ),
    _Idle(
        "algorithm.filter_groups.metric",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    _Idle(
        "algorithm.filter_groups.max_inflight_gen_batches",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    _Idle(
        "algorithm.filter_groups.max_num_gen_batches",
        lambda c: True,
        "verl's V1 replay buffer ignores it; write algorithm.filter_groups.max_inflight_gen_batches",
    ),
    _Idle("algorithm.kl_ctrl", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    _Idle("algorithm.kl_penalty", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    _Idle(
        "algorithm.gamma",
        lambda c: c.algorithm.adv_estimator in ("gsd", "grpo", "grpo_vectorized", "grpo_passk", "rloo"),
        "an outcome's reward is not discounted by this estimator",
    ),
    *(
        _Idle(
            f"actor_rollout_ref.actor.{size}",
            lambda c: c.actor_rollout_ref.actor.use_dynamic_bsz,
            "use_dynamic_bsz=true packs by tokens; write ppo_max_token_len_per_gpu, or turn that off",
        )
        for size in ("ppo_micro_batch_size_per_gpu", "ppo_micro_batch_size")
    ),
    _Idle("algorithm.lam", lambda c: c.algorithm.adv_estimator != "gae", "only the estimator gae reads it"),
    _Idle(
        "algorithm.gsd.poll_interval",
        lambda c: not is_ours(c),
        "only our trainer modes read it; write trainer.v1.trainer_mode=gsd_sync",
    ),
    _Idle(
        "algorithm.gsd.limits",
        lambda c: not is_ours(c),
        "only our trainer modes watch a run; set trainer.v1.trainer_mode=gsd_sync",
    ),
    _Idle(
        "algorithm.gsd.state",
        lambda c: not is_ours(c),
        "only our trainer modes remember; write trainer.v1.trainer_mode=gsd_sync",
    ),
    _Idle(
        "data.shuffle",
        # verl has it decide, too, whether data.train_max_samples and data.val_max_samples are the first ones.
        lambda c: (
            OmegaConf.select(c, "algorithm.gsd.sampler") is not None
            and c.data.train_max_samples <= 0
            and c.data.val_max_samples <= 0
        ),
        "algorithm.gsd.sampler draws the prompts; write sampler=uniform to have verl's order",
    ),
    _Idle("actor_rollout_ref.actor.kl_loss_coef", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    _Idle("actor_rollout_ref.actor.kl_loss_type", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    _Idle("actor_rollout_ref.ref", _no_reference, "no KL term is on, so there is no reference model"),
    _Idle(
        "actor_rollout_ref.actor.clip_ratio",
        lambda c: (
            c.actor_rollout_ref.actor.clip_ratio_low is not None
            and c.actor_rollout_ref.actor.clip_ratio_high is not None
        ),
        "clip_ratio_low and clip_ratio_high are set and win; write those",
    ),
    _Idle(
        "actor_rollout_ref.actor.loss_scale_factor",
        lambda c: c.actor_rollout_ref.actor.loss_agg_mode != "seq-mean-token-sum-norm",
        "only loss_agg_mode=seq-mean-token-sum-norm reads it",
    ),
    *(
        _Idle(
            f"actor_rollout_ref.{role}.fsdp_config",
            lambda c: engine_of(c) != "dp",
            "only model_engine=dp reads it",
        )
        for role in ("actor", "ref")
    ),
    _Idle("critic", _no_critic, "the estimator needs no critic and critic.enable is not true"),
)


def keys_have_effect(config: DictConfig, line: Line) -> Iterator[str]:
    for key in line.keys:
        for idle in _IDLE_KEYS:
            below = key == idle.prefix or key.startswith(idle.prefix + ".")
            if below and key != "critic.enable" and idle.idle(config):
                yield f"{key}={OmegaConf.select(config, key)} does nothing: {idle.because}."
                break
