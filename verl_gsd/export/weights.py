"""Turns the shards of a verl checkpoint into a Hugging Face model, or into a PEFT adapter if it was trained with LoRA.

verl's own merger always rounds to bfloat16, and does not merge adapters. This module keeps the precision that the
caller chooses: each weight is rounded once, after adapters are merged in float32.

The shards are loaded with ``weights_only``, so that nothing in a file can run. They are mapped into memory, not read at
once. Memory holds one copy of the model, in the target precision.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from verl_gsd.console import without_messages
from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.export.checkpoint import LORA_FILE, OpenCheckpoint, check_torch, shard_paths
from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import open_regular, opened_again
from verl_gsd.trainer.checkpoint_loading import unsafe_name

if TYPE_CHECKING:
    import torch

#: Precisions that a model can be written in.
DTYPES = ("bfloat16", "float16", "float32")
_BASE, _ADAPTER = "actor_rollout_ref.model.path", "actor_rollout_ref.model.lora_adapter_path"
#: PEFT's prefix of the base model's names.
_PEFT_PREFIX = "base_model.model."
#: In a checkpoint: the model's config, tokenizer, chat template and generation config.
_HUGGINGFACE = "actor/huggingface"
_CONFIG = f"{_HUGGINGFACE}/config.json"
#: Files in actor/huggingface that are written again from the weights.
_REPLACED = ("config.json", "model*.safetensors*", "pytorch_model*")
#: What to do about a file that cannot be copied from actor/huggingface.
_REMEDY = "It may lead to a private file of yours. Remove it, or replace it by a regular file"


@dataclass(frozen=True)
class Origins:
    """What a run with LoRA started from. Other runs do not need it.

    Attributes:
        base: the base model, a folder or a name on the hub; None if it is not known.
        adapter: the adapter that the run continued, a folder or a name on the hub; None if there was none.
        distrust: why the config that names them is not followed; None if it is. Whoever wrote it could name a private
            model of the user who exports the run, which would become part of the exported model.
        is_base_chosen: whether this user named the base model. It is then used whatever ``distrust`` says.
    """

    base: str | None = None
    adapter: str | None = None
    distrust: str | None = None
    is_base_chosen: bool = False


def origins_of(config: Any, *, distrust: str | None, base: str | None = None) -> Origins:
    """The origins of a run.

    Args:
        config: the run's config, as plain dicts; None if there is none.
        distrust: as in ``Origins``.
        base: the base model that the user named, if any.
    """
    named, adapter = (value_at(config, key) or None for key in (_BASE, _ADAPTER))
    return Origins(base or named, adapter, distrust, base is not None)


def write_model(checkpoint: OpenCheckpoint, folder: Path, dtype: str, origins: Origins) -> None:
    """Write the policy of RUN/global_step_N as a Hugging Face model. LoRA adapters are merged into their base.

    Args:
        folder: an empty folder. It receives weights (safetensors), config, generation config, tokenizer and chat
            template.
        dtype: one of ``DTYPES``. With float32, weights that verl stored in float32 are exact.

    Raises:
        ConfigError: the checkpoint is incomplete, damaged, or of an unsupported kind, a weight is not finite, or
            somebody else may have chosen one of ``origins`` that is needed.
        OSError: the disk is full, or the process may not write there.
    """
    weights, model = _read(checkpoint)
    if checkpoint.has(LORA_FILE):
        if _only_adapters(weights):
            model = _base_model(checkpoint.path, type(model), origins)
        model = _merge_adapters(_load_adapters(checkpoint, model, weights, origins), dtype)
    else:
        _load(checkpoint.path, model, {name: _round(name, weight, dtype) for name, weight in weights.items()})
        model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.data = _round(name, parameter.data, dtype)
    model.save_pretrained(folder, max_shard_size="5GB")
    _copy_tokenizer(checkpoint, folder)


def write_adapter(checkpoint: OpenCheckpoint, folder: Path, dtype: str, origins: Origins, base: str) -> None:
    """Write the LoRA adapter of RUN/global_step_N as a PEFT adapter, with the tokenizer and the chat template.

    Args:
        folder, dtype, origins: see ``write_model``.
        base: the name of the base model that the adapter's config refers to.

    Raises:
        ConfigError: the checkpoint has no adapter; or see ``write_model``.
        OSError: the disk is full, or the process may not write there.
    """
    if not checkpoint.has(LORA_FILE):
        raise ConfigError(f"--adapter: {checkpoint.path} was not trained with LoRA. Remove --adapter")
    weights, model = _read(checkpoint)
    adapters = {name: weight for name, weight in weights.items() if "lora_" in name}
    peft_model = _load_adapters(checkpoint, model, adapters, origins)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = _round(name, parameter.data, dtype)
    settings = peft_model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = base, True
    # With "auto", PEFT would ask the hub about the base model. verl trains no embeddings with LoRA.
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    _copy_tokenizer(checkpoint, folder)


def architecture_of(checkpoint: OpenCheckpoint) -> tuple[str, int]:
    """The class of the policy in RUN/global_step_N in transformers, and its number of parameters, without adapters.

    Raises:
        ConfigError: transformers does not have the architecture.
    """
    model = _model_without_weights(checkpoint)
    return type(model).__name__, model.num_parameters()


def _read(checkpoint: OpenCheckpoint) -> tuple[dict[str, torch.Tensor], Any]:
    """The checkpoint's weights by name, as verl stored them, and its model without weights."""
    files = shard_paths(checkpoint.path)
    check_torch(checkpoint.path)
    model = _model_without_weights(checkpoint)
    ranks = [_load_shard(checkpoint, file) for file in files]
    names = sorted(ranks[0])
    for file, rank in zip(files, ranks, strict=True):
        if sorted(rank) != names:
            raise ConfigError(f"{file}: it has other weights than {files[0].name}, so the checkpoint is damaged")
    return {name: _whole(checkpoint.path, name, [rank[name] for rank in ranks]) for name in names}, model


