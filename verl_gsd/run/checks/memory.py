"""Whether a config fits its GPUs, said before Ray starts: ``planning/memory.py`` against ``hardware.gpu_memory_gib``.

An update's peak is an estimate: what exceeds a GPU by a tenth is refused, what comes within a tenth of it warned of.
What vLLM's share must hold, and what lies beside it, are counts of bytes that have to be there: any excess is refused.
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
from verl_gsd.sections import is_finite

#: Shares of a GPU's memory above which an estimate is warned of, and refused.
TIGHT, TOO_MUCH = 0.9, 1.1
#: Of vLLM's share, beside weights and KV cache: its own activations and graphs, in GiB. A round figure.
_VLLM_OWN_GIB = 3.0

#: Seconds of AdamW on one CPU thread per 1e9 parameters, as measured, and seconds per update that are warned of.
_ADAMW_S, SLOW_OPTIMIZER_S = 8.65, 15.0
#: A model of more is not for a CPU: the embedded one has a million.
_CPU_PARAMETERS = 2e8
#: A part of an update's memory where vLLM keeps its own.
_AWAKE = "vLLM awake"

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def does_not_fit(config: DictConfig, line: Line) -> Iterator[str]:
    """What cannot be held, or not be read, by what the hardware group says there is."""
    yield from _gpus_missing(config)
    given = OmegaConf.select(config, "hardware.gpu_memory_gib")
    if given is not None and not (is_finite(given) and given > 0):
        yield f"hardware.gpu_memory_gib={given}: write GiB, a number above 0, or null to leave memory unchecked."
    shape = shape_of(config)
    if shape is None or not _counts(config):
        return
    length, actor = _length(config), config.actor_rollout_ref.actor
    if length > shape.positions:
        yield (
            f"data.max_prompt_length={config.data.max_prompt_length} and data.max_response_length="
            f"{config.data.max_response_length}: {length} tokens, and {config.actor_rollout_ref.model.path} reads "
            f"{shape.positions}: verl would cut responses there without a word. Write less, or a model that reads more."
        )
    room = actor.ppo_max_token_len_per_gpu * sequence_parallel(actor)
    if actor.use_dynamic_bsz and room < length:
        yield (
            f"{_ACTOR}.ppo_max_token_len_per_gpu={actor.ppo_max_token_len_per_gpu}: verl fails on a sequence that does "
            f"not fit a micro-batch, and one may have {length} tokens. Write {-(-length // sequence_parallel(actor))} "
            "or more."
        )
    memory = _memory(config)
    if memory is None:
        return
    yield from _update_too_large(config, shape, memory)
    yield from _rollout_too_large(config, shape, memory)


def estimate(config: DictConfig) -> Iterator[str]:
    """The estimate in words, for a user to see before a run; nothing where no hardware group says what a GPU holds."""
    memory, path, shape = _memory(config), config.actor_rollout_ref.model.path, shape_of(config)
    if config.get("hardware") is None:
        yield (
            "warning: no hardware= on the line: memory is not estimated, and the number of GPUs is verl's default. Set "
            "hardware=gpu for the GPUs of this machine, or another hardware group."
        )
    elif config.trainer.device == "cpu" and shape is not None and shape.parameters > _CPU_PARAMETERS:
        yield (
            f"warning: {path} has {shape.parameters / 1e9:.1f}e9 parameters, and hardware=cpu is for small models. Add "
            "task=arithmetic for one."
        )
    if memory is None or not _counts(config):
        return
    if shape is None:
        yield f"warning: memory is not estimated; the shape of {path} is not known here (one in a folder is)"
        return
    update, rollout = _update(config, shape), config.actor_rollout_ref.rollout
    share = rollout.gpu_memory_utilization * memory
    cache = max(0.0, share - weights_gib(shape, _parallel(config)) - _VLLM_OWN_GIB)
    cached = int(cache / kv_cache_gib(shape, _length(config), _parallel(config)))
    yield (
        f"memory of {memory:g} GiB a GPU, estimated: an update {sum(update.values()):.0f}; generation {share:.0f} and "
        f"{_resident(config, shape):.0f} of weights and optimiser, {cached} sequences of full length in its cache"
    )
    if TIGHT * memory < sum(update.values()) <= TOO_MUCH * memory:
        yield f"warning: that update may not fit. {_smaller(config, update)}"
    if config.actor_rollout_ref.actor.use_dynamic_bsz and not config.actor_rollout_ref.model.use_remove_padding:
        yield (
            "warning: actor_rollout_ref.model.use_remove_padding=false with use_dynamic_bsz=true: a micro-batch of "
            f"{config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu} tokens is padded to its longest row, and the "
            "estimate does not count the padding. Set use_remove_padding=true."
        )
    if _streamed(config) and (seconds := _cpu_optimizer_s(config, shape)) > SLOW_OPTIMIZER_S:
        yield (
            f"warning: {_ACTOR}.fsdp_config.offload_policy=true: the CPU makes the optimizer's step, about "
            f"{seconds:.0f} s per update with {_threads(config)} threads per worker. Set "
            "++ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS to the cores that a worker can use."
        )
    if TIGHT * memory < share + _resident(config, shape) <= memory:
        yield f"warning: generation leaves little beside it. Write a smaller {_ROLLOUT}.gpu_memory_utilization."
    if cached < rollout.n:
        yield (
            f"warning: {_ROLLOUT}.n={rollout.n} responses of {_length(config)} tokens do not fit the KV cache "
            f"together, {cached} do: the others wait. Write a larger {_ROLLOUT}.gpu_memory_utilization or "
            "tensor_model_parallel_size."
        )


def shape_of(config: DictConfig) -> Shape | None:
    """Of the policy: from its folder, or if it is a recipe's; None where it is not known here."""
    path = str(config.actor_rollout_ref.model.path)
    if not (Path(path).expanduser() / "config.json").is_file():
        return SHAPES.get(path)
    return Shape.of(model_config(path))


