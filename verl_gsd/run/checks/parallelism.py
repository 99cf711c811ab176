"""How a run is laid out over its workers, and what verl would refuse of that only when all of them stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.config.attention import FLASH, SDPA, flash_attention_problem
from verl_gsd.errors import OUR_MODES
from verl_gsd.run.compose import Line
from verl_gsd.sections import is_whole

#: Which attention the policy computes with. flash-attn's where the key is missing.
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
CRITIC_ATTENTION = "critic.model.override_config.attn_implementation"


def sequence_parallel(actor: DictConfig) -> int:
    """Over how many workers verl spreads one sequence: Ulysses, by its key or the deprecated one, or Megatron's."""
    ulysses = ["fsdp_config.ulysses_sequence_parallel_size", "ulysses_sequence_parallel_size"]
    keys = ["megatron.context_parallel_size"] if actor.strategy == "megatron" else ulysses
    found = [OmegaConf.select(actor, key) for key in keys]
    return max([1, *(size for size in found if isinstance(size, int))])


def attention_of(config: DictConfig) -> str:
    """The attention implementation that verl's FSDP engine loads the policy with."""
    return OmegaConf.select(config, ATTENTION) or FLASH


def attention_reason(config: DictConfig) -> Iterator[str]:
    """Why a GPU run computes attention without flash-attn, for the console and the log."""
    problem, is_fsdp = flash_attention_problem(), config.actor_rollout_ref.actor.strategy in ("fsdp", "fsdp2")
    if problem and is_fsdp and config.trainer.device != "cpu" and attention_of(config) == SDPA:
        yield f"attention: {problem} on the machine that starts the run"


def check_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """Sequences that verl would split over GPUs without flash-attn, whose function is the only one it patches."""
    actor, attention = config.actor_rollout_ref.actor, attention_of(config)
    if actor.strategy not in ("fsdp", "fsdp2") or sequence_parallel(actor) < 2 or "flash" in attention:
        return
    yield (
        f"actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size={sequence_parallel(actor)}: verl splits "
        f"sequences over GPUs in flash-attn alone, and the run uses {ATTENTION}={attention}. Set the size to 1, or "
        "install flash-attn on the machines that train."
    )


def check_flash_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """A run with flash-attn on a machine that cannot import it: verl fails when it loads the model."""
    keys = [(ATTENTION, config.actor_rollout_ref.actor.strategy)]
    if config.critic.enable or (config.critic.enable is None and config.algorithm.adv_estimator == "gae"):
        keys.append((CRITIC_ATTENTION, config.critic.strategy))
    for key, strategy in keys:
        named = OmegaConf.select(config, key)
        if strategy in ("fsdp", "fsdp2") and (named or FLASH) == FLASH and (problem := flash_attention_problem()):
            chosen = "" if named else " (verl's default)"
            yield f"{key}={FLASH}{chosen}: {problem}. Set ++{key}=sdpa, or install flash-attn."


#: Model types whose attention verl replaces by flash-attn's where rows are packed.
_FLASH_ONLY = ("qwen2_vl", "qwen2_5_vl", "glm4v", "kimi_vl")


def check_model_attention(config: DictConfig, line: Line) -> Iterator[str]:
    """Models in folders of this machine that SDPA does not compute as they are defined."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if actor.strategy not in ("fsdp", "fsdp2") or attention_of(config) != SDPA:
        return
    content = model_config(str(model.path))
    kind = content.get("model_type")
    if model.use_remove_padding and kind in _FLASH_ONLY:
        yield (
            f"actor_rollout_ref.model.path={model.path}: verl computes the attention of {kind} over packed rows with "
            f"flash-attn alone, and the run uses {SDPA}. Set actor_rollout_ref.model.use_remove_padding=false, or "
            "install flash-attn on the machines that train."
        )
    if content.get("attn_logit_softcapping"):
        yield (
            f"actor_rollout_ref.model.path={model.path}: {kind} caps its attention logits, and {SDPA} leaves the cap "
            f"out. Set {ATTENTION}=eager and actor_rollout_ref.model.use_remove_padding=false, or install flash-attn."
        )
    if kind == "gpt_oss":
        yield f"actor_rollout_ref.model.path={model.path}: {kind} does not support {SDPA}. Install flash-attn."


def model_config(path: str) -> dict[str, Any]:
    """The content of a model's ``config.json`` in a folder of this machine; empty where there is none to read."""
    try:
        content = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
