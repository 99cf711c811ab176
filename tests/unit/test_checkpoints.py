"""Complete and damaged checkpoints are distinguished by their files, without unpickling."""

import json
import random
import re
import shutil

import pytest
import torch
from checkpoint_files import write_checkpoint

from verl_gsd.checkpoints import damage, step_of, whole_checkpoints
from verl_gsd.rundir import RunDirectory

MODEL = "actor/model_world_size_2_rank_1.pt"


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path, 8, ranks=2)


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def overwrite_the_first_kilobyte(path):
    content = path.read_bytes()
    path.write_bytes(bytes(100) + content[100:])


def test_a_complete_checkpoint_has_no_damage(checkpoint):
    assert damage(checkpoint) is None
    assert step_of(checkpoint) == 8 and step_of(checkpoint.parent) is None


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (MODEL, lambda path: path.unlink(), "missing"),
        (MODEL, cut, "truncated.*torch.save"),
        (MODEL, lambda path: cut(path, 0.99), "truncated"),
        (MODEL, overwrite_the_first_kilobyte, "overwritten"),
        (MODEL, lambda path: path.write_bytes(b""), "empty"),
        ("actor/optim_world_size_2_rank_0.pt", lambda path: path.unlink(), "missing"),
        ("actor/extra_state_world_size_2_rank_1.pt", cut, "truncated"),
        ("actor/fsdp_config.json", lambda path: path.unlink(), "number of ranks"),
        ("actor/fsdp_config.json", cut, "number of ranks"),
        ("actor/huggingface/config.json", cut, "truncated"),
        ("actor/huggingface/model.safetensors", cut, "header"),
        ("actor/huggingface/model.safetensors", lambda path: cut(path, 0.1), "truncated"),
        ("data.pt", lambda path: path.unlink(), "missing"),
        ("data.pt", cut, "truncated"),
        ("actor", shutil.rmtree, "actor/"),
    ],
)
def test_damage_is_reported_with_the_file(checkpoint, file, spoil, message):
    spoil(checkpoint / file)
    found = damage(checkpoint)
    assert found is not None and re.search(message, found)
    assert found.startswith(str(checkpoint if file == "actor" else checkpoint / file))


def test_a_checkpoint_without_an_optimizer_is_not_damaged(checkpoint):
    for path in checkpoint.glob("actor/optim_*"):
        path.unlink()
    assert damage(checkpoint) is None


def test_a_node_with_its_own_disk_needs_only_the_files_of_its_ranks(checkpoint):
    for path in checkpoint.glob("actor/*rank_1.pt"):
        path.unlink()
    assert damage(checkpoint, all_ranks=False) is None and "rank_1.pt" in damage(checkpoint)


def test_nothing_is_unpickled(checkpoint, monkeypatch):
    def refuse_stub(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse_stub)
    monkeypatch.setattr("pickle.loads", refuse_stub)
    assert damage(checkpoint) is None


def test_complete_checkpoints_are_sorted_newest_first(tmp_path):
    for step in (8, 10, 9):
        write_checkpoint(tmp_path, step)
    (tmp_path / "global_step_9" / "data.pt").unlink()
    (tmp_path / "global_step_final").mkdir()
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["global_step_10", "global_step_8"]


@pytest.mark.parametrize("content", [b"", b"1\x00\x00", b"\xff", b"ten"])
def test_a_marker_without_a_step_is_damaged_and_the_newest_complete_checkpoint_is_used(tmp_path, content):
    run = RunDirectory(tmp_path)
    assert run.latest_checkpoint() is None and not run.marker_is_damaged()
    run.marker.write_bytes(content)
    assert run.marker_is_damaged() and run.latest_checkpoint() is None
    write_checkpoint(tmp_path, 4, marker=False)
    write_checkpoint(tmp_path, 6, marker=False)
    cut(tmp_path / "global_step_6" / "data.pt")
    assert run.latest_checkpoint() == 4
    run.marker.write_text("2")
    assert run.latest_checkpoint() == 2 and not run.marker_is_damaged()


def test_overwritten_bytes_never_raise_an_exception(checkpoint):
    chance, path = random.Random(0), checkpoint / MODEL
    whole = path.read_bytes()
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[-chance.randint(1, 200)] = chance.randrange(256)
        path.write_bytes(content)
        assert damage(checkpoint) is None or str(path) in damage(checkpoint)


def test_a_later_attempt_is_newer_than_a_later_step(tmp_path):
    for step, attempt in ((8, 1), (10, 1), (9, 2)):
        made = write_checkpoint(tmp_path, step)
        (made / "gsd").mkdir(exist_ok=True)
        (made / "gsd" / "metrics.json").write_text(json.dumps({"attempt": attempt, "step": step, "data": {}}))
    assert [step_of(path) for path in whole_checkpoints(tmp_path)] == [9, 10, 8]


def test_a_node_without_the_drivers_disk_does_not_need_the_drivers_files(checkpoint):
    (checkpoint / "data.pt").unlink()
    (checkpoint / "actor" / "fsdp_config.json").unlink()
    assert damage(checkpoint, all_ranks=False) is None and damage(checkpoint) is not None
