"""Check before Ray starts that a run fits the memory of its GPUs (``hardware.gpu_memory_gib``).

``planning/footprint.py`` computes the sizes. The peak of an update is an estimate: the config is rejected if the peak
exceeds the GPU by more than 10%, and a warning is printed if it is above 90%. The memory that vLLM and the training
states need during generation is known more exactly, so that any excess is rejected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import psutil
from omegaconf import DictConfig, OmegaConf

from verl_gsd.planning.footprint import AWAKE, REWARD_AWAKE, TIGHT, TOO_MUCH, Footprint
from verl_gsd.planning.memory import Shape, kv_cache_gib, weights_gib
from verl_gsd.run.checks.parallelism import attention_of, sequence_parallel, sequence_parallel_key
from verl_gsd.run.cluster_lock import accelerators, separate_accelerators
from verl_gsd.run.compose import Line
from verl_gsd.run.footprint import (
    MEMORY_OF_A_GPU,
    footprint_of,
    gpu_memory_gib,
    has_adapter,
    has_scaled_positions,
    has_valid_sizes,
    shape_of,
    shape_of_model,
)
from verl_gsd.run.sizing import choose, in_words, what_would_fit
from verl_gsd.scalars import is_finite, is_whole

#: Measured seconds of an AdamW step on one CPU thread per 1e9 parameters. Slower updates than the second lead to a
#: warning.
_ADAMW_S, SLOW_OPTIMIZER_S = 8.65, 15.0
#: A model with more parameters is too large for a CPU. The embedded model has a million.
_CPU_PARAMETERS = 2e8

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
_REWARDS = "reward.reward_model"
_POSITIONS = "actor_rollout_ref.model.override_config.max_position_embeddings"
#: vLLM's variable for contexts longer than the model's.
_ALLOW_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
#: Tokens per micro-batch of old and reference log-probabilities.
LOG_PROB_ROOM = f"{_ROLLOUT}.log_prob_max_token_len_per_gpu"
REFERENCE_ROOM = "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"


def check_memory(config: DictConfig, line: Line) -> Iterator[str]:
    """Check the number of GPUs, sequence lengths and memory against the hardware group and the model."""
    yield from _check_gpu_count(config)
    size = OmegaConf.select(config, "hardware.gpu_memory_gib")
    if size is not None and not (is_finite(size) and size > 0):
        yield (
            f"hardware.gpu_memory_gib={size}: not a number above 0. Set it to {MEMORY_OF_A_GPU}, or to null to skip "
            "the checks of memory."
        )
    if not has_valid_sizes(config):
        return
    yield from _check_lengths(config)
    shape, length = shape_of(config), _length(config)
    if shape is None:
        return
    if length > shape.positions:
        yield (
            f"data.max_prompt_length={config.data.max_prompt_length} and "
            f"data.max_response_length={config.data.max_response_length}: together {length} tokens, but "
            f"{config.actor_rollout_ref.model.path} supports {shape.positions}. verl would cut responses there without "
            "a warning. Set smaller lengths, or use a model with a longer context."
        )
    context = config.actor_rollout_ref.rollout.max_model_len
    if is_whole(context, 1) and context > shape.positions:
        yield (
            f"{_ROLLOUT}.max_model_len={context}: {config.actor_rollout_ref.model.path} supports {shape.positions} "
            f"tokens, and verl does not start with more. Set it to {shape.positions} or less, or to null."
        )
    yield from _check_context_of_vllm(config, shape)
    yield from _check_heads(config, shape)
    if gpu_memory_gib(config) is None:
        return
    footprint = footprint_of(config, shape)
    problems = [*_check_update(config, footprint), *_check_rollout(config, footprint)]
    if problems:
        problems[-1] += f" {_what_fits(footprint)}"
    yield from problems
    yield from _check_reward_model(config, footprint)


def _check_context_of_vllm(config: DictConfig, shape: Shape) -> Iterator[str]:
    """Report a longer context that only the trainer knows: verl does not pass its overrides of a model to vLLM."""
    path, rollout = str(config.actor_rollout_ref.model.path), config.actor_rollout_ref.rollout
    own = shape_of_model(path)
    context = rollout.max_model_len if is_whole(rollout.max_model_len, 1) else shape.positions
    is_told = bool(OmegaConf.select(rollout, "engine_kwargs.vllm.hf_overrides")) or _ALLOW_LONGER in os.environ
    accepts_more = is_told or has_scaled_positions(path)
    name = OmegaConf.select(rollout, "name")  # verl's files have no default
    if name == "vllm" and own is not None and context > own.positions < shape.positions and not accepts_more:
        yield (
            f"{_POSITIONS}={shape.positions}: vLLM does not see this. It reads {own.positions} from the model's "
            "config.json, and does not start with more. Copy the model, change max_position_embeddings in the "
            "config.json of the copy, and use model=COPY without this key."
        )


def _check_heads(config: DictConfig, shape: Shape) -> Iterator[str]:
    """Check that the attention heads divide among the GPUs that share a model or a sequence."""
    sections, gpus = config.actor_rollout_ref, config.trainer.n_gpus_per_node
    sizes = {f"{_ROLLOUT}.tensor_model_parallel_size": sections.rollout.tensor_model_parallel_size}
    if sections.actor.strategy in ("fsdp", "fsdp2"):
        key, size = sequence_parallel_key(sections.actor)
        sizes[f"{_ACTOR}.{key}"] = size
    for key, size in sizes.items():
        if not shape.divides_into(size):
            possible = [str(other) for other in range(1, gpus + 1) if gpus % other == 0 and shape.divides_into(other)]
            yield (
                f"{key}={size}: {sections.model.path} has {shape.heads} attention heads and {shape.kv_heads} heads of "
                f"keys and values, which do not divide among {size} GPUs. Set it to {' or '.join(possible)}."
            )


def _check_lengths(config: DictConfig) -> Iterator[str]:
    """Check that the longest sequence fits wherever a key limits it. The sizes of the model do not matter here."""
    length, sections = _length(config), config.actor_rollout_ref
    parallel = sequence_parallel(sections.actor)
    trained = sections.actor.ppo_max_token_len_per_gpu
    rooms = [
        (f"{_ACTOR}.ppo_max_token_len_per_gpu", trained, sections.actor.use_dynamic_bsz, parallel),
        # The actor computes the old log-probabilities, too. By default, verl takes the values of the actor here.
        (LOG_PROB_ROOM, sections.rollout.log_prob_max_token_len_per_gpu, sections.actor.use_dynamic_bsz, parallel),
    ]
    # With LoRA, the actor without its adapter is the reference policy.
    if (sections.actor.use_kl_loss or config.algorithm.use_kl_in_reward) and not has_adapter(config):
        reference = sections.ref
        by_tokens, parallel = reference.log_prob_use_dynamic_bsz, sequence_parallel(reference)
        rooms.append((REFERENCE_ROOM, reference.log_prob_max_token_len_per_gpu, by_tokens, parallel))
    for key, tokens, by_tokens, parallel in rooms:
        if by_tokens and is_whole(tokens, 1) and tokens * parallel < length:
            if key != rooms[0][0] and tokens == trained and trained * rooms[0][3] < length:
                continue  # its default is the first key, which is reported
            yield (
                f"{key}={tokens}: verl fails if a sequence does not fit into a micro-batch, and a sequence can have "
                f"{length} tokens. Set it to {-(-length // parallel)} or more."
            )
    context = sections.rollout.max_model_len
    if is_whole(context, 1) and context < length:
        yield (
            f"{_ROLLOUT}.max_model_len={context}: prompt and response can have {length} tokens, and verl cuts "
            f"responses there without a warning. Set it to {length} or more, or to null."
        )


def _what_fits(footprint: Footprint) -> str:
    """Settings with which the model fits these GPUs, or what else would have to change."""
    sizing = choose(replace(footprint, dynamic=True))
    if sizing is None:
        return what_would_fit(footprint)
    by_tokens = "" if footprint.dynamic else f"{_ACTOR}.use_dynamic_bsz=true "
    return f"Together, these settings fit: {by_tokens}{in_words(footprint, sizing.footprint)}"


def estimate(config: DictConfig) -> Iterator[str]:
    """Describe the memory estimate of a run, with warnings. Without a size of the GPUs there are only warnings."""
    memory, path, shape = gpu_memory_gib(config), config.actor_rollout_ref.model.path, shape_of(config)
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
    if memory is None or not has_valid_sizes(config):
        return
    if shape is None:
        yield (
            f"warning: memory is not estimated, because the sizes of {path} are not known. Set "
            "actor_rollout_ref.model.path to a local folder of the model to estimate memory."
        )
        return
    footprint, rollout = footprint_of(config, shape), config.actor_rollout_ref.rollout
    update, share, resident = footprint.update_parts(), footprint.share_gib(), footprint.resident_gib()
    cached = footprint.cached_sequences()
    yield (
        f"estimated GiB per GPU, of {memory:g}: an update {sum(update.values()):.0f}; generation {share:.0f} for vLLM "
        f"and {resident:.0f} for weights and optimizer of the trainer. The KV cache holds {cached} "
        "sequences of full length."
    )
    if footprint.reward_share:
        yield from _estimate_reward_model(config, footprint)
    if TIGHT * memory < sum(update.values()) <= TOO_MUCH * memory:
        yield f"warning: the update may not fit into GPU memory. {_how_to_shrink(config, update)}"
    if config.actor_rollout_ref.actor.use_dynamic_bsz and not config.actor_rollout_ref.model.use_remove_padding:
        yield (
            "warning: actor_rollout_ref.model.use_remove_padding=false with use_dynamic_bsz=true: verl pads a "
            f"micro-batch of {config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu} tokens to its longest row, and "
            "the estimate does not count the padding. Set use_remove_padding=true."
        )
    if footprint.streamed and (seconds := _cpu_optimizer_s(config, shape)) > SLOW_OPTIMIZER_S:
        yield (
            f"warning: {_ACTOR}.fsdp_config.offload_policy=true: the optimizer runs on the CPU and takes about "
            f"{seconds:.0f} s per update with {_threads(config)} threads per worker. Set "
            "++ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS to the number of cores per worker."
        )
    if (host := _host_gib(footprint, config)) > (here := psutil.virtual_memory().total / 2**30):
        yield (
            f"warning: weights, gradients and optimizer need {host:.0f} GiB of this machine's memory, and it has "
            f"{here:.0f}. Use a smaller model, LoRA (actor_rollout_ref.model.lora_rank), or a machine with more memory."
        )
    if TIGHT * memory < footprint.generation_gib() <= memory:
        yield f"warning: little GPU memory is left during generation. Set a smaller {_ROLLOUT}.gpu_memory_utilization."
    if cached < rollout.n:
        yield (
            f"warning: {_ROLLOUT}.n={rollout.n} responses of {_length(config)} tokens do not fit into the KV cache at "
            f"the same time. It holds {cached} of them, and the others wait. Set a larger "
            f"{_ROLLOUT}.gpu_memory_utilization or tensor_model_parallel_size."
        )


def _check_gpu_count(config: DictConfig) -> Iterator[str]:
    hardware, trainer = config.get("hardware", {}), config.trainer
    if hardware.get("gpus_per_node") is None:
        return
    available = hardware.nodes * hardware.gpus_per_node
    needed = accelerators(config)
    if needed > available:
        others = "".join(
            f", with {count} more GPUs for {section} ({section}.n_gpus_per_node)"
            for section, count in separate_accelerators(config).items()
        )
        # More nodes help only if the line has set the number of nodes. Otherwise that is hardware.nodes.
        is_more_nodes = trainer.nnodes > hardware.nodes and trainer.n_gpus_per_node <= hardware.gpus_per_node
        nodes = -(-needed // hardware.gpus_per_node)
        more_nodes = f"set hardware.nodes={nodes} if there are as many, " if is_more_nodes else ""
        yield (
            f"trainer.n_gpus_per_node={trainer.n_gpus_per_node} on {trainer.nnodes} nodes{others}: hardware="
            f"{hardware.name} has only {available} GPUs. Set a smaller number, {more_nodes}or use another choice "
            "of hardware=."
        )


def _check_update(config: DictConfig, footprint: Footprint) -> Iterator[str]:
    parts, memory = footprint.update_parts(), footprint.memory_gib
    if sum(parts.values()) > TOO_MUCH * memory:
        sizes = ", ".join(f"{value:.1f} {name}" for name, value in parts.items())
        yield (
            f"hardware.gpu_memory_gib={memory:g}: an update needs about {sum(parts.values()):.0f} GiB of each GPU "
            f"({sizes}; {footprint.shape.parameters / 1e9:.2f}e9 parameters over {footprint.shards} GPUs, "
            f"{footprint.tokens} tokens per micro-batch). {_how_to_shrink(config, parts)} This is an estimate. To skip "
            "the checks of memory, set hardware.gpu_memory_gib=null."
        )


def _how_to_shrink(config: DictConfig, parts: dict[str, float]) -> str:
    """The setting to change to make an update smaller, chosen by the largest of its parts."""
    actor = config.actor_rollout_ref.actor
    if parts.get(AWAKE, 0) > parts["states"]:
        return f"Set {_ROLLOUT}.free_cache_engine=true (and enable_sleep_mode=true)."
    if parts.get(REWARD_AWAKE, 0) > parts["states"]:
        return f"Set {_REWARDS}.rollout.free_cache_engine=true (and enable_sleep_mode=true)."
    if parts["states"] > parts.get("logits", 0) + parts.get("activations", 0):
        return f"Set {_ACTOR}.fsdp_config.offload_policy=true (with strategy=fsdp2), or use more GPUs."
    if not actor.use_dynamic_bsz:
        return f"Set {_ACTOR}.ppo_micro_batch_size_per_gpu below {actor.ppo_micro_batch_size_per_gpu}."
    if actor.ppo_max_token_len_per_gpu * sequence_parallel(actor) > _length(config):
        least = -(-_length(config) // sequence_parallel(actor))
        return f"Set {_ACTOR}.ppo_max_token_len_per_gpu below {actor.ppo_max_token_len_per_gpu}, {least} or more."
    if "flash" not in attention_of(config):  # verl splits sequences with flash-attn only
        return "Set a smaller data.max_response_length, or install flash-attn, with which GPUs can share a sequence."
    return f"Set {_ACTOR}.ulysses_sequence_parallel_size=2 or more, or a smaller data.max_response_length."


def _check_rollout(config: DictConfig, footprint: Footprint) -> Iterator[str]:
    rollout, length, memory = config.actor_rollout_ref.rollout, footprint.length, footprint.memory_gib
    setting = f"{_ROLLOUT}.gpu_memory_utilization={rollout.gpu_memory_utilization}"
    # vLLM starts only if its cache holds a sequence of max_model_len tokens, by default the model's whole context.
    max_length = footprint.vllm_length()
    share, weights, one_sequence = footprint.share_gib(), footprint.vllm_weights_gib(), footprint.one_sequence_gib()
    if weights + one_sequence > share:
        shorter = f", {_ROLLOUT}.max_model_len={length}" if max_length > length else ""
        yield (
            f"{setting} of {memory:g} GiB: vLLM gets {share:.1f} GiB. The weights need {weights:.1f} GiB, and the KV "
            f"cache of one sequence of {max_length} tokens, without which vLLM does not start, {one_sequence:.1f} GiB. "
            f"Set a larger share{shorter}, or {_ROLLOUT}.tensor_model_parallel_size above {footprint.tensor_parallel}."
        )
    resident = footprint.resident_gib()
    if share + resident > memory:
        yield (
            f"{setting} of {memory:g} GiB: in addition to these {share:.0f} GiB, the trainer keeps weights and "
            f"optimizer of {resident:.0f} GiB on the GPU. Set a smaller share, or "
            f"{_ACTOR}.fsdp_config.param_offload=true and optimizer_offload=true."
        )
    elif max(footprint.generation_gib(), footprint.scoring_gib()) > memory:
        sleepless = [
            f"{section}.free_cache_engine=true"
            for section, sleeps in ((_ROLLOUT, footprint.sleeps), (f"{_REWARDS}.rollout", footprint.reward_sleeps))
            if not sleeps
        ]
        yield (
            f"{_REWARDS}.rollout.gpu_memory_utilization={footprint.reward_share:g} of {memory:g} GiB: the reward model "
            f"gets {footprint.reward_gib():.0f} GiB of the trainer's GPUs. At the same time, weights and optimizer of "
            f"the trainer need {resident:.0f} GiB"
            + (f", and the vLLM of the policy {share:.0f} GiB" if sleepless else "")
            + f". Set {' and '.join(sleepless) or 'a smaller share'}, {_ACTOR}.fsdp_config.param_offload=true and "
            f"optimizer_offload=true, or {_REWARDS}.enable_resource_pool=true for GPUs of its own."
        )


def _check_reward_model(config: DictConfig, footprint: Footprint) -> Iterator[str]:
    """Check that a reward model of known shape fits into its share of a GPU."""
    model, rollout, memory = config.reward.reward_model, config.reward.reward_model.rollout, footprint.memory_gib
    shape = shape_of_model(str(model.model_path)) if model.enable else None
    if shape is None:
        return
    parallel, share = rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization * memory
    weights, max_length = weights_gib(shape, parallel), rollout.max_model_len or shape.positions
    cache = kv_cache_gib(shape, max_length, parallel)
    if weights + cache > share:
        yield (
            f"{_REWARDS}.rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g} of {memory:g} GiB: the "
            f"reward model gets {share:.1f} GiB. Its weights need {weights:.1f} GiB, and the KV cache of one sequence "
            f"of {max_length} tokens, without which vLLM does not start, {cache:.1f} GiB. Set a larger share, a "
            f"smaller {_REWARDS}.rollout.max_model_len, or tensor_model_parallel_size above {parallel}."
        )


def _estimate_reward_model(config: DictConfig, footprint: Footprint) -> Iterator[str]:
    """Describe the memory of a reward model on the trainer's GPUs."""
    model, path = config.reward.reward_model, config.reward.reward_model.model_path
    yield (
        f"estimated GiB per GPU while the reward model scores, of {footprint.memory_gib:g}: "
        f"{footprint.reward_gib():.0f} for the reward model and {footprint.resident_gib():.0f} for weights and "
        "optimizer of the trainer."
    )
    if shape_of_model(str(path)) is None:
        yield (
            f"warning: {_REWARDS}.model_path={path}: the sizes of this model are not known. Make sure that its weights "
            f"on {model.rollout.tensor_model_parallel_size} GPUs and the KV cache of one sequence fit into "
            f"{footprint.reward_gib():.0f} GiB per GPU, or set model_path to a local folder of the model to check it."
        )


