"""A checkpoint of verl's as one model in Hugging Face's form, by verl's own merger in a process of its own.

verl's merger stores bfloat16, whatever the run's precision. It unpickles the shards: merge what you, or somebody you
trust, trained.
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
#: In a merged model's folder: which shards it was made of.
MADE_OF = "verl_gsd_made_of.json"


def shards(checkpoint: Path) -> dict[str, list[int]]:
    """The files of RUN/global_step_N that hold the policy, by name: size, and time of the last change.

    Raises:
        ConfigError: it is no checkpoint, was broken off while it was written, or is of a kind that is not merged; the
            message names the file.
    """
    match = _STEP.fullmatch(checkpoint.name)
    if match is None:
        raise ConfigError(f"--checkpoint {checkpoint}: write a run's folder RUN/global_step_N, or a model's")
    try:
        saved = RunDirectory(checkpoint.parent).latest_checkpoint()
    except ValueError as error:
        raise ConfigError(f"--checkpoint {checkpoint}: the run's latest_checkpointed_iteration.txt: {error}") from error
    if not checkpoint.is_dir():
        last = "none" if saved is None else f"global_step_{saved}"
        raise ConfigError(f"--checkpoint {checkpoint}: is not there. The run's last checkpoint is {last}")
    if saved is None or saved < int(match[1]):
        raise ConfigError(
            f"--checkpoint {checkpoint}: was broken off while it was written: the run's last whole checkpoint is "
            f"{'none' if saved is None else f'global_step_{saved}'}"
        )
    actor = checkpoint / "actor"
    if not actor.is_dir():
        raise ConfigError(
            f"--checkpoint {checkpoint}: has no actor/; verl keeps trainer.max_actor_ckpt_to_keep of them"
        )
    if (actor / "lora_train_meta.json").exists():
        raise ConfigError(f"--checkpoint {checkpoint}: has adapters (LoRA), which are not merged here")
    try:
        world = int(json.loads((actor / "fsdp_config.json").read_text())["world_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{actor / 'fsdp_config.json'}: not readable ({error!r}): no checkpoint of FSDP") from error
    files = [actor / f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]
    for file in [*files, actor / "huggingface" / "config.json"]:
        if not file.is_file() or not file.stat().st_size:
            raise ConfigError(f"{file}: is not there, or empty: the checkpoint is not whole")
    return identity(files)


def identity(files: Sequence[Path]) -> dict[str, list[int]]:
    """What tells weights from others without reading them: name, size, and time of the last change in nanoseconds."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def merge(checkpoint: Path, target: Path) -> None:
    """Make the model of RUN/global_step_N in ``target``, whole or not at all; one made of the same shards is kept.

    Raises:
        ConfigError: as ``shards``; another minor version of torch saved the shards; or verl's merger fails, and the
            message has its last line.
        OSError: there is no room, or no right to write.
    """
    made_of = shards(checkpoint)
    saved_by, here = saved_torch_version(checkpoint), version("torch")
    marker = target / MADE_OF
    with suppress(OSError, ValueError):  # none, or a damaged one: it is merged anew
        if json.loads(marker.read_text(encoding="utf-8")) == made_of:
            return
    if saved_by is not None and _minor(saved_by) != _minor(here):
        raise ConfigError(
            f"--checkpoint {checkpoint}: torch {saved_by} saved it, and this environment has torch {here}. Only the "
            f"same minor version reads its shards. {_elsewhere(checkpoint)}, or install torch {_minor(saved_by)} here"
        )
    with atomic_folder(target) as building:
        actor = checkpoint / "actor"
        command = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", str(actor)]
        done = subprocess.run(
            [sys.executable, *command, "--target_dir", str(building)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        if done.returncode != 0 or not list(building.glob("*.safetensors")):
            last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "it printed nothing")
            cause = "" if saved_by else _likely_cause(checkpoint, here)
            raise ConfigError(f"--checkpoint {checkpoint}: verl's merger failed: {last[:500]}{cause}")
        (building / MADE_OF).write_text(json.dumps(made_of), encoding="utf-8")


def _minor(torch: str) -> str:
    return ".".join(torch.split(".")[:2])


def _elsewhere(checkpoint: Path) -> str:
    command = f"python -m verl.model_merger merge --backend fsdp --local_dir {checkpoint / 'actor'} --target_dir MODEL"
    return f"Run `{command}` where it was trained and use --checkpoint MODEL"


def _likely_cause(checkpoint: Path, here: str) -> str:
    """For a checkpoint that does not name its torch: saved by verl's own trainer or by an early verl-gsd."""
    return (
        f". The checkpoint does not name the torch that saved it, and this is torch {here}, which reads shards of "
        f"torch {_minor(here)} alone. {_elsewhere(checkpoint)}"
    )
