"""State that survives: exact, whole or absent, never executable, refused when it is another run's."""

import json

import numpy as np
import pytest

from verl_gsd.trainer import state
from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.state import forget_rotated, restore_state, save_state

SETTINGS = {"data.train_files": ["/data/train.parquet"]}


class EveryKind:
    """A memory with every kind of value."""

    def __init__(self):
        self.state = {
            "path": [0.1, 1 / 3],
            "name": "naïve",
            "seen": np.arange(5),
            "empty": np.zeros((0, 2), np.float32),
        }

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


@pytest.fixture
def checkpoint(tmp_path):
    save_state(tmp_path, {"anchor": EveryKind(), "other": EveryKind()}, SETTINGS)
    return tmp_path


def restored(checkpoint, names=("anchor", "other"), settings=SETTINGS):
    memories = {name: EveryKind() for name in names}
    for memory in memories.values():
        memory.state = {}
    restore_state(checkpoint, memories, settings)
    return memories


def test_what_is_restored_is_what_was_saved(checkpoint):
    for memory in restored(checkpoint).values():
        expected = EveryKind().state
        assert memory.state.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                assert memory.state[key].dtype == value.dtype and np.array_equal(memory.state[key], value)
            else:
                assert memory.state[key] == value


def test_saving_again_replaces_and_leaves_nothing_beside(checkpoint):
    save_state(checkpoint, {"anchor": EveryKind()}, SETTINGS)
    assert sorted(path.name for path in checkpoint.rglob("*")) == ["arrays.safetensors", "gsd", "state.json"]
    restored(checkpoint, names=("anchor",))


def test_a_full_disk_leaves_the_earlier_state_whole(checkpoint, monkeypatch):
    def full_disk_stub(path, content):
        path.write_bytes(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(state, "_write", full_disk_stub)
        with pytest.raises(OSError, match="No space"):
            save_state(checkpoint, {"anchor": EveryKind()}, SETTINGS)
    assert sorted(path.name for path in checkpoint.iterdir()) == ["gsd"]
    restored(checkpoint)


def spoil(checkpoint, how):
    folder = checkpoint / "gsd"
    content = json.loads((folder / "state.json").read_text())
    arrays = (folder / "arrays.safetensors").read_bytes()
    if how == "missing":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "cut json":
        (folder / "state.json").write_bytes((folder / "state.json").read_bytes()[:50])
    elif how == "foreign json":
        (folder / "state.json").write_text("[1, 2]")
    elif how == "no settings":
        del content["settings"]
        (folder / "state.json").write_text(json.dumps(content))
    elif how == "settings no table":
        (folder / "state.json").write_text(json.dumps(content | {"settings": [1]}))
    elif how == "values no table":
        (folder / "state.json").write_text(json.dumps(content | {"values": {"anchor": [1], "other": {}}}))
    elif how == "newer":
        (folder / "state.json").write_text(json.dumps(content | {"version": 99}))
    elif how == "flipped":
        (folder / "arrays.safetensors").write_bytes(arrays[:-1] + bytes([arrays[-1] ^ 1]))
    elif how == "no arrays":
        (folder / "arrays.safetensors").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "a checkpoint without verl-gsd's memory"),
        ("cut json", "damaged"),
        ("foreign json", "not written by verl-gsd"),
        ("no settings", "not written by verl-gsd"),
        ("settings no table", "not written by verl-gsd"),
        ("values no table", "the memory anchor is damaged"),
        ("newer", "version 99, this package reads up to 1. Update it"),
        ("flipped", "damaged"),
        ("no arrays", "damaged"),
    ],
)
def test_what_cannot_be_restored_is_refused_with_a_remedy(checkpoint, how, message):
    spoil(checkpoint, how)
    with pytest.raises(ConfigError, match=rf"{message}.*algorithm\.gsd\.state=fresh"):
        restored(checkpoint)


def test_another_runs_memory_is_refused_by_the_key_that_differs(checkpoint):
    message = r"data\.train_files: .* made with \['/data/train.parquet'\], and this is \['/data/other'\]"
    with pytest.raises(ConfigError, match=message):
        restored(checkpoint, settings={"data.train_files": ["/data/other"]})
    with pytest.raises(ConfigError, match="holds the memory of anchor, other, this run has anchor"):
        restored(checkpoint, names=("anchor",))


def test_memory_goes_where_verl_removed_the_weights(tmp_path):
    for step, kept in ((2, False), (4, True)):
        (tmp_path / f"global_step_{step}" / "gsd").mkdir(parents=True)
        (tmp_path / f"global_step_{step}" / "gsd" / "state.json").write_text("{}")
        if kept:
            (tmp_path / f"global_step_{step}" / "actor").mkdir()
    forget_rotated(tmp_path)
    assert sorted(path.parent.name for path in tmp_path.glob("*/gsd")) == ["global_step_4"]
