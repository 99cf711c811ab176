"""Check before Ray starts that a run fits the memory of its GPUs (``hardware.gpu_memory_gib``).

``planning/memory.py`` computes the sizes. The peak of an update is an estimate: the config is rejected if the peak
exceeds the GPU by more than 10%, and a warning is printed if it is above 90%. The memory that vLLM and the training
states need during generation is known more exactly, so that any excess is rejected.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_gsd.config.attention import SDPA
from verl_gsd.planning.memory import SHAPES, Shape, kv_cache_gib, padded_mask_gib, states_gib, update_gib, weights_gib
from verl_gsd.run.checks.parallelism import attention_of, model_config, sequence_parallel
from verl_gsd.run.cluster_lock import accelerators
from verl_gsd.run.compose import Line
from verl_gsd.scalars import is_finite

#: An update whose estimate is above these shares of a GPU's memory leads to a warning, or is rejected.
TIGHT, TOO_MUCH = 0.9, 1.1
#: GiB that vLLM needs for activations and CUDA graphs, in addition to weights and KV cache. A rough figure.
_VLLM_OWN_GIB = 3.0

#: Measured seconds of an AdamW step on one CPU thread per 1e9 parameters. Slower updates than the second lead to a
#: warning.
_ADAMW_S, SLOW_OPTIMIZER_S = 8.65, 15.0
#: A model with more parameters is too large for a CPU. The embedded model has a million.
_CPU_PARAMETERS = 2e8
#: The part of an update's memory that vLLM keeps if it does not release it.
_AWAKE = "vLLM awake"

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def check_memory(config: DictConfig, line: Line) -> Iterator[str]:
    """Check the number of GPUs, sequence lengths and memory against the hardware group and the model."""
    yield from _check_gpu_count(config)
    size = OmegaConf.select(config, "hardware.gpu_memory_gib")
    if size is not None and not (is_finite(size) and size > 0):
        yield (
            f"hardware.gpu_memory_gib={size}: not a number above 0. Set it to the GiB of one GPU, or to null to skip "
            "the checks of memory."
        )
    shape = shape_of(config)
    if shape is None or not _has_valid_sizes(config):
        return
    length, actor = _length(config), config.actor_rollout_ref.actor
    if length > shape.positions:
        yield (
            f"data.max_prompt_length={config.data.max_prompt_length} and "
            f"data.max_response_length={config.data.max_response_length}: together {length} tokens, but "
            f"{config.actor_rollout_ref.model.path} supports {shape.positions}. verl would cut responses there without "
            "a warning. Set smaller lengths, or use a model with a longer context."
        )
    room = actor.ppo_max_token_len_per_gpu * sequence_parallel(actor)
    if actor.use_dynamic_bsz and room < length:
        yield (
            f"{_ACTOR}.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu}: verl fails if a sequence does not "
            f"fit into a micro-batch, and a sequence can have {length} tokens. Set it to "
            f"{-(-length // sequence_parallel(actor))} or more."
        )
    memory = _memory(config)
    if memory is None:
        return
    yield from _check_update(config, shape, memory)
    yield from _check_rollout(config, shape, memory)


def estimate(config: DictConfig) -> Iterator[str]:
    """Describe the memory estimate of a run, with warnings. Without a size of the GPUs there are only warnings."""
    memory, path, shape = _memory(config), config.actor_rollout_ref.model.path, shape_of(config)
    if config.get("hardware") is None:
        yield (
            "warning: hardware= is not set, so that memory is not estimated and the number of GPUs is verl's default. "
            "Set hardware=gpu for the GPUs of this machine, or another choice of hardware=."
        )
    elif config.trainer.device == "cpu" and shape is not None and shape.parameters > _CPU_PARAMETERS:
        yield (
            f"warning: {path} has {shape.parameters / 1e9:.1f}e9 parameters, and hardware=cpu is for small models. Set "
            "task=arithmetic to use one."
        )
    if memory is None or not _has_valid_sizes(config):
        return
    if shape is None:
        yield (
            f"warning: memory is not estimated, because the sizes of {path} are not known. Set "
            "actor_rollout_ref.model.path to a local folder of the model to estimate memory."
        )
        return
    update, rollout = _update(config, shape), config.actor_rollout_ref.rollout
    share = rollout.gpu_memory_utilization * memory
    cache = max(0.0, share - weights_gib(shape, _parallel(config)) - _VLLM_OWN_GIB)
    cached = int(cache / kv_cache_gib(shape, _length(config), _parallel(config)))
    yield (
        f"estimated GiB per GPU, of {memory:g}: an update {sum(update.values()):.0f}; generation {share:.0f} for vLLM "
        f"and {_resident(config, shape):.0f} for weights and optimizer of the trainer. The KV cache holds {cached} "
        "sequences of full length."
    )
    if TIGHT * memory < sum(update.values()) <= TOO_MUCH * memory:
        yield f"warning: the update may not fit into GPU memory. {_how_to_shrink(config, update)}"
    if config.actor_rollout_ref.actor.use_dynamic_bsz and not config.actor_rollout_ref.model.use_remove_padding:
        yield (
            "warning: actor_rollout_ref.model.use_remove_padding=false with use_dynamic_bsz=true: verl pads a "
            f"micro-batch of {config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu} tokens to its longest row, and "
            "the estimate does not count the padding. Set use_remove_padding=true."
        )
    if _streamed(config) and (seconds := _cpu_optimizer_s(config, shape)) > SLOW_OPTIMIZER_S:
        yield (
            f"warning: {_ACTOR}.fsdp_config.offload_policy=true: the optimizer runs on the CPU and takes about "
            f"{seconds:.0f} s per update with {_threads(config)} threads per worker. Set "
            "++ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS to the number of cores per worker."
        )
    if TIGHT * memory < share + _resident(config, shape) <= memory:
        yield f"warning: little GPU memory is left during generation. Set a smaller {_ROLLOUT}.gpu_memory_utilization."
    if cached < rollout.n:
        yield (
            f"warning: {_ROLLOUT}.n={rollout.n} responses of {_length(config)} tokens do not fit into the KV cache at "
            f"the same time. It holds {cached} of them, and the others wait. Set a larger "
            f"{_ROLLOUT}.gpu_memory_utilization or tensor_model_parallel_size."
        )


def shape_of(config: DictConfig) -> Shape | None:
    """The shape of the policy: from its local folder, or a known model of a recipe; None if it is not known."""
    path = str(config.actor_rollout_ref.model.path)
    if not (Path(path).expanduser() / "config.json").is_file():
        return SHAPES.get(path)
    return Shape.of(model_config(path))


def _check_gpu_count(config: DictConfig) -> Iterator[str]:
    hardware, trainer = config.get("hardware", {}), config.trainer
    if hardware.get("gpus_per_node") is None:
        return
    available = hardware.nodes * hardware.gpus_per_node
    needed = accelerators(config)
    if needed > available:
        separate = needed - trainer.nnodes * trainer.n_gpus_per_node
        others = f" and {separate} for the reward model (reward.reward_model.n_gpus_per_node)" if separate else ""
        yield (
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node} on {trainer.nnodes} nodes{others}: hardware="
            f"{hardware.name} has only {available} GPUs. Set a smaller number, set hardware.nodes to the number of "
            f"nodes with {hardware.gpus_per_node} GPUs, or use another choice of hardware=."
        )


def _check_update(config: DictConfig, shape: Shape, memory: float) -> Iterator[str]:
    parts = _update(config, shape)
    if sum(parts.values()) > TOO_MUCH * memory:
        sizes = ", ".join(f"{value:.1f} {name}" for name, value in parts.items())
        yield (
            f"hardware.gpu_memory_gib={memory:g}: an update needs about {sum(parts.values()):.0f} GiB of each GPU "
            f"({sizes}; {shape.parameters / 1e9:.2f}e9 parameters over {_shards(config)} GPUs, {_tokens(config)} "
            f"tokens per micro-batch). {_how_to_shrink(config, parts)} This is an estimate. To skip the checks of "
            "memory, set hardware.gpu_memory_gib=null."
        )


def _how_to_shrink(config: DictConfig, parts: dict[str, float]) -> str:
    """The setting to change to make an update smaller, chosen by the largest of its parts."""
    actor = config.actor_rollout_ref.actor
    if parts.get(_AWAKE, 0) > parts["states"]:
        return f"Set {_ROLLOUT}.free_cache_engine=true (and enable_sleep_mode=true)."
    if parts["states"] > parts["logits"] + parts["activations"]:
        return f"Set {_ACTOR}.fsdp_config.offload_policy=true (with strategy=fsdp2), or use more GPUs."
    if not actor.use_dynamic_bsz:
        return f"Set {_ACTOR}.ppo_micro_batch_size_per_gpu below {actor.ppo_micro_batch_size_per_gpu}."
    if actor.ppo_max_token_len_per_gpu * sequence_parallel(actor) > _length(config):
        least = -(-_length(config) // sequence_parallel(actor))
        return f"Set {_ACTOR}.ppo_max_token_len_per_gpu below {actor.ppo_max_token_len_per_gpu}, {least} or more."
    return f"Set {_ACTOR}.ulysses_sequence_parallel_size=2 or more, or a smaller data.max_response_length."


def _check_rollout(config: DictConfig, shape: Shape, memory: float) -> Iterator[str]:
    rollout, length = config.actor_rollout_ref.rollout, _length(config)
    setting = f"{_ROLLOUT}.gpu_memory_utilization={rollout.gpu_memory_utilization}"
    # vLLM starts only if its cache holds a sequence of max_model_len tokens, by default the model's whole context.
    max_length = rollout.max_model_len or shape.positions
    if rollout.max_model_len and max_length < length:
        yield (
            f"{_ROLLOUT}.max_model_len={max_length}: prompt and response can have {length} tokens, and verl cuts "
            f"responses there without a warning. Set it to {length} or more, or to null."
        )
    one_sequence = kv_cache_gib(shape, max_length, _parallel(config))
    share = rollout.gpu_memory_utilization * memory
    weights = weights_gib(shape, _parallel(config))
    if weights + one_sequence > share:
        shorter = f", {_ROLLOUT}.max_model_len={length}" if max_length > length else ""
        yield (
            f"{setting} of {memory:g} GiB: vLLM gets {share:.1f} GiB. The weights need {weights:.1f} GiB, and the KV "
            f"cache of one sequence of {max_length} tokens, without which vLLM does not start, {one_sequence:.1f} GiB. "
            f"Set a larger share{shorter}, or {_ROLLOUT}.tensor_model_parallel_size above {_parallel(config)}."
        )
    resident = _resident(config, shape)
    if share + resident > memory:
        yield (
            f"{setting} of {memory:g} GiB: in addition to these {share:.0f} GiB, the trainer keeps weights and "
            f"optimizer of {resident:.0f} GiB on the GPU. Set a smaller share, or "
            f"{_ACTOR}.fsdp_config.param_offload=true and optimizer_offload=true."
        )


def _update(config: DictConfig, shape: Shape) -> dict[str, float]:
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    copies = 1 if _has_adapter(config) else 4  # weights; if they are trained, also gradients and Adam's two moments
    parts = update_gib(
        shape,
        _shards(config),
        _tokens(config),
        states=0.0 if _streamed(config) else _states(config, shape, copies),
        logits=not model.use_fused_kernels,
        sdpa=attention_of(config) == SDPA,
    )
    if attention_of(config) == SDPA and not model.use_remove_padding:
        # For a micro-batch of full-length rows. Packed rows need no mask (trainer/attention.py).
        rows = max(1, _tokens(config) * sequence_parallel(config.actor_rollout_ref.actor) // _length(config))
        parts["attention mask"] = padded_mask_gib(rows, _length(config))
    if not (rollout.free_cache_engine and rollout.get("enable_sleep_mode", True)):
        parts[_AWAKE] = rollout.gpu_memory_utilization * (_memory(config) or 0)
    return parts


def _resident(config: DictConfig, shape: Shape) -> float:
    """GiB that the actor keeps on a GPU while vLLM generates: weights and Adam's two moments, unless offloaded."""
    if _streamed(config):
        return 0.0
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    moments = 0 if fsdp.optimizer_offload or _has_adapter(config) else 2
    return _states(config, shape, (0 if fsdp.param_offload else 1) + moments)


