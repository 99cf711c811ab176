"""Check how a run is distributed over its workers. verl would reject a wrong layout only after all workers started."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.audit import parts_of_step
from verl_gsd.config.attention import FLASH, SDPA, flash_attention_problem
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.compose import Line
from verl_gsd.scalars import is_whole

#: The attention implementation of the policy. If the key is missing, verl uses flash-attn.
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
CRITIC_ATTENTION = "critic.model.override_config.attn_implementation"


_ULYSSES = "ulysses_sequence_parallel_size"


def sequence_parallel(actor: DictConfig) -> int:
    """The number of workers over which verl splits a sequence: Ulysses (either of its two keys), or Megatron's."""
    return sequence_parallel_key(actor)[1]


def sequence_parallel_key(actor: DictConfig) -> tuple[str, int]:
    """(key, value): the key of the section that decides ``sequence_parallel``.

    verl copies the section's own size over that of ``fsdp_config`` if it is above 1.
    """
    megatron, own, of_engine = "megatron.context_parallel_size", _ULYSSES, f"fsdp_config.{_ULYSSES}"
    sizes = {key: OmegaConf.select(actor, key) for key in (megatron, own, of_engine)}
    whole = {key: size if isinstance(size, int) else 1 for key, size in sizes.items()}
    key = megatron if actor.strategy == "megatron" else own if whole[own] > 1 else of_engine
    return key, max(1, whole[key])


def attention_of(config: DictConfig) -> str:
    """The attention implementation with which verl's FSDP engine loads the policy."""
    return OmegaConf.select(config, ATTENTION) or FLASH


def attention_reason(config: DictConfig) -> Iterator[str]:
    """A line for the console and the log that says why a GPU run does not use flash-attn, if it does not."""
    problem, is_fsdp = flash_attention_problem(), config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2")
    if problem and is_fsdp and config.trainer.device != "cpu" and attention_of(config) == SDPA:
        yield f"{problem} on the machine that starts the run, so that the run uses PyTorch's SDPA"


def check_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """Report Ulysses without flash-attn: verl patches only flash-attn to split sequences over GPUs."""
    actor, attention = config.actor_rollout_ref.actor, attention_of(config)
    if actor.strategy not in ("fsdp", "fsdp2") or sequence_parallel(actor) < 2 or "flash" in attention:
        return
    key, size = sequence_parallel_key(actor)
    yield (
        f"actor_rollout_ref.actor.{key}={size}: verl splits sequences over GPUs only with flash-attn, but the run uses "
        f"{ATTENTION}={attention}. Set the size to 1, or install flash-attn on the machines that train."
    )


def check_flash_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a run with flash-attn on a machine that cannot import it. verl would fail when it loads the model."""
    keys = [(ATTENTION, config.actor_rollout_ref.actor.strategy)]
    if config.critic.enable or (config.critic.enable is None and config.algorithm.adv_estimator == "gae"):
        keys.append((CRITIC_ATTENTION, config.critic.strategy))
    for key, strategy in keys:
        attention = OmegaConf.select(config, key)
        if strategy in ("fsdp", "fsdp2") and (attention or FLASH) == FLASH and (problem := flash_attention_problem()):
            default = "" if attention else " (verl's default)"
            yield f"{key}={FLASH}{default}: {problem}. Set ++{key}=sdpa, or install flash-attn."


#: Model types for which verl supports packed rows only with flash-attn.
_FLASH_ONLY = ("qwen2_vl", "qwen2_5_vl", "glm4v", "kimi_vl")


def check_model_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """Report models in local folders whose attention SDPA does not compute correctly."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if actor.strategy not in ("fsdp", "fsdp2") or attention_of(config) != SDPA:
        return
    content = model_config(str(model.path))
    kind = content.get("model_type")
    if model.use_remove_padding and kind in _FLASH_ONLY:
        yield (
            f"actor_rollout_ref.model.path={model.path}: verl computes the attention of {kind} over packed rows only "
            f"with flash-attn, but the run uses {SDPA}. Set actor_rollout_ref.model.use_remove_padding=false, or "
            "install flash-attn on the machines that train."
        )
    if content.get("attn_logit_softcapping"):
        yield (
            f"actor_rollout_ref.model.path={model.path}: {kind} caps its attention logits, but {SDPA} ignores the cap. "
            f"Set {ATTENTION}=eager and actor_rollout_ref.model.use_remove_padding=false, or install flash-attn."
        )
    if kind == "gpt_oss":
        yield f"actor_rollout_ref.model.path={model.path}: {kind} does not support {SDPA}. Install flash-attn."


