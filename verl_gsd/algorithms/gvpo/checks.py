"""What can be wrong with a config under GVPO."""

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


def gvpo_wrong(config: DictConfig, line: Line) -> Iterator[str]:
    """Everything that is wrong with GVPO's settings together with others, and with those of its loss."""
    section = OmegaConf.select(config, "algorithm.gsd.gvpo")
    used = is_gvpo(config)
    if not used and section is None:
        return
    if not used or section is None:
        yield (
            f"{_LOSS}.loss_mode={OmegaConf.select(config, f'{_LOSS}.loss_mode')} "
            f"{'with' if section is not None else 'without'} algorithm.gsd.gvpo: GVPO is both. Set algo=gvpo, or "
            "another algo for another loss."
        )
        return
    settings = GvpoSettings.of(section)
    yield from _loss_settings(config)
    yield from _second_kl(config, settings)
    if not _counts(config):
        return  # named where counts are checked
    yield from _batches_impossible(config)
    if settings.grouping == "whole":
        yield from _whole_impossible(config)
    if settings.history_fraction:
        yield from _history_too_small(config, settings.history_fraction)


def _loss_settings(config: DictConfig) -> Iterator[str]:
    loss = config.actor_rollout_ref.actor.policy_loss
    right = {"beta": 1.0, "normalizer": "k", "reference": "old", "var": True, "cov": True}
    for name in right:
        try:
            check_gvpo_settings(**right | {name: loss.get(name)})
        except ValueError as error:
            yield f"{_LOSS}.{error}"


def _second_kl(config: DictConfig, settings: GvpoSettings) -> Iterator[str]:
    """A KL term of the loss. The one in the reward is a declared conflict."""
    actor = config.actor_rollout_ref.actor
    if not settings.allow_second_kl and actor.use_kl_loss and actor.kl_loss_coef != 0:
        yield (
            f"actor_rollout_ref.actor.kl_loss_coef={actor.kl_loss_coef}: GVPO's beta is a KL term already, and a "
            "second one moves its optimum. Set actor_rollout_ref.actor.kl_loss_coef=0, or "
            "algorithm.gsd.gvpo.allow_second_kl=true to keep both."
        )


def _counts(config: DictConfig) -> bool:
    """Whether the numbers that the checks below reckon with are counts."""
    actor, trainer = config.actor_rollout_ref.actor, config.trainer
    numbers = (config.actor_rollout_ref.rollout.n, actor.ppo_mini_batch_size, trainer.nnodes, trainer.n_gpus_per_node)
    return all(isinstance(number, int) and number > 0 for number in numbers)


def _batches_impossible(config: DictConfig) -> Iterator[str]:
    actor, size, workers = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n, workers_of(config)
    rows = actor.ppo_mini_batch_size * size
    named = f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} of {size} responses each"
    if workers and rows % workers:
        return  # parallelism.py says so
    micro = actor.ppo_micro_batch_size_per_gpu
    if workers and not actor.use_dynamic_bsz and isinstance(micro, int) and (micro < 1 or rows // workers % micro):
        yield (
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}: a worker has {rows // workers} rows of a "
            f"mini-batch ({named}). Set it to a divisor of that, or set actor_rollout_ref.actor.use_dynamic_bsz=true."
        )


def _whole_impossible(config: DictConfig) -> Iterator[str]:
    actor, size = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    remedy = "or set algorithm.gsd.gvpo.grouping=auto."
    rows = actor.ppo_micro_batch_size_per_gpu
    if not actor.use_dynamic_bsz and isinstance(rows, int) and rows % size:
        yield (
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={rows}: with grouping=whole a micro-batch holds "
            f"whole groups of {size}. Set it to a multiple of {size}, {remedy}"
        )
    workers = workers_of(config)
    if workers and actor.ppo_mini_batch_size % workers:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: with grouping=whole its "
            f"groups go to {workers} workers evenly. Set it to a multiple of {workers}, {remedy}"
        )
    for file in files_with(ROLLOUTS, config.data.train_files):
        yield (
            f"data.train_files={file} has a column {ROLLOUTS}: groups of several sizes do not fit micro-batches of "
            "whole groups. Set algorithm.gsd.gvpo.grouping=prepass."
        )


def _history_too_small(config: DictConfig, share: float) -> Iterator[str]:
    rollout = config.actor_rollout_ref.rollout
    if rollout.n == 1:
        yield "actor_rollout_ref.rollout.n=1: a group of one has no room for an earlier response. Set it to 2 or more."
    elif share * rollout.n < 0.5:
        yield (
            f"algorithm.gsd.gvpo.history_fraction={share} of actor_rollout_ref.rollout.n={rollout.n} responses is "
            f"none. Set it to {0.5 / rollout.n:.3g} or more, or 0."
        )
