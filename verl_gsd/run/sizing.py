"""Chooses the settings that decide about GPU memory, from the model, the lengths and the GPUs.

``choose`` is pure. It only changes settings that do not change what the model learns: where weights and optimizer are
kept, tokens per micro-batch, vLLM's share of the GPU, GPUs per vLLM replica, and, only if nothing else fits, vLLM's
longest sequence and the number of GPUs per sequence. It uses the estimates of ``check_memory``, so that the chosen
settings pass that check.

``apply_sizing`` writes the choice into the composed config of ``verl-gsd train`` and ``verl-gsd submit``. A key on the
command line always wins, and so does a key that the recipe, the task or the algorithm sets. The values in
``config/hardware`` only apply where this module does not run (verl's own ``main_ppo``) or cannot know the sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import OUR_MODES
from verl_gsd.planning.footprint import TIGHT, TOO_MUCH, Footprint
from verl_gsd.run.compose import Line, resolve
from verl_gsd.run.footprint import MEMORY_OF_A_GPU, footprint_of, gpu_memory_gib, has_valid_sizes, shape_of
from verl_gsd.scalars import as_yaml

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
#: Field of ``Footprint`` -> the key that sets it.
KEYS = {
    "offload_policy": f"{_ACTOR}.fsdp_config.offload_policy",
    "param_offload": f"{_ACTOR}.fsdp_config.param_offload",
    "optimizer_offload": f"{_ACTOR}.fsdp_config.optimizer_offload",
    "tokens": f"{_ACTOR}.ppo_max_token_len_per_gpu",
    "sequence_parallel": f"{_ACTOR}.ulysses_sequence_parallel_size",
    "tensor_parallel": f"{_ROLLOUT}.tensor_model_parallel_size",
    "utilization": f"{_ROLLOUT}.gpu_memory_utilization",
    "max_model_len": f"{_ROLLOUT}.max_model_len",
}
#: Other keys that set the same.
_ALIASES = {"sequence_parallel": (f"{_ACTOR}.fsdp_config.ulysses_sequence_parallel_size",)}
#: The three places for weights and optimizer, fastest first: always on the GPU, in host memory while vLLM generates,
#: always in host memory.
_OFFLOADS = ((False, False, False), (True, True, False), (False, False, True))
_OFFLOAD_FIELDS = ("param_offload", "optimizer_offload", "offload_policy")
#: Micro-batches of more tokens are no faster: a GPU is busy with fewer.
_MOST_TOKENS = 16384
_TOKEN_STEP = 1024
#: vLLM's share of a GPU, if its KV cache then holds this many sequences. Otherwise the largest share that fits.
_USUAL_UTILIZATION, _ENOUGH_SEQUENCES = 0.7, 64
_UTILIZATIONS = (_USUAL_UTILIZATION, *(share / 100 for share in range(90, 5, -5)))
#: GiB that GPUs of 24, 48, 80 and 141 GB show to a process, for suggestions.
_USUAL_MEMORY_GIB = (22, 44, 79, 139)
_USUAL_COUNTS = (2, 4, 8)


@dataclass(frozen=True)
class Sizing:
    """Settings that fit.

    Attributes:
        footprint: the footprint with these settings.
        reasons: field of ``Footprint`` -> why it has this value. It has the fields that were free to choose.
    """

    footprint: Footprint
    reasons: dict[str, str]


def choose(footprint: Footprint, fixed: Collection[str] = ()) -> Sizing | None:
    """Choose settings with which a run fits its GPUs.

    The first of these demands that can be met decides. All leave room for one sequence per micro-batch:

    1. A peak below 90% of the GPU, and a KV cache for all responses of a prompt.
    2. A peak below 90%, and a KV cache for one sequence.
    3. A peak below 100%, then one that ``check_memory`` still accepts, and a KV cache for one sequence.

    Among the settings that meet it, fewer GPUs per sequence come first, then the faster place for weights and
    optimizer, then smaller vLLM replicas. Spare memory then goes to vLLM's KV cache and to larger micro-batches.

    Args:
        footprint: the run. The values of free settings are ignored.
        fixed: the fields of ``Footprint`` that must keep their values.

    Returns:
        None if no settings meet the last demand.
    """
    for limit, sequences in ((TIGHT, footprint.responses), (TIGHT, 1), (1.0, 1), (TOO_MUCH, 1)):
        for candidate in _candidates(footprint, fixed):
            if _fits(candidate, limit, sequences):
                chosen = _with_larger_replicas(candidate, limit, fixed)
                chosen = _with_larger_batches(_with_larger_share(chosen, limit, fixed), fixed)
                return Sizing(chosen, _reasons(chosen, fixed))
    return None


def what_would_fit(footprint: Footprint) -> str:
    """Say that a model does not fit its GPUs, and what would: LoRA, more GPUs per node, or larger GPUs."""
    gpus = f"{footprint.gpus_per_node} GPU{'s' if footprint.gpus_per_node > 1 else ''}"
    kind = "with LoRA" if footprint.adapter else "with all weights trained"
    found = alternatives(footprint)
    return (
        f"No settings fit: {footprint.shape.parameters / 1e9:.2f}e9 parameters, {kind}, sequences of "
        f"{footprint.length} tokens and {gpus} of {footprint.memory_gib:g} GiB per node. "
        + (f"What would fit: {'; '.join(found)}." if found else "Use a smaller model or shorter lengths.")
    )


def alternatives(footprint: Footprint) -> list[str]:
    """Single changes with which the run would fit: LoRA, the fewest more GPUs per node, the smallest larger GPUs."""
    return list(_alternatives(footprint))


def _alternatives(footprint: Footprint) -> Iterator[str]:
    if not footprint.adapter and choose(replace(footprint, adapter=True)):
        yield (
            "LoRA (actor_rollout_ref.model.lora_rank=32 actor_rollout_ref.model.lora_alpha=32, with a larger "
            "actor_rollout_ref.actor.optim.lr, for example 1e-5)"
        )
    whole_node = footprint.shards == footprint.gpus_per_node
    for count in (count for count in _USUAL_COUNTS if count > footprint.gpus_per_node and whole_node):
        if choose(replace(footprint, gpus_per_node=count, shards=count)):
            yield f"{count} such GPUs per node"
            break
    for memory in (memory for memory in _USUAL_MEMORY_GIB if memory > footprint.memory_gib):
        if choose(replace(footprint, memory_gib=memory)):
            yield f"GPUs of {memory} GiB"
            break


def in_words(before: Footprint, after: Footprint) -> str:
    """The settings in which two footprints of a run differ, as on the command line."""
    changed = [name for name in KEYS if getattr(before, name) != getattr(after, name)]
    return " ".join(f"{KEYS[name]}={as_yaml(getattr(after, name))}" for name in changed)


def _candidates(start: Footprint, fixed: Collection[str]) -> Iterator[Footprint]:
    """All combinations of settings, best first, each with the smallest micro-batch."""
    for split in _splits(start, fixed):
        for offload in _offloads(start, fixed):
            for parallel in _tensor_parallels(start, fixed):
                for max_length in _max_lengths(start, fixed):
                    for share in (start.utilization,) if "utilization" in fixed else _UTILIZATIONS:
                        candidate = replace(
                            start,
                            sequence_parallel=split,
                            param_offload=offload[0],
                            optimizer_offload=offload[1],
                            offload_policy=offload[2],
                            tensor_parallel=parallel,
                            max_model_len=max_length,
                            utilization=share,
                        )
                        yield candidate if "tokens" in fixed else replace(candidate, tokens=candidate.least_tokens)


def _splits(start: Footprint, fixed: Collection[str]) -> Sequence[int]:
    """Numbers of GPUs per sequence. verl splits sequences only with flash-attn and packed rows."""
    if "sequence_parallel" in fixed or not start.dynamic:
        return (start.sequence_parallel,)
    return (1,) if start.sdpa or not start.packed else _divisors(start)


def _offloads(start: Footprint, fixed: Collection[str]) -> list[tuple[bool, bool, bool]]:
    """Places for weights and optimizer that agree with what is fixed."""
    values = tuple(getattr(start, name) for name in _OFFLOAD_FIELDS)
    fixed_at = [position for position, name in enumerate(_OFFLOAD_FIELDS) if name in fixed]
    free = [
        offload
        for offload in _OFFLOADS
        if (start.fsdp2 or not offload[2]) and all(offload[position] == values[position] for position in fixed_at)
    ]
    return free or [values]


def _tensor_parallels(start: Footprint, fixed: Collection[str]) -> Sequence[int]:
    return (start.tensor_parallel,) if "tensor_parallel" in fixed else _divisors(start)


def _divisors(start: Footprint) -> list[int]:
    """Divisors of the GPUs of a node among which the model's attention heads can be divided."""
    sizes = range(1, start.gpus_per_node + 1)
    return [size for size in sizes if start.gpus_per_node % size == 0 and start.shape.divides_into(size)]