def _gpus_missing(config: DictConfig) -> Iterator[str]:
    hardware, trainer = config.get("hardware", {}), config.trainer
    if hardware.get("gpus_per_node") is None:
        return
    there = hardware.nodes * hardware.gpus_per_node
    needed = accelerators(config)
    if needed > there:
        apart = needed - trainer.nnodes * trainer.n_gpus_per_node
        also = f" and {apart} for the reward model (reward.reward_model.n_gpus_per_node)" if apart else ""
        yield (
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node} on {trainer.nnodes} nodes{also}: hardware="
            f"{hardware.name} has {there} GPUs. Write fewer, hardware.nodes=N if there are more nodes of "
            f"{hardware.gpus_per_node}, or another hardware group."
        )


def _update_too_large(config: DictConfig, shape: Shape, memory: float) -> Iterator[str]:
    parts = _update(config, shape)
    if sum(parts.values()) > TOO_MUCH * memory:
        said = ", ".join(f"{value:.1f} {name}" for name, value in parts.items())
        yield (
            f"hardware.gpu_memory_gib={memory:g}: an update needs about {sum(parts.values()):.0f} GiB of every GPU "
            f"({said}; {shape.parameters / 1e9:.2f}e9 parameters over {_shards(config)} GPUs, {_tokens(config)} tokens "
            f"a micro-batch). {_smaller(config, parts)} An estimate: hardware.gpu_memory_gib=null is for who knows "
            "better."
        )


