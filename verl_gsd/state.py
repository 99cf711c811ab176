"""Our state, saved in verl's checkpoints next to the weights, and restored exactly.

    RUN/global_step_N/gsd/state.json          plain values, settings, a digest of the arrays
    RUN/global_step_N/gsd/arrays.safetensors  arrays

The folder is written atomically, before verl marks the checkpoint as complete. A complete checkpoint therefore has it.
Its files are JSON and safetensors, which cannot contain code.
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
from verl_gsd.extension import Extension, ExtensionError, call_hook
from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import read_regular
from verl_gsd.rundir import RunDirectory
from verl_gsd.writing import atomic_folder

VERSION = 1
FOLDER = "gsd"
#: The largest file of a state that is read, in bytes. A full store of responses takes 1.25 GiB.
_LARGEST = 8 << 30

#: What the user can do if the state in a checkpoint cannot be used.
REMEDY = "Set algorithm.gsd.state=fresh to resume with its weights and an empty state."


class DamagedStateError(ConfigError):
    """The state in a checkpoint is truncated or overwritten. An older checkpoint may be complete.

    Attributes:
        problem: the file and what is wrong with it, without the remedy.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}. {REMEDY}")
        self.problem = problem


class Memory(Protocol):
    """An object whose state is saved. ``state_dict`` has JSON values, and numpy arrays only at its top level."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_state(checkpoint: Path, memories: Mapping[str, Memory], settings: Mapping[str, Any]) -> None:
    """Write the states of all ``memories`` to the folder ``checkpoint``, atomically.

    Args:
        settings: the settings that determine what the states mean, as plain JSON. They are compared on restore.

    Raises:
        TypeError: a state has a value that JSON would not give back; the message names the memory and the value.
        OSError: the disk is full, or the process may not write there.
    """
    values: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, memory in memories.items():
        state = call_hook(name, memory, "state_dict") if isinstance(memory, Extension) else memory.state_dict()
        arrays |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
        values[name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
        _check_json(values[name], f"the state of {name}")
    packed = save({key: np.asarray(value, order="C") for key, value in arrays.items()})
    content = {
        "version": VERSION,
        "torch": version("torch"),  # verl's shards can only be read by the same minor version
        "settings": dict(settings),
        "values": values,
        "arrays_sha256": hashlib.sha256(packed).hexdigest(),
    }
    # This replaces the state of an attempt that was killed before verl marked its checkpoint of this step.
    with atomic_folder(checkpoint / FOLDER) as temporary:
        _write(temporary / "arrays.safetensors", packed)
        _write(temporary / "state.json", (json.dumps(content, indent=1) + "\n").encode())


def _check_json(value: Any, place: str) -> None:
    """Check that JSON gives ``value`` back, apart from tuples, which become lists."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"{place} has the key {key!r}, which JSON does not keep. Use texts as keys, or a list of pairs."
                )
            _check_json(entry, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value):
            _check_json(entry, f"{place}[{position}]")
    elif not isinstance(value, str | int | float | None):
        raise TypeError(
            f"{place} is of type {type(value).__name__}, which JSON does not have. Use texts, numbers, lists, dicts, "
            "and numpy arrays at the top level only."
        )


def remove_rotated_states(run: RunDirectory, saved: Sequence[int], keep: int | None) -> None:
    """Remove our state from the checkpoints of this process whose weights verl has removed.

    verl keeps the ``keep`` newest checkpoints that one process saved. It never removes those of an earlier attempt,
    because a resumed process starts with an empty list (verl/utils/checkpoint/checkpoint_manager.py). This function
    applies the same rule instead of looking for the weights: if each node has its own disk, the driver may see no
    weights at all. State is kept next to weights that are visible here, and in the checkpoint that a resume would load.

    Args:
        saved: the steps of all checkpoints that this process saved, oldest first.
        keep: ``trainer.max_actor_ckpt_to_keep``. verl removes nothing unless it is an integer above 0.
    """
    if not isinstance(keep, int) or keep < 1:
        return
    latest = run.latest_checkpoint()
    for step in saved[:-keep]:
        checkpoint = run.checkpoint(step)
        if step != latest and not (checkpoint / "actor").exists():
            shutil.rmtree(checkpoint / FOLDER, ignore_errors=True)


