"""Merges the shards of a verl checkpoint into one model in Hugging Face's format, with verl's merger in a subprocess.

verl's merger always stores bfloat16. It unpickles the shards, so merge only checkpoints from sources that you trust.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from verl_gsd.errors import ConfigError
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import saved_torch_version
from verl_gsd.writing import atomic_folder

_STEP = re.compile(r"global_step_(\d+)")
#: File in a merged model's folder that lists the shards it was merged from.
SOURCE_FILE = "verl_gsd_made_of.json"


def shard_files(checkpoint: Path) -> dict[str, list[int]]:
    """The policy's files in RUN/global_step_N, in the format of ``file_identities``.

    Raises:
        ConfigError: ``checkpoint`` is not a checkpoint, is incomplete, or is of an unsupported kind. The message names
            the file.
    """
    match = _STEP.fullmatch(checkpoint.name)
    if match is None:
        raise ConfigError(
            f"--checkpoint {checkpoint}: this is not a checkpoint. Use RUN/global_step_N, or a model's folder"
        )
    try:
        saved = RunDirectory(checkpoint.parent).latest_checkpoint()
    except ValueError as error:
        raise ConfigError(f"--checkpoint {checkpoint}: the run's latest_checkpointed_iteration.txt: {error}") from error
    if not checkpoint.is_dir():
        last = "none" if saved is None else f"global_step_{saved}"
        raise ConfigError(f"--checkpoint {checkpoint}: this folder does not exist. The run's last checkpoint is {last}")
    if saved is None or saved < int(match[1]):
        raise ConfigError(
            f"--checkpoint {checkpoint}: it was not written completely. The run's last complete checkpoint is "
            f"{'none' if saved is None else f'global_step_{saved}'}"
        )
    actor = checkpoint / "actor"
    if not actor.is_dir():
        raise ConfigError(
            f"--checkpoint {checkpoint}: it has no folder actor/. verl keeps only the last "
            "trainer.max_actor_ckpt_to_keep of them"
        )
    if (actor / "lora_train_meta.json").exists():
        raise ConfigError(f"--checkpoint {checkpoint}: it has LoRA adapters, which this command does not merge")
    try:
        world = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{actor / 'fsdp_config.json'}: cannot be read as an FSDP checkpoint ({error!r})") from error
    files = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    for file in [*files, actor / "huggingface" / "config.json"]:
        if not file.is_file() or not file.stat().st_size:
            raise ConfigError(f"{file}: it is missing or empty, so the checkpoint is incomplete")
    return file_identities(files)


def file_identities(files: Sequence[Path]) -> dict[str, list[int]]:
    """By file name: size in bytes, and modification time in nanoseconds. Identifies weights without reading them."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def merge(checkpoint: Path, target: Path) -> None:
    """Merge RUN/global_step_N into ``target`` atomically. Does nothing if ``target`` was merged from the same shards.

    Raises:
        ConfigError: see ``shard_files``; or another minor version of torch saved the shards; or verl's merger fails
            (the message quotes its last line).
        OSError: the disk is full, or the process may not write there.
    """
    shards = shard_files(checkpoint)
    saved_by, installed = saved_torch_version(checkpoint), version("torch")
    with suppress(OSError, ValueError):  # missing or damaged: merge again
        if json.loads((target / SOURCE_FILE).read_text(encoding="utf-8")) == shards:
            return
    if saved_by is not None and _minor(saved_by) != _minor(installed):
        raise ConfigError(
            f"--checkpoint {checkpoint}: torch {saved_by} saved it, and this environment has torch {installed}. Only "
            f"the same minor version can read its shards. {_how_to_merge_elsewhere(checkpoint)}, or install torch "
            f"{_minor(saved_by)} here"
        )
    with atomic_folder(target) as building:
        actor = checkpoint / "actor"
        command = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
        merger = subprocess.run(
            [sys.executable, *command, "--target_dir", str(building)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        if merger.returncode != 0 or not list(building.glob("*.safetensors")):
            last = next((line for line in reversed(merger.stdout.splitlines()) if line.strip()), "it printed nothing")
            cause = "" if saved_by else _likely_cause(checkpoint, installed)
            raise ConfigError(f"--checkpoint {checkpoint}: verl's merger failed: {last[:500]}{cause}")
        (building / SOURCE_FILE).write_text(json.dumps(shards), encoding="utf-8")


def _minor(torch: str) -> str:
    return ".".join(torch.split(".")[:2])


def _how_to_merge_elsewhere(checkpoint: Path) -> str:
    command = f"python -m verl.model_merger merge --backend fsdp --local_dir {checkpoint / 'actor'} --target_dir MODEL"
    return f"Run `{command}` in the environment where it was trained and use --checkpoint MODEL"


def _likely_cause(checkpoint: Path, installed: str) -> str:
    """A hint for a checkpoint without torch's version, saved by verl's own trainer or by an early verl-gsd."""
    return (
        f". The checkpoint does not say which version of torch saved it. This environment has torch {installed}, which "
        f"can only read shards of torch {_minor(installed)}. {_how_to_merge_elsewhere(checkpoint)}"
    )