def _max_lengths(start: Footprint, fixed: Collection[str]) -> Sequence[int | None]:
    """vLLM's longest sequence: the model's context, or only what this run needs."""
    if "max_model_len" in fixed:
        return (start.max_model_len,)
    return (None, start.length) if start.length < start.shape.positions else (None,)


def _fits(candidate: Footprint, limit: float, sequences: int) -> bool:
    share = candidate.share_gib()
    return (
        candidate.tokens >= candidate.least_tokens
        and candidate.vllm_length() >= min(candidate.length, candidate.shape.positions)
        and sum(candidate.update_parts().values()) <= limit * candidate.memory_gib
        and candidate.vllm_weights_gib() + candidate.one_sequence_gib() <= share
        and max(candidate.generation_gib(), candidate.scoring_gib()) <= min(limit, 1) * candidate.memory_gib
        and candidate.cached_sequences() >= sequences
    )


def _with_larger_replicas(chosen: Footprint, limit: float, fixed: Collection[str]) -> Footprint:
    """The settings with more GPUs per vLLM replica, if few sequences fit and that more than doubles them per GPU.

    A replica reads all its weights for every token that it generates, however few sequences it holds.
    """
    for parallel in (size for size in _tensor_parallels(chosen, fixed) if size > chosen.tensor_parallel):
        larger = replace(chosen, tensor_parallel=parallel)
        gain = larger.cached_sequences() * chosen.tensor_parallel / (chosen.cached_sequences() * parallel)
        if chosen.cached_sequences() < _ENOUGH_SEQUENCES and gain > 2 and _fits(larger, limit, 1):
            chosen = larger
    return chosen