def model_config(path: str) -> dict[str, Any]:
    """The content of ``config.json`` in a local folder; empty if there is no valid file."""
    try:
        content = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def workers_of(config: DictConfig) -> int:
    """The number of data-parallel workers; 0 if the engine is not FSDP, so that the number is not known here."""
    actor = config.actor_rollout_ref.actor
    if actor.strategy not in ("fsdp", "fsdp2"):
        return 0
    return config.trainer.nnodes * config.trainer.n_gpus_per_node // sequence_parallel(actor)


def check_layout(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that mini-batches fit into a step and divide evenly among workers, and accelerators among vLLM replicas."""
    actor, rollout, trainer = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout, config.trainer
    if not all(is_whole(n, 1) for n in (trainer.nnodes, trainer.n_gpus_per_node, rollout.n, actor.ppo_mini_batch_size)):
        return  # another check reports these values
    batch = config.data.train_batch_size
    if not actor.use_dynamic_bsz and is_whole(batch, 1) and actor.ppo_mini_batch_size > batch:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: a mini-batch cannot have more "
            f"prompts than a step, which has data.train_batch_size={batch}. Set it to {batch} or less, or set a larger "
            "data.train_batch_size."
        )
    workers, rows = workers_of(config), actor.ppo_mini_batch_size * rollout.n
    if workers and rows % workers:
        whole = workers // math.gcd(workers, rollout.n)  # a mini-batch has a multiple of so many prompts
        mini = max(whole, actor.ppo_mini_batch_size // whole * whole)
        updates = max(1, batch // actor.ppo_mini_batch_size) if is_whole(batch, 1) else 1
        # verl would fill a step up to whole mini-batches with padding, and train on it.
        step = "" if not is_whole(batch, 1) or batch % mini == 0 else f" and data.train_batch_size={updates * mini}"
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: a mini-batch with {rollout.n} "
            f"responses per prompt has {rows} rows, which do not divide evenly among {workers} workers. Set "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini}{step}."
        )
    if workers and rows % workers == 0:
        yield from _check_micro_batches(config, rows // workers)
    if trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        return  # vLLM replicas use separate accelerators
    parallel, accelerators = rollout.tensor_model_parallel_size, trainer.nnodes * trainer.n_gpus_per_node
    if not is_whole(parallel, 1) or accelerators % parallel:
        yield (
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={parallel}: {accelerators} accelerators do not "
            f"divide into replicas of this size. Set it to a divisor of {accelerators}."
        )


def _check_micro_batches(config: DictConfig, rows: int) -> Iterator[str]:
    """Report micro-batches of a fixed size into which a worker's rows do not divide.

    Args:
        rows: those of a mini-batch on one worker.
    """
    policy = config.actor_rollout_ref
    actor, rollout, ref = policy.actor, policy.rollout, policy.ref
    if rollout.log_prob_use_dynamic_bsz != actor.use_dynamic_bsz:
        yield (
            f"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={rollout.log_prob_use_dynamic_bsz} with "
            f"actor_rollout_ref.actor.use_dynamic_bsz={actor.use_dynamic_bsz}: verl's workers require the same value. "
            f"Set actor_rollout_ref.rollout.log_prob_use_dynamic_bsz={str(bool(actor.use_dynamic_bsz)).lower()}."
        )
        return
    sizes = []  # (key, its value, the rows that it has to divide, what they are part of)
    if not actor.use_dynamic_bsz:
        key = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
        sizes.append((key, actor.ppo_micro_batch_size_per_gpu, rows, "mini-batch"))
    pads_itself = any(declaration.counts_groups for declaration in extension.active(config.algorithm.get("gsd")))
    if is_whole(config.data.train_batch_size, 1) and not pads_itself:
        prompts = config.data.train_batch_size // parts_of_step(config)
        in_step = -(-prompts // actor.ppo_mini_batch_size) * rows  # verl fills the last mini-batch with padding
        roles = {}
        if not OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
            roles["rollout"] = rollout
        # With LoRA, the actor without its adapter is the reference model, and reads the rollout's key.
        if (actor.use_kl_loss or config.algorithm.use_kl_in_reward) and not is_whole(policy.model.lora_rank, 1):
            roles["ref"] = ref
        for name, role in roles.items():
            if not role.log_prob_use_dynamic_bsz:
                key = f"actor_rollout_ref.{name}.log_prob_micro_batch_size_per_gpu"
                sizes.append((key, role.log_prob_micro_batch_size_per_gpu, in_step, "step"))
    for key, micro, whole, part in sizes:
        if is_whole(micro, 1) and whole % micro:
            fitting = next(size for size in range(micro, 0, -1) if whole % size == 0)
            yield (
                f"{key}={micro}: each worker has {whole} rows of a {part}, which do not divide into micro-batches of "
                f"this size. Set it to {fitting}."
            )
