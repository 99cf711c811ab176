"""Reads the ``Footprint`` of a run from its resolved config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.config.attention import SDPA
from verl_gsd.hub_cache import cached_config
from verl_gsd.planning.footprint import Footprint
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.run.checks.parallelism import attention_of, model_config, sequence_parallel
from verl_gsd.scalars import is_finite, is_whole

#: The value of hardware.gpu_memory_gib, for messages. ``gpus.memory_gib_here`` computes the same.
MEMORY_OF_A_GPU = (
    "the total memory of one GPU in nvidia-smi, in GiB and rounded down (for example 22 for an L4 of 24 GB, which "
    "shows 23034 MiB)"
)


def shape_of(config: DictConfig) -> Shape | None:
    """The shape of the policy; None if it is not known.

    It comes from the model's folder, the table of known models, or the cache of downloaded ones.
    """
    shape = shape_of_model(str(config.actor_rollout_ref.model.path))
    positions = OmegaConf.select(config, "actor_rollout_ref.model.override_config.max_position_embeddings")
    # verl sets what a run overrides in the model's config before it reads the longest sequence from it.
    return replace(shape, positions=positions) if shape is not None and is_whole(positions, 1) else shape


def shape_of_model(path: str) -> Shape | None:
    """As ``shape_of``, for any model."""
    if (Path(path).expanduser() / "config.json").is_file():
        return Shape.of(model_config(path))
    if path in SHAPES:
        return SHAPES[path]
    cached = cached_config(path)
    return None if cached is None else Shape.of(model_config(str(cached.parent)))


def has_scaled_positions(path: str) -> bool:
    """Whether a model's config extends its rotary positions, for example with YaRN. False if it is not known."""
    cached = None if (Path(path).expanduser() / "config.json").is_file() else cached_config(path)
    config = model_config(path if cached is None else str(cached.parent))
    kinds = [config.get(name) for name in ("rope_scaling", "rope_parameters")]
    return any(isinstance(kind, dict) and kind.get("rope_type", kind.get("type")) != "default" for kind in kinds)


def gpu_memory_gib(config: DictConfig) -> float | None:
    """GiB of one GPU; None if it is not set. Also None for engines other than FSDP, whose sharding is not modeled."""
    value = OmegaConf.select(config, "hardware.gpu_memory_gib")
    return value if is_finite(value) and config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2") else None


def has_valid_sizes(config: DictConfig) -> bool:
    """Whether the values that the estimate reads are positive numbers. Another check reports those that are not."""
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rewards = config.reward.reward_model
    sizes = [
        data.max_prompt_length,
        data.max_response_length,
        actor.ppo_max_token_len_per_gpu,
        rollout.n,
        rollout.tensor_model_parallel_size,
        config.trainer.nnodes,
        config.trainer.n_gpus_per_node,
    ]
    shares = [rollout.gpu_memory_utilization]
    if rewards.enable:
        sizes.append(rewards.rollout.tensor_model_parallel_size)
        shares.append(rewards.rollout.gpu_memory_utilization)
    return all(is_whole(size, 1) for size in sizes) and all(is_finite(share) for share in shares)


def has_adapter(config: DictConfig) -> bool:
    """Whether the policy trains a LoRA adapter. A rank that is no integer counts as none; another check reports it."""
    return is_whole(config.actor_rollout_ref.model.lora_rank, 1)


def footprint_of(config: DictConfig, shape: Shape) -> Footprint:
    """The footprint of a resolved config with FSDP and valid sizes (``has_valid_sizes``).

    If ``hardware.gpu_memory_gib`` is not a number, ``memory_gib`` is 0.
    """
    policy = config.actor_rollout_ref
    actor, model, rollout = policy.actor, policy.model, policy.rollout
    rewards = config.reward.reward_model
    is_colocated = rewards.enable and not rewards.enable_resource_pool
    fsdp, gpus = actor.fsdp_config, config.trainer.nnodes * config.trainer.n_gpus_per_node
    length = config.data.max_prompt_length + config.data.max_response_length
    split = sequence_parallel(actor)
    size = fsdp.fsdp_size
    return Footprint(
        shape=shape,
        memory_gib=gpu_memory_gib(config) or 0,
        gpus_per_node=config.trainer.n_gpus_per_node,
        shards=min(size, gpus) if isinstance(size, int) and size > 0 else gpus,
        length=length,
        responses=rollout.n,
        adapter=has_adapter(config),
        fsdp2=actor.strategy == "fsdp2",
        half="16" in str(fsdp.model_dtype),
        fused=bool(model.use_fused_kernels),
        sdpa=attention_of(config) == SDPA,
        packed=bool(model.use_remove_padding),
        dynamic=bool(actor.use_dynamic_bsz),
        sleeps=_sleeps(rollout),
        tokens=actor.ppo_max_token_len_per_gpu
        if actor.use_dynamic_bsz
        else (actor.ppo_micro_batch_size_per_gpu or 1) * length // split,
        sequence_parallel=split,
        param_offload=bool(fsdp.param_offload),
        optimizer_offload=bool(fsdp.optimizer_offload),
        offload_policy=bool(fsdp.offload_policy),
        utilization=rollout.gpu_memory_utilization,
        tensor_parallel=rollout.tensor_model_parallel_size,
        max_model_len=rollout.max_model_len,
        reward_share=rewards.rollout.gpu_memory_utilization if is_colocated else 0.0,
        reward_sleeps=_sleeps(rewards.rollout) or not is_colocated,
    )


def _sleeps(rollout: DictConfig) -> bool:
    return bool(rollout.free_cache_engine and rollout.get("enable_sleep_mode", True))