def _with_larger_batches(chosen: Footprint, fixed: Collection[str]) -> Footprint:
    """The settings with the largest micro-batch below 90% of the GPU, up to ``_MOST_TOKENS``."""
    if "tokens" in fixed:
        return chosen
    for tokens in range(_MOST_TOKENS, chosen.tokens, -_TOKEN_STEP):
        larger = replace(chosen, tokens=tokens)
        if sum(larger.update_parts().values()) <= TIGHT * chosen.memory_gib:
            return larger
    return chosen


def _with_larger_share(chosen: Footprint, limit: float, fixed: Collection[str]) -> Footprint:
    """The settings with the largest share for vLLM that fits, if the KV cache holds few sequences."""
    if "utilization" in fixed or chosen.cached_sequences() >= _ENOUGH_SEQUENCES:
        return chosen
    larger = (replace(chosen, utilization=share) for share in _UTILIZATIONS[1:] if share > chosen.utilization)
    return next((candidate for candidate in larger if _fits(candidate, limit, 1)), chosen)


def _reasons(chosen: Footprint, fixed: Collection[str]) -> dict[str, str]:
    """Why the free settings have their values."""
    memory, peak, share = chosen.memory_gib, sum(chosen.update_parts().values()), chosen.share_gib()
    states = chosen.trained_states_gib()
    host = states * chosen.shards
    names = "the frozen weights" if chosen.adapter else "weights, gradients and optimizer"
    cached = f"holds {chosen.cached_sequences()} sequences of {chosen.length} tokens"
    reasons = {
        "param_offload": "weights leave the GPU while vLLM generates, to make room for it",
        "optimizer_offload": "the optimizer leaves the GPU while vLLM generates, to make room for it",
        "offload_policy": (
            f"{names} need {states:.1f} GiB of each GPU, which leaves too little for the rest; they stay in host "
            f"memory ({host:.0f} GiB per node) and stream through the GPU"
            if chosen.offload_policy
            else f"{names} ({states:.1f} GiB per GPU) fit on the GPU during an update"
        ),
        "tokens": (
            f"an update then takes about {peak:.1f} of {memory:g} GiB"
            if chosen.tokens > chosen.least_tokens
            else f"one sequence of full length, with which an update takes about {peak:.1f} of {memory:g} GiB"
        ),
        "sequence_parallel": (
            f"the activations and logits of one sequence of {chosen.length} tokens are divided among "
            f"{chosen.sequence_parallel} GPUs"
        ),
        "tensor_parallel": (
            f"vLLM's weights need {chosen.vllm_weights_gib():.1f} GiB of each GPU; the KV cache of one replica {cached}"
        ),
        "utilization": (
            f"{share:.1f} GiB for vLLM, in addition to {chosen.resident_gib():.1f} GiB of the trainer; its KV cache "
            f"{cached}"
        ),
        "max_model_len": (
            f"vLLM does not start without a KV cache for one sequence; the model's {chosen.shape.positions} tokens do "
            "not fit or would need more GPUs, and this run needs fewer"
        ),
    }
    for name in ("param_offload", "optimizer_offload"):
        if not getattr(chosen, name):
            del reasons[name]
    if chosen.param_offload:
        del reasons["offload_policy"]
    if chosen.sequence_parallel == 1:
        del reasons["sequence_parallel"]
    if chosen.max_model_len is None:
        del reasons["max_model_len"]
    return {name: reason for name, reason in reasons.items() if name not in fixed}


