"""verl's FSDP manager and our trainer load a checkpoint without running what is in it."""

import contextlib
import os
import pickle
import random
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from verl_gsd.python_commands import code_command
from verl_gsd.run.messages import MessageWriter, read_messages
from verl_gsd.trainer import checkpoint_loading
from verl_gsd.trainer.checkpoint_loading import UnsafeCheckpointError, weights_only


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manager(monkeypatch):
    """verl's manager of a small model that is not distributed."""
    from verl.utils.checkpoint import fsdp_checkpoint_manager as verls

    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    manager = verls.FSDPCheckpointManager.__new__(verls.FSDPCheckpointManager)
    contents = ["model", "optimizer", "extra"]
    manager.__dict__.update(
        model=model,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        rank=0,
        world_size=1,
        checkpoint_load_contents=contents,
    )
    # The two of verl's functions that need processes or an accelerator.
    monkeypatch.setattr(verls, "get_fsdp_state_ctx", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    return manager


def write(manager, folder, **more):
    """A checkpoint as verl writes it."""
    folder.mkdir(exist_ok=True)
    extra = {"lr_scheduler": manager.lr_scheduler.state_dict(), "rng": manager.get_rng_state(), **more}
    of_kind = {"model": manager.model.state_dict(), "optim": manager.optimizer.state_dict(), "extra_state": extra}
    for kind, content in of_kind.items():
        torch.save(content, folder / f"{kind}_world_size_1_rank_0.pt")


def test_weights_optimizer_scheduler_and_random_states_are_loaded(manager, tmp_path):
    write(manager, tmp_path)
    weights = manager.model.weight.detach().clone()
    numbers = (random.random(), np.random.rand(), torch.rand(1).item())
    with torch.no_grad():
        manager.model.weight.zero_()
    manager.optimizer.state.clear()
    manager.load_checkpoint(str(tmp_path))
    assert torch.equal(manager.model.weight, weights)
    assert len(manager.optimizer.state) == 2
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == numbers


class HarmfulByShell(Harmful):
    """torch blocks the module of this function, and says it in other words."""

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("harmful", [Harmful, HarmfulByShell])
@pytest.mark.parametrize("kind", ["model", "optim", "extra_state"])
def test_nothing_in_a_shard_runs(manager, tmp_path, kind, harmful):
    write(manager, tmp_path)
    owned = tmp_path / "owned"
    torch.save({"w": harmful(owned)}, tmp_path / f"{kind}_world_size_1_rank_0.pt")
    with pytest.raises(
        UnsafeCheckpointError,
        match=rf"{tmp_path}: .*\((io\.open|posix\.system)\), which.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
    ):
        manager.load_checkpoint(str(tmp_path))
    assert not owned.exists()


class Made:
    """A file with this object calls ``function``, and gives ``state`` to the result if there is one."""

    def __init__(self, function, arguments, *state):
        self.made = (function, arguments, *state)

    def __reduce__(self):
        return self.made


CREATE = np.zeros(1, np.uint32).__reduce__()[0]
POINTERS = b"\x41" * 16


def saved_type(name="u4", subtype=None, flags=0):
    return Made(np.dtype, (name, False, True), (3, "<", subtype, None, None, -1, -1, flags))


def array(*state, arguments=(np.ndarray, (0,), b"b")):
    return Made(CREATE, arguments, state)


#: An array of 2 objects, whose addresses are in the file. The flags say that it has numbers.
OBJECTS = Made(np.ndarray, ((), saved_type(subtype=(Made(np.dtype, ("O8", False, True)), (2,))), POINTERS))


@pytest.mark.parametrize(
    "value",
    [
        saved_type(subtype=("u4", (2,))),
        saved_type(flags=63),
        saved_type("i8"),
        Made(np.dtype, ("O8", False, True)),
        Made(np.dtype, ({"names": ["a"], "formats": ["u4"]},)),
        Made(np.ndarray, ((2,), saved_type(), POINTERS)),
        Made(np.ndarray, ((2,),)),
        array(1, (4,), saved_type("O8"), False, POINTERS),
        array(1, (2, 2), saved_type(), False, POINTERS),
        array(1, (5,), saved_type(), False, POINTERS),
        array(1, (-4,), saved_type(), False, POINTERS),
        array(1, (4,), saved_type(), True, POINTERS),
        array(1, (4,), Made(np.dtype, ("u4", False, True)), False, POINTERS),
        array(1, (4,), saved_type(), False, [1, 2, 3, 4]),
        array(1, (4,), saved_type(), False, POINTERS, arguments=(np.dtype, (0,), b"b")),
        array(1, (4,), saved_type(), False, POINTERS, arguments=()),
        Made(CREATE, (np.ndarray, (0,), b"b"), {"shape": (4,)}),
    ],
)
def test_a_file_makes_numpy_create_nothing_but_rows_of_uint32(tmp_path, value):
    torch.save({"w": value}, tmp_path / "file.pt")
    message = r"checkpoint: .*\((numpy\.ndarray|a numpy (array|type)) "
    with pytest.raises(UnsafeCheckpointError, match=message), weights_only("checkpoint"):
        torch.load(tmp_path / "file.pt", weights_only=False)


def test_numbers_of_a_file_are_not_taken_for_addresses(tmp_path):
    """In a process of its own, which numpy's own functions end with a segmentation fault."""
    torch.save({"w": Made(np.ndarray, (OBJECTS, saved_type()))}, tmp_path / "file.pt")
    code = (
        "import torch\nfrom verl_gsd.trainer.checkpoint_loading import weights_only\n"
        f"with weights_only('checkpoint'): torch.load({str(tmp_path / 'file.pt')!r}, weights_only=False)"
    )
    done = subprocess.run(code_command(code), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "UnsafeCheckpointError: checkpoint: " in done.stderr, (done.returncode, done.stderr)


def test_memory_of_an_array_is_not_replaced(tmp_path):
    """Something else in the file may refer to it."""
    state = (1, (4,), saved_type(), False, POINTERS)
    again = Made(CREATE, (np.ndarray, (0,), b"b"), state)
    torch.save({"w": again}, tmp_path / "file.pt")
    with weights_only("checkpoint"):
        loaded = torch.load(tmp_path / "file.pt", weights_only=False)["w"]
    assert isinstance(loaded, np.ndarray) and loaded.tolist() == [0x41414141] * 4
    kind = checkpoint_loading._SavedType("u4", False, True)
    kind.__setstate__((3, "<", None, None, None, -1, -1, 0))
    with pytest.raises(ValueError, match="unknown state"):
        loaded.__setstate__((1, (4,), kind, False, POINTERS))


@pytest.mark.parametrize("module", ["core", "_core"])
def test_random_states_of_numpy_1_and_2_are_loaded(tmp_path, module):
    """They write the name of one function differently. The old format of torch keeps it in plain text."""
    torch.save(np.random.get_state(), tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    content, name = (tmp_path / "file.pt").read_bytes(), f"numpy.{module}.multiarray".encode()
    changed = re.sub(rb"numpy\._?core\.multiarray", name, content)
    assert name in changed
    (tmp_path / "file.pt").write_bytes(changed)
    with weights_only("checkpoint"):
        state = torch.load(tmp_path / "file.pt", weights_only=False)
    expected = np.random.rand()
    np.random.set_state(state)
    assert np.random.rand() == expected


@pytest.mark.parametrize("value", ["1", "y", "YES", "true"])
def test_the_user_can_trust_a_checkpoint_with_other_objects(manager, tmp_path, monkeypatch, value):
    write(manager, tmp_path, own=OmegaConf.create({"a": 1}))
    with pytest.raises(UnsafeCheckpointError):
        manager.load_checkpoint(str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    manager.load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("value", ["", "0", "no", "false", "off"])
def test_a_value_that_torch_does_not_take_for_true_trusts_nothing(manager, tmp_path, monkeypatch, value):
    write(manager, tmp_path, own=OmegaConf.create({"a": 1}))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    with pytest.raises(UnsafeCheckpointError):
        manager.load_checkpoint(str(tmp_path))


def test_the_place_in_the_data_is_loaded_without_running_anything(tmp_path):
    """verl's trainer loads data.pt; its method runs with a stub for the workers."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    from verl_gsd.trainer.trainer import GSDTrainerSync

    owned, checkpoint = tmp_path / "owned", tmp_path / "global_step_3"
    checkpoint.mkdir()
    trainer = GSDTrainerSync.__new__(GSDTrainerSync)
    settings = {"default_local_dir": str(tmp_path), "resume_mode": "resume_path", "resume_from_path": str(checkpoint)}
    settings |= {"default_hdfs_dir": None, "del_local_ckpt_after_load": False}
    trainer.config = OmegaConf.create({"trainer": settings, "algorithm": {"gsd": {"state": "fresh"}}})
    trainer.actor_rollout_wg = SimpleNamespace(load_checkpoint=lambda **_: None)
    trainer.use_critic, trainer.trainer_mode = False, "sync"
    trainer.train_dataloader = StatefulDataLoader(list(range(9)), batch_size=2)
    batches = iter(trainer.train_dataloader)
    next(batches)
    torch.save(trainer.train_dataloader.state_dict(), checkpoint / "data.pt")
    trainer._load_checkpoint()
    assert next(iter(trainer.train_dataloader)).tolist() == [2, 3]
    torch.save({"w": Harmful(owned)}, checkpoint / "data.pt")
    with pytest.raises(UnsafeCheckpointError, match="global_step_3"):
        trainer._load_checkpoint()
    assert not owned.exists()


def test_a_resume_says_of_which_data_sources_the_checkpoint_has_no_accuracies(tmp_path):
    """Once, and not if the memory starts empty."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    from verl_gsd.prompts import PromptStore
    from verl_gsd.state import save_state
    from verl_gsd.trainer.reward_monitor import RewardMonitor
    from verl_gsd.trainer.trainer import GSDTrainerSync

    checkpoint, saved = tmp_path / "global_step_3", PromptStore()
    checkpoint.mkdir()
    saved.leave_out("math")
    save_state(checkpoint, {"prompts": saved}, {})
    settings = {"default_local_dir": str(tmp_path), "resume_mode": "resume_path", "resume_from_path": str(checkpoint)}
    settings |= {"default_hdfs_dir": None, "del_local_ckpt_after_load": False}
    sizes = {"function": "f", "limit": 1.0, "batch_groups": 1, "batch_responses": 1, "workers": 1, "overlaps": False}
    written = {}
    for state in ("fresh", None):
        trainer = GSDTrainerSync.__new__(GSDTrainerSync)
        trainer.config = OmegaConf.create({"trainer": settings, "algorithm": {"gsd": {"state": state}}})
        trainer.actor_rollout_wg = SimpleNamespace(load_checkpoint=lambda **_: None)
        trainer.use_critic, trainer.trainer_mode = False, "sync"
        trainer.train_dataloader = StatefulDataLoader(list(range(9)), batch_size=2)
        trainer.seam, trainer._settings = SimpleNamespace(prompts=PromptStore()), {}
        trainer.memories = {"prompts": trainer.seam.prompts}
        messages = tmp_path / f"{state}.jsonl"
        trainer.monitor = SimpleNamespace(rewards=RewardMonitor(MessageWriter(messages), **sizes))
        trainer._load_checkpoint()
        written[state] = [message.text for message in read_messages(messages)]
    assert written["fresh"] == []
    (text,) = written[None]
    assert "data_source=math" in text and "algorithm.gsd.state=fresh" in text


def test_verl_still_loads_without_weights_only(manager, tmp_path):
    """If this fails, verl may protect its users itself, and the patch can be removed."""
    owned = tmp_path / "owned"
    write(manager, tmp_path)
    torch.save({"w": Harmful(owned)}, tmp_path / "model_world_size_1_rank_0.pt")
    with pytest.raises(Exception, match=r".*"):
        type(manager).load_checkpoint.__wrapped__(manager, str(tmp_path))
    assert owned.exists()


def test_the_environment_is_as_before(tmp_path):
    torch.save({"w": Harmful(tmp_path / "owned")}, tmp_path / "file.pt")
    with pytest.raises(UnsafeCheckpointError), weights_only("checkpoint"):
        torch.load(tmp_path / "file.pt", weights_only=False)
    torch.load(tmp_path / "file.pt", weights_only=False)["w"].close()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "file.pt", weights_only=True)
    assert checkpoint_loading._FORCE not in os.environ
