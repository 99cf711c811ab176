"""State that survives: exact, whole or absent, never executable, refused when it is another run's."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

from verl_gsd.checkpoints import whole_checkpoints
from verl_gsd.rundir import RunDirectory
from verl_gsd.trainer import state
from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.progress import Progress
from verl_gsd.trainer.state import remove_rotated_states, restore_state, save_state
from verl_gsd.trainer.trainer import GSDTrainerSync

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


class WorkerOnADisk:
    """verl's own rotation in the place of a group of workers; ``disk`` is where they see the run's folder."""

    def __init__(self, run, disk):
        self._run, self._disk = run, disk
        self._manager = BaseCheckpointManager(model=None, optimizer=None)

    def save_checkpoint(self, local_path, remote_path, global_step, max_ckpt_to_keep):
        place = self._disk / Path(local_path).relative_to(self._run)
        self._manager.ensure_checkpoint_capacity(max_ckpt_to_keep)
        place.mkdir(parents=True)
        self._manager.register_checkpoint(str(place), max_ckpt_to_keep)


@pytest.fixture
def attempt(tmp_path):
    """(workers' disk, further keys of ``trainer``) -> a trainer of the run tmp_path/run that can save, and only that.

    Its ``_save_checkpoint`` is ours over verl's own, on verl's own list of checkpoints.
    """
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    run = tmp_path / "run"

    def build(disk, **keys):
        trainer = object.__new__(GSDTrainerSync)
        trainer._run, trainer._saved_steps, trainer._settings = RunDirectory(run), [], SETTINGS
        trainer._progress = Progress()
        trainer.memories, trainer._at_hand = {"anchor": EveryKind()}, None
        keys = {"default_local_dir": str(run), "default_hdfs_dir": None, "max_actor_ckpt_to_keep": None} | keys
        trainer.config = OmegaConf.create({"trainer": keys, "actor_rollout_ref": {"actor": {}}})
        trainer.actor_rollout_wg, trainer.use_critic, trainer.trainer_mode = WorkerOnADisk(run, disk), False, "sync"
        trainer.train_dataloader = SimpleNamespace(state_dict=dict)
        trainer.checkpoint_callback = SimpleNamespace(on_save=lambda **_: None)
        return trainer

    yield build
    torch.distributed.destroy_process_group()


def save(trainer, *steps):
    for step in steps:
        trainer.global_steps = step
        trainer._save_checkpoint()


def steps_with(name, disk):
    return sorted(int(path.parent.name.rpartition("_")[2]) for path in disk.glob(f"global_step_*/{name}"))


class KilledWhileSaving:
    """The place of a group of workers; the whole process is killed when half of the weights are written."""

    def save_checkpoint(self, local_path, remote_path, global_step, max_ckpt_to_keep):
        Path(local_path).mkdir(parents=True)
        (Path(local_path) / "model_world_size_1_rank_0.pt").write_bytes(b"PK\x03\x04 half of it")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before_as_the_newest(attempt, tmp_path):
    run = RunDirectory(tmp_path / "run")
    save(attempt(run.path), 10)
    trainer = attempt(run.path)
    trainer.actor_rollout_wg = KilledWhileSaving()
    if (child := os.fork()) == 0:
        save(trainer, 20)
        os._exit(0)  # not reached
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and (run.checkpoint(20) / "gsd").is_dir()
    assert run.latest_checkpoint() == 10 and run.marker.read_text() == "10"
    restored(run.checkpoint(10), names=("anchor",))
    assert run.checkpoint(20) not in list(whole_checkpoints(run.path)), "whatever the marker says"


@pytest.mark.parametrize("disk", ["run", "disk of another node"])
@pytest.mark.parametrize("keep", [1, 2, 3, None])
def test_state_stays_with_the_checkpoints_that_verl_keeps_wherever_the_weights_lie(attempt, tmp_path, keep, disk):
    run, disk = tmp_path / "run", tmp_path / disk
    first = attempt(disk, max_actor_ckpt_to_keep=keep)
    for step in range(10, 60, 10):
        save(first, step)
        assert steps_with("gsd", run) == steps_with("actor", disk)
        restored(run / f"global_step_{step}", names=("anchor",))
    resumed = attempt(disk, max_actor_ckpt_to_keep=keep)  # verl's list of checkpoints begins anew
    for step in range(60, 110, 10):
        save(resumed, step)
        assert steps_with("gsd", run) == steps_with("actor", disk)
    assert len(steps_with("gsd", run)) == (2 * keep if keep else 10), "each attempt leaves no more than it may"


def test_verls_older_key_for_a_single_checkpoint_counts(attempt, tmp_path):
    save(attempt(tmp_path / "elsewhere", remove_previous_ckpt_in_save=True), 10, 20, 30)
    assert steps_with("gsd", tmp_path / "run") == steps_with("actor", tmp_path / "elsewhere") == [30]


def test_state_stays_beside_weights_that_are_there_and_where_a_resume_would_begin(tmp_path):
    """An asynchronous save removes and announces later than it returns."""
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


@pytest.mark.parametrize("keep", [None, 0, -1, "1"])
def test_verl_removes_nothing_unless_the_number_is_whole_and_positive(attempt, tmp_path, keep):
    save(attempt(tmp_path / "elsewhere", max_actor_ckpt_to_keep=keep), 10, 20)
    assert steps_with("gsd", tmp_path / "run") == steps_with("actor", tmp_path / "elsewhere") == [10, 20]
