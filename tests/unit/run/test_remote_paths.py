"""Remote paths that verl can read are accepted, others are rejected before Ray starts, and none becomes a folder."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.cli.train import held_out_prompts
from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.memory import shape_of
from verl_gsd.run.dataset import count_rows, files_with, fingerprints

FILE, MODEL = "hdfs://namenode/train.parquet", "hdfs://namenode/models/qwen"
REMOTE = (f"data.train_files={FILE}", f"data.val_files=[{FILE}]", f"actor_rollout_ref.model.path={MODEL}")


@pytest.fixture
def hdfs_stub(tmp_path, monkeypatch):
    """A command hdfs on PATH, which is never called."""
    command = tmp_path / "bin" / "hdfs"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")


@pytest.fixture
def check(compose_fast, tiny_task, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def check(*words, leave_out=()):
        line = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        validate.validate(*compose_fast(*line), leave_out=leave_out)

    return check


def test_what_verl_copies_from_hdfs_is_accepted(check, hdfs_stub):
    check(*REMOTE)


@pytest.mark.parametrize("path", [FILE, MODEL])
def test_missing_hdfs_command_is_reported_with_the_fix(check, path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    key = "data.train_files" if path == FILE else "actor_rollout_ref.model.path"
    with pytest.raises(ConfigError, match=rf"{key}={path}: .*hdfs.*Hadoop"):
        check(f"{key}={path}")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed, so gs:// is read")
def test_a_scheme_whose_package_is_missing_names_the_package(check):
    file = "data.train_files=gs://bucket/train.parquet"
    with pytest.raises(ConfigError, match=rf"{file}: .*gcsfs"):
        check(file)
    check(file, leave_out=validate.OF_THIS_MACHINE)  # the cluster may have it


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("actor_rollout_ref.model.path=s3://bucket/model", "folder"),
        ("actor_rollout_ref.model.path=hdfs://namenode/model/", "slash"),
        ("data.train_files=nosuch://bucket/train.parquet", "nosuch://"),
        ("data.val_files=https://host/test.csv", r"\.parquet"),
        ("task.directory=hdfs://namenode/task", "local"),
    ],
)
def test_paths_that_verl_cannot_read_are_rejected_locally_and_for_jobs(check, hdfs_stub, word, remedy):
    with pytest.raises(ConfigError, match=rf"{word}: .*{remedy}"):
        check(word, leave_out=validate.OF_THIS_MACHINE)


def test_a_run_directory_is_local(hdfs_stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    line = ["train", "algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE]
    done = CliRunner().invoke(app, [*line, "trainer.default_local_dir=hdfs://namenode/run"])
    assert done.exit_code == 2 and "trainer.default_local_dir=hdfs://namenode/run: " in " ".join(done.output.split())
    assert sorted(tmp_path.iterdir()) == before


def test_properties_of_remote_files_and_models_are_unknown(compose_fast):
    config, _ = compose_fast(
        "algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE, "data.filter_overlong_prompts=false"
    )
    assert held_out_prompts(config) == Counter()
    assert shape_of(config) is None and count_rows([FILE]) is None
    assert fingerprints([FILE]) == [FILE] and files_with("__rollout_n__", [FILE]) == []


def test_we_connect_to_no_storage(tmp_path):
    """pyarrow takes hdfs:/namenode/x for an address, too, and would wait for a server."""
    pq.write_table(pa.table({"__rollout_n__": [8, 8]}), tmp_path / "train.parquet")
    file = f"file://{tmp_path}/train.parquet"  # the one address that it can open here
    assert pq.read_metadata(Path(file)).num_rows == 2
    assert count_rows(file) is None and files_with("__rollout_n__", file) == []


def test_held_out_prompts_of_a_file_that_repeats_them_count_once(compose_fast, tmp_path):
    chats = [[{"role": "user", "content": text}] for text in ("a", "b", "c")] * 4
    rows = {"data_source": ["x"] * 12, "prompt": chats, "reward_model": [{"ground_truth": "1"}] * 12}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    pq.write_table(pa.table(rows | {"images": [[f"{n}.png"] for n in range(12)]}), tmp_path / "images.parquet")
    for name, count in (("test", 3), ("images", 12)):
        config, _ = compose_fast(
            "algo=gsd",
            "task=arithmetic",
            "hardware=cpu",
            f"data.val_files={tmp_path / name}.parquet",
            "data.filter_overlong_prompts=false",
        )
        assert held_out_prompts(config) == Counter(x=count)