def apply_sizing(config: DictConfig, line: Line) -> None:
    """Choose the memory settings of a composed config in place, and note each with its reason in ``hardware.sizing``.

    Nothing changes if the memory of the GPUs or the shape of the model is not known, or if no settings fit.
    ``check_memory`` and ``estimate`` then say so.

    Args:
        config: the composed config, with its interpolations unresolved.
        line: the command line. Its keys, and the keys of its groups other than ``hardware``, are not changed.

    Raises:
        ConfigError: an interpolation refers to a key that does not exist.
    """
    resolved = resolve(config)
    memory, shape = gpu_memory_gib(resolved), shape_of(resolved)
    if memory is None or memory <= 0 or shape is None or not has_valid_sizes(resolved):
        return
    footprint, fixed = footprint_of(resolved, shape), fixed_fields(resolved, line)
    sizing = choose(footprint, fixed)
    if sizing is None:
        return
    lines = [_machine(resolved, line)]
    for name in KEYS:
        value = getattr(sizing.footprint, name)
        if name not in fixed and value != getattr(footprint, name):
            OmegaConf.update(config, KEYS[name], value)
        if name in sizing.reasons:
            lines.append(f"{KEYS[name]}={as_yaml(value)}: {sizing.reasons[name]}")
    with open_dict(config.hardware):
        config.hardware.sizing = lines


#: Gigabytes in the names of cards. Some cards of 12 and 24 GB do show 12 and 24 GiB.
_SIZES_IN_NAMES = (12, 16, 24, 40, 48, 80, 96, 141)


def sizing_lines(config: DictConfig) -> Iterator[str]:
    """The chosen settings of a resolved config with their reasons, for the console; nothing if none were chosen."""
    hardware = config.get("hardware", {})
    if hardware.get("gpu_memory_gib", 0) is None:
        yield (
            "warning: hardware.gpu_memory_gib is not known here: memory is not checked, and the memory settings are "
            f"those of hardware={hardware.name} unless the machine that starts the run knows it. To describe the GPUs, "
            f"set hardware.gpus_per_node, and set hardware.gpu_memory_gib to {MEMORY_OF_A_GPU}."
        )
    if hardware.get("gpu_memory_gib") in _SIZES_IN_NAMES:
        yield (
            f"note: hardware.gpu_memory_gib={hardware.gpu_memory_gib} is the size in the names of cards, and most of "
            f"them show less. Set it to {MEMORY_OF_A_GPU}."
        )
    machine, *choices = hardware.get("sizing") or ("",)
    if choices:
        yield f"sized for {machine}:"
        yield from (f"  {choice}" for choice in choices)


def fixed_fields(config: DictConfig, line: Line) -> set[str]:
    """The fields of ``Footprint`` that the line, or a group other than ``hardware``, sets."""
    keys = set(line.leaf_keys)
    for group, name in line.choices.items():
        if group != "hardware":
            keys |= set(_keys_of(group, name))
    fixed = {
        name
        for name, key in KEYS.items()
        for own in (key, *_ALIASES.get(name, ()))
        if any(own == other or own.startswith(f"{other}.") for other in keys)
    }
    if not config.actor_rollout_ref.actor.use_dynamic_bsz:
        fixed.add("tokens")  # ppo_micro_batch_size_per_gpu decides
    if config.trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        fixed.add("tensor_parallel")  # vLLM has other GPUs than the trainer
    return fixed


def _keys_of(group: str, name: str) -> Iterator[str]:
    """The keys that a choice of a group sets, and those of the files in its ``defaults``."""
    content: Any = OmegaConf.to_container(groups.load(group, name))
    for base in content.pop("defaults", ()):
        (other, choice) = next(iter(base.items())) if isinstance(base, dict) else (None, base)
        if choice == "_self_":
            continue
        if other is None and choice.startswith("/"):
            other, _, choice = choice.removeprefix("/").partition("/")
        yield from _keys_of((other or group).removeprefix("/"), choice)
    yield from (key for key, _ in dotted_leaves(content))


def _machine(config: DictConfig, line: Line) -> str:
    trainer, hardware = config.trainer, config.hardware
    nodes = f"{trainer.nnodes} nodes with " if trainer.nnodes > 1 else ""
    gpus = f"{trainer.n_gpus_per_node} GPU{'s' if trainer.n_gpus_per_node > 1 else ''}"
    name = None if "hardware.gpu_memory_gib" in line.keys else hardware.get("gpu_name")
    return f"{nodes}{gpus} of {hardware.gpu_memory_gib:g} GiB{f' ({name})' if name else ''}"