def saved_torch_version(checkpoint: Path) -> str | None:
    """The version of torch that wrote ``checkpoint``; None if there is no state, or it does not name a version."""
    try:
        content = parse_json(read_regular(checkpoint / FOLDER / "state.json", within=checkpoint, limit=_LARGEST))
    except (OSError, ValueError):
        return None
    torch = content.get("torch") if isinstance(content, dict) else None
    return torch if isinstance(torch, str) else None


def check_state(
    checkpoint: Path, settings: Mapping[str, Any], names: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The saved values by memory, and the saved arrays by memory/key.

    Args:
        settings: settings of this run that must equal the saved ones. Other saved settings are ignored.
        names: the names of this run's memories, which must equal the saved ones; None skips this check.

    Raises:
        DamagedStateError: the state is damaged.
        ConfigError: there is no state, a newer version wrote it, or a run with other ``settings`` or memories did. The
            message says which, and what to set.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        raise ConfigError(f"{checkpoint}: this checkpoint has no verl-gsd state ({FOLDER}/). {REMEDY}")
    content, arrays = _read(folder)
    for key, value in settings.items():
        saved = content["settings"].get(key)
        if saved != value:
            key, saved, value = _first_difference(key, saved, value)
            raise ConfigError(
                f"{_shown(key)}: the state in {folder} was saved with {_shown(saved)}, and this run has {value}. Use "
                f"the saved value. Or: {REMEDY}"
            )
    if names is not None and content["values"].keys() != set(names):
        saved_names = _shown(", ".join(sorted(content["values"])))
        raise ConfigError(
            f"{folder}: the saved state is of {saved_names}, but this run needs the state of "
            f"{', '.join(sorted(names))}. {REMEDY}"
        )
    return content["values"], arrays


def _shown(value: Any) -> str:
    """A text of a checkpoint for a message, in one line. Somebody else may have made the checkpoint."""
    text = str(value)
    return text if text.isprintable() else ascii(text)


def saved_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings with which the state in ``checkpoint`` was saved; empty if there is no state that can be read."""
    if not (checkpoint / FOLDER).is_dir():
        return {}
    try:
        content, _ = _read(checkpoint / FOLDER)
    except ConfigError:
        return {}
    return content["settings"]


def _first_difference(key: str, saved: Any, value: Any) -> tuple[str, Any, Any]:
    """The first entry, with its dotted key, in which two settings differ."""
    if isinstance(saved, dict) and isinstance(value, dict):
        for name in (*saved, *value):
            if saved.get(name) != value.get(name):
                return f"{key}.{name}", saved.get(name), value.get(name)
    return key, saved, value


def restore_state(checkpoint: Path, memories: Mapping[str, Memory], settings: Mapping[str, Any]) -> None:
    """Load the states that ``save_state`` wrote to ``checkpoint`` into all ``memories``.

    Raises:
        ConfigError: as ``check_state``, or a memory rejects its state.
    """
    values, arrays = check_state(checkpoint, settings, memories.keys())
    for name, memory in memories.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
        try:
            memory.load_state_dict(values[name] | own)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{checkpoint / FOLDER}: the state of {name} is damaged ({error!r}). {REMEDY}") from error
        except Exception as error:
            if isinstance(memory, Extension):
                raise ExtensionError.in_hook(name, "load_state_dict", error) from error
            raise


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        content = parse_json(read_regular(folder / "state.json", limit=_LARGEST))
        packed = read_regular(folder / "arrays.safetensors", limit=_LARGEST)
    except (OSError, ValueError) as error:
        raise DamagedStateError(f"{folder}: the state is damaged ({error})") from error
    kinds = {"version": int, "settings": dict, "values": dict, "arrays_sha256": str}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise DamagedStateError(f"{folder / 'state.json'}: not written by verl-gsd")
    if content["version"] > VERSION:
        raise ConfigError(
            f"{folder}: format version {content['version']} is too new, this verl-gsd reads up to {VERSION}. "
            f"Install a newer verl-gsd. Or: {REMEDY}"
        )
    if hashlib.sha256(packed).hexdigest() != content["arrays_sha256"]:
        raise DamagedStateError(
            f"{folder / 'arrays.safetensors'}: damaged (its digest differs from the one in state.json)"
        )
    return content, load(packed)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