def _load_shard(checkpoint: OpenCheckpoint, file: Path) -> Mapping[str, Any]:
    import torch
    import torch.distributed.tensor  # registers DTensor and its parts as types that may be loaded

    try:
        with without_messages("torch.distributed.device_mesh"), checkpoint.open(f"actor/{file.name}") as shard:
            return torch.load(opened_again(shard.fileno()), map_location="cpu", mmap=True, weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may raise anything
        if (name := unsafe_name(error)) is not None:
            raise ConfigError(
                f"{file}: cannot be read as weights: it contains {name}, which can run code. It was not loaded. Use a "
                "checkpoint that verl wrote"
            ) from None
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"{file}: cannot be read as weights with torch {version('torch')}: {first_line}") from error


def _whole(checkpoint: Path, name: str, shards: Sequence[Any]) -> torch.Tensor:
    """One weight from its shards, which are by rank. A weight that is not sharded is the same on every rank."""
    import torch
    from torch.distributed.tensor import DTensor

    first = shards[0]
    if not isinstance(first, DTensor):
        if not all(torch.equal(first, shard) for shard in shards[1:]):
            raise ConfigError(f"{checkpoint}: {name} differs between ranks, so the checkpoint is damaged")
        return first
    split = [dim for dim, placement in enumerate(first.placements) if not placement.is_replicate()]
    if len(split) > 1 or any(not first.placements[dim].is_shard() for dim in split):
        raise ConfigError(
            f"{checkpoint}: {name} is placed as {first.placements}. Only weights that FSDP splits along one dimension "
            "can be exported"
        )
    with torch.no_grad():
        if not split:
            return first.to_local()
        # Ranks that differ only in the other mesh dimensions have copies: the first of each suffices.
        ranks = first.device_mesh.mesh[
            tuple(slice(None) if dim in split else 0 for dim in range(len(first.placements)))
        ]
        parts = [shards[rank].to_local() for rank in ranks.tolist()]
        placement: Any = first.placements[split[0]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=placement.dim)
    if whole.shape != first.shape:
        raise ConfigError(
            f"{checkpoint}: the shards of {name} have shape {tuple(whole.shape)} together, not {tuple(first.shape)}, "
            "so the checkpoint is damaged"
        )
    return whole


def _model_without_weights(checkpoint: OpenCheckpoint) -> Any:
    """The model of the checkpoint's config on torch's device ``meta``."""
    import torch
    import transformers

    file = checkpoint.path / _CONFIG
    try:
        with TemporaryDirectory() as folder:
            # transformers opens files by name, also others that the config names.
            Path(folder, "config.json").write_bytes(checkpoint.read(_CONFIG))
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.name_or_path = str(file.parent)
    except ConfigError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ConfigError(f"{file}: cannot be read as a model's config: {error}") from error
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else None
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ConfigError(
            f"{file}: the architecture {name!r:.80} is not a model in transformers "
            f"{version('transformers')}. Models with code of their own cannot be exported"
        )
    try:
        with torch.device("meta"):
            return kind(config)
    except Exception as error:
        raise ConfigError(
            f"{file}: no {name} can be made from this config ({error!r:.300}). Compare it with the "
            "config.json of the model that was trained"
        ) from error


def _load(checkpoint: Path, model: Any, weights: Mapping[str, torch.Tensor], given: str = "") -> None:
    """Put ``weights`` into ``model``.

    Args:
        given: the model may keep those of its own weights whose names do not contain this text.
    """
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # transformers derives them from other weights
    missing = [name for name in missing if name not in tied and given in name]
    if missing or unexpected:
        word, names = ("lacks", missing) if missing else ("has unknown weights:", unexpected)
        raise ConfigError(
            f"{checkpoint}: for a {type(model).__name__}, the checkpoint {word} {', '.join(names[:3])}"
            f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        )