def _smaller(config: DictConfig, parts: dict[str, float]) -> str:
    """What to write, by what takes the most."""
    actor = config.actor_rollout_ref.actor
    if parts.get(_AWAKE, 0) > parts["states"]:
        return f"Write {_ROLLOUT}.free_cache_engine=true (and enable_sleep_mode=true)."
    if parts["states"] > parts["logits"] + parts["activations"]:
        return f"Write {_ACTOR}.fsdp_config.offload_policy=true (with strategy=fsdp2), or use more GPUs."
    if not actor.use_dynamic_bsz:
        return f"Write {_ACTOR}.ppo_micro_batch_size_per_gpu below {actor.ppo_micro_batch_size_per_gpu}."
    if actor.ppo_max_token_len_per_gpu * sequence_parallel(actor) > _length(config):
        least = -(-_length(config) // sequence_parallel(actor))
        return f"Write {_ACTOR}.ppo_max_token_len_per_gpu below {actor.ppo_max_token_len_per_gpu}, {least} or more."
    return f"Write {_ACTOR}.ulysses_sequence_parallel_size=2 or more, or a smaller data.max_response_length."


def _rollout_too_large(config: DictConfig, shape: Shape, memory: float) -> Iterator[str]:
    rollout, length = config.actor_rollout_ref.rollout, _length(config)
    named = f"{_ROLLOUT}.gpu_memory_utilization={rollout.gpu_memory_utilization}"
    # vLLM starts if one sequence as long as it may serve fits its cache: as the model reads, unless it is told less.
    served = rollout.max_model_len or shape.positions
    if rollout.max_model_len and served < length:
        yield (
            f"{_ROLLOUT}.max_model_len={served}: prompt and response may have {length} tokens, and verl cuts responses "
            f"there without a word. Write {length} or more, or leave it out."
        )
    one = kv_cache_gib(shape, served, _parallel(config))
    share = rollout.gpu_memory_utilization * memory
    weights = weights_gib(shape, _parallel(config))
    if weights + one > share:
        shorter = f", {_ROLLOUT}.max_model_len={length}" if served > length else ""
        yield (
            f"{named} of {memory:g} GiB: {share:.1f} GiB, and weights take {weights:.1f} and one sequence of {served} "
            f"tokens, without which vLLM does not start, {one:.1f}. Write a larger share{shorter}, or "
            f"{_ROLLOUT}.tensor_model_parallel_size above {_parallel(config)}."
        )
    resident = _resident(config, shape)
    if share + resident > memory:
        yield (
            f"{named} of {memory:g} GiB: beside these {share:.0f} GiB the policy's weights and optimiser keep "
            f"{resident:.0f} on the GPU. Write a smaller share, or {_ACTOR}.fsdp_config.param_offload=true and "
            "optimizer_offload=true."
        )


def _update(config: DictConfig, shape: Shape) -> dict[str, float]:
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    copies = 1 if _has_adapter(config) else 4  # weights, and if they are trained gradients and Adam's moments
    parts = update_gib(
        shape,
        _shards(config),
        _tokens(config),
        states=0.0 if _streamed(config) else _states(config, shape, copies),
        logits=not model.use_fused_kernels,
        sdpa=attention_of(config) == SDPA,
    )
    if attention_of(config) == SDPA and not model.use_remove_padding:
        # A micro-batch of full-length rows. Packed rows need no mask (trainer/attention.py).
        rows = max(1, _tokens(config) * sequence_parallel(config.actor_rollout_ref.actor) // _length(config))
        parts["attention mask"] = padded_mask_gib(rows, _length(config))
    if not (rollout.free_cache_engine and rollout.get("enable_sleep_mode", True)):
        parts[_AWAKE] = rollout.gpu_memory_utilization * (_memory(config) or 0)
    return parts


def _resident(config: DictConfig, shape: Shape) -> float:
    """What the actor keeps on a GPU while vLLM generates: weights, and Adam's two moments, in GiB."""
    if _streamed(config):
        return 0.0
    fsdp = config.actor_rollout_ref.actor.fsdp_config
    moments = 0 if fsdp.optimizer_offload or _has_adapter(config) else 2
    return _states(config, shape, (0 if fsdp.param_offload else 1) + moments)


def _states(config: DictConfig, shape: Shape, copies: int) -> float:
    half = "16" in str(config.actor_rollout_ref.actor.fsdp_config.model_dtype)
    return states_gib(shape, _shards(config), copies=copies, width=2 if half else 4)


def _streamed(config: DictConfig) -> bool:
    """Whether the states live in the machine's memory: verl reads that key under FSDP2 alone."""
    actor = config.actor_rollout_ref.actor
    return bool(actor.strategy == "fsdp2" and actor.fsdp_config.offload_policy)


def _threads(config: DictConfig) -> int:
    """Of a training worker: Ray gives an actor one unless the run's environment says otherwise."""
    given = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS")
    return int(given) if str(given).isdecimal() and int(given) else 1


def _cpu_optimizer_s(config: DictConfig, shape: Shape) -> float:
    """Of one update whose optimizer runs on the CPU, if threads share the work evenly."""
    return 0.0 if _has_adapter(config) else _ADAMW_S * shape.parameters / 1e9 / _shards(config) / _threads(config)


def _has_adapter(config: DictConfig) -> bool:
    """Whether the policy's own weights are frozen; the adapter's size is left out."""
    return (config.actor_rollout_ref.model.lora_rank or 0) > 0


def _memory(config: DictConfig) -> float | None:
    """GiB of a GPU; None where no hardware group says so, or another engine's sharding is not described here."""
    value = OmegaConf.select(config, "hardware.gpu_memory_gib")
    return value if is_finite(value) and config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2") else None


def _shards(config: DictConfig) -> int:
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    size = config.actor_rollout_ref.actor.fsdp_config.fsdp_size
    return min(size, gpus) if isinstance(size, int) and size > 0 else gpus


def _length(config: DictConfig) -> int:
    return config.data.max_prompt_length + config.data.max_response_length


def _tokens(config: DictConfig) -> int:
    """Of the largest micro-batch, on one GPU."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return actor.ppo_max_token_len_per_gpu
    return (actor.ppo_micro_batch_size_per_gpu or 1) * _length(config) // sequence_parallel(actor)


def _parallel(config: DictConfig) -> int:
    return config.actor_rollout_ref.rollout.tensor_model_parallel_size


def _counts(config: DictConfig) -> bool:
    """Whether the numbers reckoned with are numbers; what is not is named by another check."""
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    whole = (
        data.max_prompt_length,
        data.max_response_length,
        actor.ppo_max_token_len_per_gpu,
        rollout.n,
        rollout.tensor_model_parallel_size,
        config.trainer.nnodes,
        config.trainer.n_gpus_per_node,
    )
    return all(isinstance(n, int) and n > 0 for n in whole) and isinstance(rollout.gpu_memory_utilization, int | float)