def _states(config: DictConfig, shape: Shape, copies: int) -> float:
    half = "16" in str(config.actor_rollout_ref.actor.fsdp_config.model_dtype)
    return states_gib(shape, _shards(config), copies=copies, width=2 if half else 4)


def _streamed(config: DictConfig) -> bool:
    """Whether weights and optimizer states are kept in host memory. verl reads that key only under FSDP2."""
    actor = config.actor_rollout_ref.actor
    return bool(actor.strategy == "fsdp2" and actor.fsdp_config.offload_policy)


def _threads(config: DictConfig) -> int:
    """CPU threads of a training worker: OMP_NUM_THREADS of the run's environment, or Ray's default of 1."""
    threads = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS")
    return int(threads) if str(threads).isdecimal() and int(threads) else 1


def _cpu_optimizer_s(config: DictConfig, shape: Shape) -> float:
    """Seconds per update of an optimizer on the CPU, assuming that the threads share the work evenly."""
    return 0.0 if _has_adapter(config) else _ADAMW_S * shape.parameters / 1e9 / _shards(config) / _threads(config)


def _has_adapter(config: DictConfig) -> bool:
    """Whether the policy trains a LoRA adapter. Its weights are then frozen; the adapter's size is ignored."""
    return (config.actor_rollout_ref.model.lora_rank or 0) > 0


