"""Remote paths as verl, transformers and ``datasets`` read them, and commands that accept those."""

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from typer.testing import CliRunner
from verl.utils import hdfs_io
from verl.utils.fs import copy_to_local

from verl_gsd.cli.main import app
from verl_gsd.run.checks import validate

FILE, MODEL = "hdfs://namenode/train.parquet", "hdfs://namenode/models/qwen"
REMOTE = (f"data.train_files={FILE}", f"data.val_files=[{FILE}]", f"actor_rollout_ref.model.path={MODEL}")
LINE = ("algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE)


@pytest.fixture
def hdfs_stub(tmp_path, monkeypatch):
    """A command hdfs on PATH that copies from a local folder, which is returned."""
    folder, command = tmp_path / "namenode", tmp_path / "bin" / "hdfs"
    folder.mkdir()
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$1 $2" = "dfs -get" ] && cp -r "{folder}/${{3#hdfs://namenode/}}" "$4"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(hdfs_io, "_HDFS_BIN_PATH", str(command))  # looked up when verl was imported
    return folder


def test_verl_copies_from_hdfs(hdfs_stub, tmp_path):
    pq.write_table(pa.table({"prompt": ["a"]}), hdfs_stub / "train.parquet")
    (hdfs_stub / "models/qwen").mkdir(parents=True)
    (hdfs_stub / "models/qwen/config.json").write_text("{}")
    copied = copy_to_local(FILE, cache_dir=str(tmp_path / "cache"))
    assert pq.read_table(copied).num_rows == 1
    assert (Path(copy_to_local(MODEL, cache_dir=str(tmp_path / "cache"))) / "config.json").is_file()


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "hf", "file"])
def test_transformers_reads_models_of_no_other_scheme(scheme):
    """Contract: where this passes no more, ``unreadable_model`` rejects too much."""
    with pytest.raises(OSError, match="Repo id must be"):
        transformers.AutoConfig.from_pretrained(copy_to_local(f"{scheme}://storage/model"))


def test_datasets_reads_what_fsspec_reads(tmp_path, monkeypatch):
    """Contract: the files that verl's data set opens beside local ones and those of hdfs."""
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "train.parquet")
    file = copy_to_local(f"file://{tmp_path}/train.parquet")
    read = datasets.load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))
    assert len(read["train"]) == 2
    with pytest.raises(ValueError, match="Protocol not known"):
        datasets.load_dataset("parquet", data_files="nosuch://train.parquet", cache_dir=str(tmp_path / "cache"))


def test_a_cluster_may_have_the_command_hdfs_that_this_machine_lacks(compose_fast, tiny_task, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    words = ("algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}")
    for path in REMOTE:
        validate.validate(*compose_fast(*words, path, "ray_kwargs.ray_init.address=null"))


def test_commands_accept_files_of_hdfs_and_make_no_folder_of_them(hdfs_stub, tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for command in ("submit", "train"):
        done = CliRunner().invoke(app, [command, *LINE, "--dry-run"])
        assert done.exit_code == 0, done.output
    assert not list(place.iterdir())