def _update(config: DictConfig, shape: Shape) -> dict[str, float]:
    return footprint_of(config, shape).update_parts()


def _resident(config: DictConfig, shape: Shape) -> float:
    return footprint_of(config, shape).resident_gib()


def _host_gib(footprint: Footprint, config: DictConfig) -> float:
    """GiB per node of what is kept in host memory; 0 if nothing is, or if the run may start on another machine."""
    is_here = OmegaConf.select(config, "hardware.gpu_name") is not None  # hardware=gpu has asked this machine's driver
    return footprint.trained_states_gib() * footprint.gpus_per_node if footprint.streamed and is_here else 0.0


def _threads(config: DictConfig) -> int:
    """CPU threads of a training worker: OMP_NUM_THREADS of the run's environment, or Ray's default of 1."""
    threads = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS")
    return int(threads) if str(threads).isdecimal() and int(threads) else 1


def _cpu_optimizer_s(config: DictConfig, shape: Shape) -> float:
    """Seconds per update of an optimizer on the CPU, assuming that the threads share the work evenly."""
    shards = footprint_of(config, shape).shards
    return 0.0 if has_adapter(config) else _ADAMW_S * shape.parameters / 1e9 / shards / _threads(config)


def _length(config: DictConfig) -> int:
    return config.data.max_prompt_length + config.data.max_response_length
