"""What remembers beside the weights: saved with verl's checkpoint, restored with it, exactly.

    RUN/global_step_N/gsd/state.json          plain values, settings, a digest of the arrays
    RUN/global_step_N/gsd/arrays.safetensors  arrays

The folder is written whole before verl announces the checkpoint, so that an announced checkpoint has it. Nothing in it
is executable: JSON and safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load, save

from verl_gsd.errors import ConfigError
from verl_gsd.rundir import RunDirectory
from verl_gsd.writing import atomic_folder

VERSION = 1
FOLDER = "gsd"

#: What to write where a checkpoint's memory cannot be used.
REMEDY = "Write algorithm.gsd.state=fresh to go on with its weights and an empty memory."


class DamagedStateError(ConfigError):
    """The memory in a checkpoint is cut off or overwritten. An older checkpoint may be whole.

    Attributes:
        problem: the file and what is wrong with it, without what to do.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. {REMEDY}")
        self.problem = problem


class Memory(Protocol):
    """Anything that remembers. ``state_dict`` holds what JSON can hold, and numpy arrays at its top level."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_state(checkpoint: Path, memories: Mapping[str, Memory], settings: Mapping[str, Any]) -> None:
    """Write all ``memories`` below the folder ``checkpoint``, whole or not at all.

    Args:
        settings: what the memories' meaning depends on, as plain JSON; compared when they are restored.

    Raises:
        OSError: there is no room, or no right to write.
    """
    values: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, memory in memories.items():
        state = memory.state_dict()
        arrays |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
        values[name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
    packed = save({key: np.asarray(value, order="C") for key, value in arrays.items()})
    content = {
        "version": VERSION,
        "torch": version("torch"),  # verl's shards beside it are read by the same minor version alone
        "settings": dict(settings),
        "values": values,
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
    }
    with atomic_folder(checkpoint / FOLDER) as building:
        _write(building / "arrays.safetensors", packed)
        _write(building / "state.json", (json.dumps(content, indent=1) + "\n").encode())


def remove_rotated_states(run: RunDirectory, saved: Sequence[int], keep: int | None) -> None:
    """Remove our state from those checkpoints of this process whose weights verl has removed.

    verl keeps the ``keep`` newest checkpoints that one process saved. It never touches those of an earlier attempt,
    because a resumed process starts with an empty list (verl/utils/checkpoint/checkpoint_manager.py). The same rule
    is applied here and not read off the disk: if each node has a disk of its own, the driver may see no weights at all.
    State stays beside weights that are visible here, and in the checkpoint that a resume would load.

    Args:
        saved: steps of all checkpoints that this process saved, oldest first.
        keep: ``trainer.max_actor_ckpt_to_keep``; verl removes nothing unless it is a whole number above 0.
    """
    if not isinstance(keep, int) or keep < 1:
        return
    announced = run.latest_checkpoint()
    for step in saved[:-keep]:
        checkpoint = run.checkpoint(step)
        if step != announced and not (checkpoint / "actor").exists():
            shutil.rmtree(checkpoint / FOLDER, ignore_errors=True)


def torch_of(checkpoint: Path) -> str | None:
    """The version of torch that wrote ``checkpoint``; None if its state does not name one, or there is no state."""
    try:
        content = json.loads((checkpoint / FOLDER / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    named = content.get("torch") if isinstance(content, dict) else None
    return named if isinstance(named, str) else None


def check_state(
    checkpoint: Path, settings: Mapping[str, Any], names: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The values and arrays below ``checkpoint``, by memory and by memory/key.

    Args:
        settings: the run's that must be the same; what else was saved with the memory is not compared.
        names: the run's memories; None leaves them out of account.

    Raises:
        DamagedStateError: it is damaged.
        ConfigError: nothing of ours is there, it was written by a newer version, or by a run whose ``settings`` or
            memories were others; the message says which, and what to write.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        raise ConfigError(f"{checkpoint}: a checkpoint without verl-gsd's memory ({FOLDER}/). {REMEDY}")
    content, arrays = _read(folder)
    for key, now in settings.items():
        before = content["settings"].get(key)
        if before != now:
            raise ConfigError(
                f"{key}: the memory in {folder} was made with {before}, and this is {now}. Use what it was made with, "
                f"or: {REMEDY}"
            )
    if names is not None and content["values"].keys() != set(names):
        raise ConfigError(
            f"{folder}: holds the memory of {', '.join(sorted(content['values']))}, this run has "
            f"{', '.join(sorted(names))}. {REMEDY}"
        )
    return content["values"], arrays


def restore_state(checkpoint: Path, memories: Mapping[str, Memory], settings: Mapping[str, Any]) -> None:
    """Give all ``memories`` what ``save_state`` wrote below ``checkpoint``.

    Raises:
        ConfigError: as ``check_state``, or a memory refuses what it is given.
    """
    values, arrays = check_state(checkpoint, settings, memories.keys())
    for name, memory in memories.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
        try:
            memory.load_state_dict(values[name] | own)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{checkpoint / FOLDER}: the memory {name} is damaged ({error!r}). {REMEDY}") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        content = json.loads((folder / "state.json").read_bytes())
        packed = (folder / "arrays.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise DamagedStateError(f"{folder}: damaged ({error})") from error
    kinds = {"version": int, "settings": dict, "values": dict, "arrays_sha256": str}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise DamagedStateError(f"{folder / 'state.json'}: not written by verl-gsd")
    if content["version"] > VERSION:
        raise ConfigError(
            f"{folder}: version {content['version']}, this package reads up to {VERSION}. Update it, or: {REMEDY}"
        )
    if hashlib.sha256(packed).hexdigest() != content["arrays_sha256"]:
        raise DamagedStateError(f"{folder / 'arrays.safetensors'}: damaged (its digest is not state.json's)")
    return content, load(packed)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
