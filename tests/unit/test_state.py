"""State is restored exactly, written atomically, never executable, and rejected if another run saved it."""

import json

import numpy as np
import pytest
from memories import SETTINGS, EveryKind, restored

from verl_gsd import state
from verl_gsd.errors import ConfigError
from verl_gsd.extension import Extension, ExtensionError
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import remove_rotated_states, save_state


@pytest.fixture
def checkpoint(tmp_path):
    save_state(tmp_path, {"anchor": EveryKind(), "other": EveryKind()}, SETTINGS)
    return tmp_path


def test_the_restored_state_equals_the_saved_state(checkpoint):
    for memory in restored(checkpoint).values():
        expected = EveryKind().state
        assert memory.state.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                assert memory.state[key].dtype == value.dtype and np.array_equal(memory.state[key], value)
            else:
                assert memory.state[key] == value


def test_saving_again_replaces_the_state_and_leaves_no_other_file(checkpoint):
    save_state(checkpoint, {"anchor": EveryKind()}, SETTINGS)
    assert sorted(path.name for path in checkpoint.rglob("*")) == ["arrays.safetensors", "gsd", "state.json"]
    restored(checkpoint, names=("anchor",))


def test_a_full_disk_leaves_the_earlier_state_complete(checkpoint, monkeypatch):
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
        ("missing", r"\(gsd/\)"),
        ("cut json", "damaged"),
        ("foreign json", "not written by verl-gsd"),
        ("no settings", "not written by verl-gsd"),
        ("settings no table", "not written by verl-gsd"),
        ("values no table", "anchor .*damaged"),
        ("newer", "version 99.* 1"),
        ("flipped", "damaged"),
        ("no arrays", "damaged"),
    ],
)
def test_a_state_that_cannot_be_restored_is_rejected_with_a_remedy(checkpoint, how, message):
    spoil(checkpoint, how)
    with pytest.raises(ConfigError, match=rf"{message}.*algorithm\.gsd\.state=fresh"):
        restored(checkpoint)


def test_the_state_of_another_run_is_rejected_with_the_key_that_differs(checkpoint):
    message = r"data\.train_files: .*\['/data/train.parquet'\].*\['/data/other'\]"
    with pytest.raises(ConfigError, match=message):
        restored(checkpoint, settings={"data.train_files": ["/data/other"]})
    with pytest.raises(ConfigError, match=r"anchor, other,.* anchor"):
        restored(checkpoint, names=("anchor",))


def test_texts_of_a_hostile_state_are_shown_in_one_line_without_control_characters(checkpoint):
    file = checkpoint / "gsd" / "state.json"
    content = json.loads(file.read_text())
    name = "a=1,b[\n\x1b[31m"
    file.write_text(json.dumps(content | {"settings": {"section": {name: name}}, "values": {name: {}}}))
    for wanted in ({"settings": {"section": {"other": 1}}}, {"settings": {}, "names": ("anchor",)}):
        with pytest.raises(ConfigError) as error:
            restored(checkpoint, **wanted)
        assert str(error.value).isprintable() and "gsd" in str(error.value)
        assert r"a=1,b[\n\x1b[31m" in str(error.value)


def steps_with(name, disk):
    return sorted(int(path.parent.name.rpartition("_")[2]) for path in disk.glob(f"global_step_*/{name}"))


def test_state_is_kept_next_to_visible_weights_and_in_the_checkpoint_to_resume_from(tmp_path):
    """An asynchronous save removes weights and writes the marker after it has returned."""
    run = RunDirectory(tmp_path)
    for step in (10, 20, 30, 40):
        save_state(run.checkpoint(step), {"anchor": EveryKind()}, SETTINGS)
    (run.checkpoint(10) / "actor").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    remove_rotated_states(run, [10, 20, 30, 40], keep=1)
    assert steps_with("gsd", tmp_path) == [10, 20, 40]
    (run.checkpoint(10) / "actor").rmdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    remove_rotated_states(run, [10, 20, 30, 40], keep=1)
    assert steps_with("gsd", tmp_path) == [40]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"lengths": {3: 1.0}}, r"the state of mine\['lengths'\] has the key 3"),
        ({"lengths": {("maths", 3): 1.0}}, r"\['lengths'\] has the key \('maths', 3\)"),
        ({"seen": [{"prompts": {1, 2}}]}, r"\['seen'\]\[0\]\['prompts'\] is of type set"),
        ({"inner": {"rates": np.zeros(2)}}, r"\['inner'\]\['rates'\] is of type ndarray"),
    ],
)
def test_a_state_that_json_would_not_give_back_is_rejected_when_it_is_saved(tmp_path, state, problem):
    class Mine:
        def state_dict(self):
            return state

    with pytest.raises(TypeError, match=problem):
        save_state(tmp_path / "global_step_1", {"mine": Mine()}, {})
    assert not (tmp_path / "global_step_1" / "gsd").exists()


@pytest.mark.parametrize("hook", ["state_dict", "load_state_dict"])
def test_an_extension_that_fails_to_save_or_to_load_is_named(tmp_path, hook):
    class Mine(Extension):
        def state_dict(self):
            if hook == "state_dict":
                raise KeyError("boom")
            return {}

        def load_state_dict(self, state):
            raise RuntimeError("boom")

    with pytest.raises(ExtensionError, match=rf"algorithm\.gsd\.mine: its hook {hook} .*boom"):
        save_state(tmp_path / "global_step_1", {"mine": Mine({})}, {})
        state.restore_state(tmp_path / "global_step_1", {"mine": Mine({})}, {})
