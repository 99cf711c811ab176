"""Check that a LoRA adapter reaches vLLM. Otherwise the responses come from another policy than the trained one.

verl 0.9.1 has two sections for LoRA: ``model.lora_rank`` and its neighbours for FSDP, and ``model.lora`` for Megatron.
vLLM reads both, so that the wrong one makes vLLM wait for an adapter that nobody trains. Without ``model.lora.merge``,
verl sends the adapter's tensors, and vLLM drops those of modules that it does not support, without a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import OUR_MODES
from verl_gsd.run.compose import Line
from verl_gsd.scalars import is_whole

_MODEL, _ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
_MERGE = f"{_MODEL}.lora.merge=true"
#: The largest rank of vLLM (``vllm.config.lora.MaxLoRARanks``).
_LARGEST_RANK = 512
#: Modules that are no linear layers within a transformer layer. vLLM supports adapters for them only in some models.
_OUTER_MODULES = ("lm_head", "embed_tokens")
#: Keys for FSDP -> the key of the same meaning for Megatron, below ``model.lora``.
_FSDP_KEYS = {
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
}


def check_lora(config: DictConfig, line: Line) -> Iterator[str]:
    """Report LoRA settings that have no effect, make vLLM fail, or keep the adapter from reaching vLLM."""
    model = config.actor_rollout_ref.model
    if not all(is_whole(rank or 0, 0) for rank in (model.lora_rank, _megatron(config, "rank"))):
        yield (
            f"{_MODEL}.lora_rank={model.lora_rank}, lora.rank={_megatron(config, 'rank')}: a rank is an integer. Set "
            "0 for no adapter, or, for example, 32."
        )
        return
    if config.actor_rollout_ref.actor.strategy == "megatron":
        if model.lora_rank and not _megatron(config, "rank"):
            yield (
                f"{_MODEL}.lora_rank={model.lora_rank}: only FSDP reads it. Megatron would train all weights while "
                f"vLLM waits for an adapter. Set {_MODEL}.lora.rank={model.lora_rank}, or model_engine=dp."
            )
        return
    yield from _check_fsdp_keys(config, line)
    if not model.lora_rank:
        return
    yield from _check_adapter_file(config, line)
    if _merges(config):
        return
    if model.lora_rank > _LARGEST_RANK:
        yield (
            f"{_MODEL}.lora_rank={model.lora_rank}: vLLM supports ranks up to {_LARGEST_RANK}. Set a smaller rank, or "
            f"{_MERGE}, with which vLLM gets merged weights."
        )
    rollout = config.actor_rollout_ref.rollout
    if rollout.layered_summon and "dummy" in str(rollout.load_format):
        yield (
            f"{_ROLLOUT}.layered_summon=true: verl cannot send the base model in this way, and with {_ROLLOUT}."
            f"load_format={rollout.load_format} vLLM does not load it itself. Set {_ROLLOUT}.load_format=safetensors."
        )
    if config.trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        yield (
            f"{_MODEL}.lora_rank={model.lora_rank}: in trainer.v1.trainer_mode={config.trainer.v1.trainer_mode}, verl "
            "sends only the base weights to vLLM, so that no response comes from the trained policy. Set "
            f"{_MERGE}, or another mode."
        )


def lora_warnings(config: DictConfig) -> Iterator[str]:
    """Warn about trained parts of an adapter that vLLM may drop without a message."""
    model = config.actor_rollout_ref.model
    if not model.lora_rank or _merges(config):
        return
    targets = [model.target_modules] if isinstance(model.target_modules, str) else list(model.target_modules or ())
    outer = [name for name in targets if str(name).rpartition(".")[2] in _OUTER_MODULES]
    if outer:
        yield (
            f"warning: {_MODEL}.target_modules has {', '.join(outer)}: for many models vLLM drops the adapter of these "
            "modules without a message, and responses then come from another policy than the trained one. Remove them, "
            f"or set {_MERGE}."
        )
    if parameters := model.get("target_parameters"):
        yield (
            f"warning: {_MODEL}.target_parameters={list(parameters)}: vLLM does not apply adapters of single "
            f"parameters, and responses then come from another policy than the trained one. Set {_MERGE}."
        )


def _check_fsdp_keys(config: DictConfig, line: Line) -> Iterator[str]:
    model = config.actor_rollout_ref.model
    rank = _megatron(config, "rank")
    if rank and not model.lora_rank:
        yield (
            f"{_MODEL}.lora.rank={rank}: only Megatron reads it. FSDP would train all weights while vLLM waits for an "
            f"adapter. Set {_MODEL}.lora_rank={rank} and lora.rank=0."
        )
    if model.lora_adapter_path and not model.lora_rank:
        known = _adapter_config(config).get("r")
        yield (
            f"{_MODEL}.lora_adapter_path={model.lora_adapter_path}: FSDP loads an adapter only if lora_rank is above "
            f"0. Set {_MODEL}.lora_rank={known or 'to the rank of the adapter'}."
        )
    for name, other in _FSDP_KEYS.items():
        if name != "lora_rank" and f"{_MODEL}.lora.{other}" in line.keys:
            yield f"{_MODEL}.lora.{other} has no effect: only Megatron reads it. Set {_MODEL}.{name}."
        if name != "lora_rank" and f"{_MODEL}.{name}" in line.keys and not model.lora_rank:
            yield f"{_MODEL}.{name} has no effect: no adapter is trained. Set {_MODEL}.lora_rank=32, or another rank."


def _check_adapter_file(config: DictConfig, line: Line) -> Iterator[str]:
    """Check an adapter in a local folder, with which the run starts."""
    model, adapter = config.actor_rollout_ref.model, _adapter_config(config)
    if model.lora_adapter_path is None:
        return
    where = f"{_MODEL}.lora_adapter_path={model.lora_adapter_path}"
    for name in ("lora_alpha", "target_modules", "exclude_modules"):
        if f"{_MODEL}.{name}" in line.keys:
            yield f"{_MODEL}.{name} has no effect: the adapter of lora_adapter_path has its own. Remove this override."
    rank = adapter.get("r")
    if is_whole(rank, 1) and rank != model.lora_rank:
        yield f"{where}: the adapter has rank {rank}. Set {_MODEL}.lora_rank={rank}, which sizes vLLM's buffers."
    unsupported = {
        "use_dora": adapter.get("use_dora"),
        "modules_to_save": adapter.get("modules_to_save"),
        "bias": adapter.get("bias", "none") != "none",
    }
    if (names := [name for name, value in unsupported.items() if value]) and not _merges(config):
        yield (
            f"{where}: its adapter_config.json sets {', '.join(names)}, which vLLM does not support. Use an adapter "
            "without it."
        )


def _adapter_config(config: DictConfig) -> dict[str, Any]:
    """The content of the adapter's ``adapter_config.json``; empty if there is no valid file in a local folder."""
    path = Path(str(config.actor_rollout_ref.model.lora_adapter_path)).expanduser() / "adapter_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _megatron(config: DictConfig, name: str) -> Any:
    return OmegaConf.select(config, f"{_MODEL}.lora.{name}")


def _merges(config: DictConfig) -> bool:
    """Whether verl merges the adapter into the weights that it sends to vLLM."""
    return bool(_megatron(config, "merge"))
