"""Checks of a config under GVPO."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.algorithms.gvpo.settings import GvpoSettings, check_gvpo_settings
from verl_gsd.extension import ROLLOUTS
from verl_gsd.run.checks.parallelism import workers_of
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import files_with

_LOSS = "actor_rollout_ref.actor.policy_loss"


def is_gvpo(config: DictConfig) -> bool:
    """Whether the policy loss is GVPO's."""
    return OmegaConf.select(config, f"{_LOSS}.loss_mode") == "gvpo"


def check_gvpo(config: DictConfig, line: Line) -> Iterator[str]:
    """Check GVPO's settings against the other settings, and the settings of its loss."""
    section = OmegaConf.select(config, "algorithm.gsd.gvpo")
    has_loss = is_gvpo(config)
    if not has_loss and section is None:
        return
    loss_mode = OmegaConf.select(config, f"{_LOSS}.loss_mode")
    if section is None or loss_mode is None:
        yield (
            f"{_LOSS}.loss_mode={loss_mode} {'with' if section is not None else 'without'} algorithm.gsd.gvpo: GVPO "
            "needs both. Set algo=gvpo, or use another algo for another loss."
        )
        return
    if not has_loss:
        return  # a declared conflict
    settings = GvpoSettings.of(section)
    yield from _check_loss_settings(config)
    yield from _check_second_kl(config, settings)
    if not _are_counts(config):
        return  # another check reports this
    yield from _check_batches(config)
    if settings.grouping == "whole":
        yield from _check_whole_groups(config)
    if settings.history_fraction:
        yield from _check_history(config, settings.history_fraction)


def _check_loss_settings(config: DictConfig) -> Iterator[str]:
    loss = config.actor_rollout_ref.actor.policy_loss
    valid = {"beta": 1.0, "normalizer": "k", "reference": "old", "var": True, "cov": True}
    for name in valid:
        try:
            check_gvpo_settings(**valid | {name: loss.get(name)})
        except ValueError as error:
            yield f"{_LOSS}.{error}"


def _check_second_kl(config: DictConfig, settings: GvpoSettings) -> Iterator[str]:
    """Check for a KL term in the loss. A KL term in the reward is a declared conflict."""
    actor = config.actor_rollout_ref.actor
    if not settings.allow_second_kl and actor.use_kl_loss and actor.kl_loss_coef != 0:
        # With reference=ref, use_kl_loss must be true. Otherwise it would have no effect without a coefficient.
        needs_reference = actor.policy_loss.get("reference") == "ref"
        key = "actor_rollout_ref.actor"
        without = f"{key}.kl_loss_coef=0" if needs_reference else f"{key}.use_kl_loss=false and remove kl_loss_coef"
        yield (
            f"actor_rollout_ref.actor.kl_loss_coef={actor.kl_loss_coef}: GVPO's beta already is a KL term, and a "
            f"second one moves its optimum. Set {without}, or algorithm.gsd.gvpo.allow_second_kl=true to keep both."
        )


def _are_counts(config: DictConfig) -> bool:
    """Whether the numbers that the following checks use are positive integers."""
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    numbers = (config.actor_rollout_ref.rollout.n, actor.ppo_mini_batch_size, trainer.nnodes, trainer.n_gpus_per_node)
    return all(isinstance(number, int) and number > 0 for number in numbers)


def _check_batches(config: DictConfig) -> Iterator[str]:
    actor, size, workers = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n, workers_of(config)
    rows = actor.ppo_mini_batch_size * size
    mini_batch = (
        f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} prompts, {size} responses each"
    )
    if workers and rows % workers:
        return  # parallelism.py reports this
    micro = actor.ppo_micro_batch_size_per_gpu
    if workers and not actor.use_dynamic_bsz and isinstance(micro, int) and (micro < 1 or rows // workers % micro):
        yield (
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}: each worker gets {rows // workers} rows of "
            f"a mini-batch ({mini_batch}). Set it to a divisor of {rows // workers}, or set "
            "actor_rollout_ref.actor.use_dynamic_bsz=true."
        )


def _check_whole_groups(config: DictConfig) -> Iterator[str]:
    actor, size = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    remedy = "or set algorithm.gsd.gvpo.grouping=auto."
    rows = actor.ppo_micro_batch_size_per_gpu
    if not actor.use_dynamic_bsz and isinstance(rows, int) and rows % size:
        yield (
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={rows}: with grouping=whole, a micro-batch holds "
            f"whole groups of {size} rows. Set it to a multiple of {size}, {remedy}"
        )
    workers = workers_of(config)
    if workers and actor.ppo_mini_batch_size % workers:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: with grouping=whole, {workers} "
            f"workers share its groups evenly. Set it to a multiple of {workers}, {remedy}"
        )
    for file in files_with(ROLLOUTS, config.data.train_files):
        yield (
            f"data.train_files={file} has a column {ROLLOUTS}: groups of different sizes do not fit into "
            "micro-batches of whole groups. Set algorithm.gsd.gvpo.grouping=prepass."
        )


def _check_history(config: DictConfig, share: float) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    if rollout.n == 1:
        yield "actor_rollout_ref.rollout.n=1: a group of one has no room for an earlier response. Set it to 2 or more."
    elif share * rollout.n < 0.5:
        yield (
            f"algorithm.gsd.gvpo.history_fraction={share} of actor_rollout_ref.rollout.n={rollout.n} responses rounds "
            f"to none. Set it to {0.5 / rollout.n:.3g} or more, or to 0."
        )
