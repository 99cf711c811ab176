"""Our state in verl's checkpoints is kept and removed with the weights, and a killed save keeps the previous one."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memories import SETTINGS, EveryKind, restored
from omegaconf import OmegaConf
from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager
from verl_parts import bare

from verl_gsd.checkpoints import whole_checkpoints
from verl_gsd.rundir import RunDirectory
from verl_gsd.trainer.monitor import RunMonitor
from verl_gsd.trainer.progress import Progress
from verl_gsd.trainer.trainer import GSDTrainerSync


class WorkerOnADisk:
    """Stub of a group of workers with verl's own rotation. ``disk`` is the run's folder as the workers see it."""

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
    """(workers' disk, more keys of ``trainer``) -> a trainer of the run tmp_path/run that can only save.

    Its ``_save_checkpoint`` is ours and calls verl's, with verl's own list of checkpoints.
    """
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    run = tmp_path / "run"

    def build(disk, **keys):
        trainer = object.__new__(GSDTrainerSync)
        trainer._run, trainer._saved_steps, trainer._settings = RunDirectory(run), [], SETTINGS
        trainer.monitor = bare(RunMonitor, _progress=Progress())
        trainer.memories, trainer._current_step = {"anchor": EveryKind()}, None
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
    """Stub of a group of workers that kills the whole process when half of the weights are written."""

    def save_checkpoint(self, local_path, remote_path, global_step, max_ckpt_to_keep):
        Path(local_path).mkdir(parents=True)
        (Path(local_path) / "model_world_size_1_rank_0.pt").write_bytes(b"PK\x03\x04 half of it")
        os.kill(os.getpid(), signal.SIGKILL)


def test_if_a_process_is_killed_while_it_saves_the_previous_checkpoint_stays_the_newest(attempt, tmp_path):
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
def test_state_is_kept_for_the_checkpoints_that_verl_keeps_wherever_the_weights_are(attempt, tmp_path, keep, disk):
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


def test_verls_older_key_for_a_single_checkpoint_is_obeyed(attempt, tmp_path):
    save(attempt(tmp_path / "elsewhere", remove_previous_ckpt_in_save=True), 10, 20, 30)
    assert steps_with("gsd", tmp_path / "run") == steps_with("actor", tmp_path / "elsewhere") == [30]


@pytest.mark.parametrize("keep", [None, 0, -1, "1"])
def test_verl_removes_nothing_unless_the_number_is_a_positive_integer(attempt, tmp_path, keep):
    save(attempt(tmp_path / "elsewhere", max_actor_ckpt_to_keep=keep), 10, 20)
    assert steps_with("gsd", tmp_path / "run") == steps_with("actor", tmp_path / "elsewhere") == [10, 20]
