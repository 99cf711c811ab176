"""How a run is laid out over its workers, and what verl would refuse of that only when all of them stand."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.sections import is_whole
from verl_gsd.trainer.config import OUR_MODES, Line


def sequence_parallel(actor: DictConfig) -> int:
    """Over how many workers verl spreads one sequence: Ulysses, by its key or the deprecated one, or Megatron's."""
    ulysses = ["fsdp_config.ulysses_sequence_parallel_size", "ulysses_sequence_parallel_size"]
    keys = ["megatron.context_parallel_size"] if actor.strategy == "megatron" else ulysses
    found = [OmegaConf.select(actor, key) for key in keys]
    return max([1, *(size for size in found if isinstance(size, int))])


def workers_of(config: DictConfig) -> int:
    """Data-parallel workers; 0 where that is the engine's to say."""
    actor = config.actor_rollout_ref.actor
    if actor.strategy not in ("fsdp", "fsdp2"):
        return 0
    return config.trainer.nnodes * config.trainer.n_gpus_per_node // sequence_parallel(actor)


def layout_impossible(config: DictConfig, line: Line) -> Iterator[str]:
    """Rows of a mini-batch that workers cannot share, and vLLM replicas that the accelerators do not make."""
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    if not all(is_whole(n, 1) for n in (trainer.nnodes, trainer.n_gpus_per_node, rollout.n, actor.ppo_mini_batch_size)):
        return  # named by another check
    workers, rows = workers_of(config), actor.ppo_mini_batch_size * rollout.n
    if workers and rows % workers:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size} of {rollout.n} responses each: "
            f"{rows} rows are not shared by {workers} workers evenly. Write another mini-batch."
        )
    if trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        return  # replicas have accelerators of their own
    parallel, accelerators = rollout.tensor_model_parallel_size, trainer.nnodes * trainer.n_gpus_per_node
    if not is_whole(parallel, 1) or accelerators % parallel:
        yield (
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={parallel}: {accelerators} accelerators are not "
            f"shared by such replicas evenly. Write a divisor of {accelerators}."
        )