def _memory(config: DictConfig) -> float | None:
    """GiB of one GPU; None if it is not set. Also None for engines other than FSDP, whose sharding is not modeled."""
    value = OmegaConf.select(config, "hardware.gpu_memory_gib")
    return value if is_finite(value) and config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2") else None


def _shards(config: DictConfig) -> int:
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    size = config.actor_rollout_ref.actor.fsdp_config.fsdp_size
    return min(size, gpus) if isinstance(size, int) and size > 0 else gpus


def _length(config: DictConfig) -> int:
    return config.data.max_prompt_length + config.data.max_response_length


def _tokens(config: DictConfig) -> int:
    """Tokens of the largest micro-batch on one GPU."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return actor.ppo_max_token_len_per_gpu
    return (actor.ppo_micro_batch_size_per_gpu or 1) * _length(config) // sequence_parallel(actor)


def _parallel(config: DictConfig) -> int:
    return config.actor_rollout_ref.rollout.tensor_model_parallel_size


def _has_valid_sizes(config: DictConfig) -> bool:
    """Whether the values that the estimate reads are positive numbers. Another check reports those that are not."""
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    sizes = (
        data.max_prompt_length,
        data.max_response_length,
        actor.ppo_max_token_len_per_gpu,
        rollout.n,
        rollout.tensor_model_parallel_size,
        config.trainer.nnodes,
        config.trainer.n_gpus_per_node,
    )
    return all(isinstance(size, int) and size > 0 for size in sizes) and isinstance(
        rollout.gpu_memory_utilization, int | float
    )