def _only_adapters(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the checkpoint has no weights of the base model, as with verl's ``save_lora_only``."""
    return all("lora_" in name for name in weights)


def _base_model(checkpoint: Path, kind: Any, origins: Origins) -> Any:
    """The model that the run began with."""
    path = origins.base or ""
    if origins.distrust is not None and not origins.is_base_chosen:
        raise _not_followed(checkpoint, f"{_BASE}={path}", "base model", origins.distrust)
    try:
        return kind.from_pretrained(Path(path).expanduser() if str(path).startswith("~") else path)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{_BASE}={path}: the checkpoint has only LoRA adapters, and their base model cannot "
            f"be loaded from there: {error}. Use --adapter, or make the base model available"
        ) from error


def _not_followed(checkpoint: Path, setting: str, what: str, reason: str) -> ConfigError:
    options = "--base MODEL" if what == "base model" else "--trust"
    return ConfigError(
        f"{setting}: the run's config names this {what}, and {reason}. It could be a private model of yours, which "
        f"would become part of the exported one. If you want to use it, run `verl-gsd export {checkpoint} FOLDER "
        f"{options}`. --trust follows the run's config"
    )


def _load_adapters(
    checkpoint: OpenCheckpoint, model: Any, weights: Mapping[str, torch.Tensor], origins: Origins
) -> Any:
    """``model`` with LoRA adapters, as a ``PeftModel``. If ``weights`` has only adapters, the base stays as it is."""
    import peft

    settings = _lora_settings(checkpoint, weights, origins)
    peft_model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    _load(checkpoint.path, peft_model, weights, "lora_" if _only_adapters(weights) else "")
    return peft_model


def _lora_settings(checkpoint: OpenCheckpoint, weights: Mapping[str, torch.Tensor], origins: Origins) -> Any:
    """The settings of the run's adapters, as a ``LoraConfig``.

    verl stores rank and alpha only. The names of the weights tell which modules have adapters. A run that continued an
    adapter (``lora_adapter_path``) has the settings of that adapter, for example rank-stabilised scaling.
    """
    import peft

    if path := origins.adapter:
        if origins.distrust is not None:
            raise _not_followed(checkpoint.path, f"{_ADAPTER}={path}", "adapter", origins.distrust)
        try:
            settings = peft.LoraConfig.from_pretrained(str(Path(path).expanduser()))
            settings.base_model_name_or_path = None  # the base is this checkpoint's
            return settings
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{_ADAPTER}={path}: the run began with this adapter, and its settings "
                f"cannot be read: {error}. Make the adapter available there"
            ) from error
    try:
        stored = parse_json(checkpoint.read(LORA_FILE))
        rank, alpha = int(stored["r"]), int(stored["lora_alpha"])
    except ConfigError:
        raise
    except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{checkpoint.path / LORA_FILE}: cannot be read as verl's LoRA settings ({error!r})"
        ) from error
    modules = sorted(name.removeprefix(_PEFT_PREFIX).partition(".lora_A.")[0] for name in weights if ".lora_A." in name)
    return peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, task_type="CAUSAL_LM")


def _merge_adapters(peft_model: Any, dtype: str) -> Any:
    """The base model with the adapters merged in float32, one layer after another."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in peft_model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.float()
            layer.merge()
            layer.to(getattr(torch, dtype))
    return peft_model.unload()


def _round(name: str, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    import torch

    if not weight.is_floating_point():
        return weight
    rounded = weight.to(getattr(torch, dtype))
    if not torch.isfinite(rounded).all():
        raise ConfigError(
            f"{name}: it has values that are infinite or NaN as {dtype}. Use --dtype float32. If that fails too, "
            "training diverged: use an earlier checkpoint"
        )
    return rounded


def _copy_tokenizer(checkpoint: OpenCheckpoint, folder: Path) -> None:
    """Copy what verl saved with the checkpoint: tokenizer, chat template, generation config, processor.

    Only regular files are copied. A link could lead to a private file of the user who exports. Folders are listed and
    files are opened by way of open folders, so that whoever owns the checkpoint cannot put a link there in between.

    Raises:
        ConfigError: there is a link, or a special file such as a named pipe.
        OSError: the disk is full, or the process may not write there.
    """
    source = checkpoint.path / _HUGGINGFACE
    with checkpoint.folder(_HUGGINGFACE) as opened:
        for below, folders, files, descriptor in os.fwalk(".", dir_fd=opened, onerror=_raise):
            (folder / below).mkdir(exist_ok=True)
            for file in files:
                if not any(fnmatch(file, pattern) for pattern in _REPLACED):
                    _copy_file(source / below / file, descriptor, folder / below / file)
            for link in (entry for entry in folders if _is_link(entry, descriptor)):
                raise ConfigError(f"{source / below / link}: it is a link and was not copied. {_REMEDY}")


def _copy_file(source: Path, descriptor: int, target: Path) -> None:
    """Copy a regular file. ``descriptor``: the folder of ``source``."""
    try:
        reading = open_regular(source.name, follow_links=False, folder=descriptor)
    except OSError as error:
        kind = "it is a link" if _is_link(source.name, descriptor) else error.strerror
        raise ConfigError(f"{source}: {kind} and was not copied. {_REMEDY}") from error
    with reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)


def _is_link(name: str, descriptor: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)


def _raise(error: OSError) -> None:
    raise error
