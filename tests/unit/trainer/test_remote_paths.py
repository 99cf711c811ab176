"""Remote paths that verl reads are accepted, the others are rejected before Ray starts, and none becomes a folder."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from typer.testing import CliRunner
from verl.utils import hdfs_io
from verl.utils.fs import copy_to_local

from verl_gsd.cli.main import app
from verl_gsd.cli.train import held_out_prompts
from verl_gsd.trainer import validation
from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.dataset import files_with, fingerprints, rows_of
from verl_gsd.trainer.sizing import shape_of

FILE, MODEL = "hdfs://namenode/train.parquet", "hdfs://namenode/models/qwen"
REMOTE = (f"data.train_files={FILE}", f"data.val_files=[{FILE}]", f"actor_rollout_ref.model.path={MODEL}")


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


@pytest.fixture
def check(compose_fast, tiny_task, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def check(*words, leave_out=()):
        line = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        validation.validate(*compose_fast(*line), leave_out=leave_out)

    return check


def test_what_verl_copies_from_hdfs_is_accepted(check, hdfs_stub):
    check(*REMOTE)


def test_verl_copies_from_hdfs(hdfs_stub, tmp_path):
    pq.write_table(pa.table({"prompt": ["a"]}), hdfs_stub / "train.parquet")
    (hdfs_stub / "models/qwen").mkdir(parents=True)
    (hdfs_stub / "models/qwen/config.json").write_text("{}")
    copied = copy_to_local(FILE, cache_dir=str(tmp_path / "cache"))
    assert pq.read_table(copied).num_rows == 1
    assert (Path(copy_to_local(MODEL, cache_dir=str(tmp_path / "cache"))) / "config.json").is_file()


@pytest.mark.parametrize("scheme", ["s3", "gs", "https", "hf", "file"])
def test_transformers_reads_models_of_no_other_scheme(scheme):
    """Contract: where this passes no more, ``model_never_read`` rejects too much."""
    with pytest.raises(OSError, match="Repo id must be"):
        transformers.AutoConfig.from_pretrained(copy_to_local(f"{scheme}://storage/model"))


def test_datasets_reads_what_fsspec_reads(tmp_path, monkeypatch):
    """Contract: the files that verl's data set opens beside local ones and those of hdfs."""
    import datasets

    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "train.parquet")
    file = copy_to_local(f"file://{tmp_path}/train.parquet")
    read = datasets.load_dataset("parquet", data_files=file, cache_dir=str(tmp_path / "cache"))
    assert len(read["train"]) == 2
    with pytest.raises(ValueError, match="Protocol not known"):
        datasets.load_dataset("parquet", data_files="nosuch://train.parquet", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("path", [FILE, MODEL])
def test_without_the_command_hdfs_the_remedy_is_named(check, path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    key = "data.train_files" if path == FILE else "actor_rollout_ref.model.path"
    with pytest.raises(ConfigError, match=rf"{key}={path}: .*command hdfs.*Install the Hadoop client"):
        check(f"{key}={path}")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")  # another machine reads it
    check(f"{key}={path}", "ray_kwargs.ray_init.address=null")


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed, so gs:// is read")
def test_a_scheme_whose_package_is_missing_names_the_package(check):
    file = "data.train_files=gs://bucket/train.parquet"
    with pytest.raises(ConfigError, match=rf"{file}: .*gcsfs.*download it"):
        check(file)
    check(file, leave_out=validation.OF_THIS_MACHINE)  # the cluster may have it


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("actor_rollout_ref.model.path=s3://bucket/model", "Download this one, or mount its storage"),
        ("actor_rollout_ref.model.path=hdfs://namenode/model/", "Use it without one"),
        ("data.train_files=nosuch://bucket/train.parquet", "verl reads no nosuch:// files. Download the file"),
        ("data.val_files=https://host/test.csv", "Use a path that ends in .parquet"),
        ("task.directory=hdfs://namenode/task", "local folder"),
    ],
)
def test_what_verl_reads_nowhere_is_rejected_here_and_before_a_job_is_sent(check, hdfs_stub, word, remedy):
    with pytest.raises(ConfigError, match=rf"{word}: .*{remedy}"):
        check(word, leave_out=validation.OF_THIS_MACHINE)


def test_a_job_may_name_files_of_hdfs(hdfs_stub):
    done = CliRunner().invoke(app, ["submit", "algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE, "--dry-run"])
    assert done.exit_code == 0, done.output


def test_a_run_directory_is_local_and_no_remote_path_becomes_a_folder(hdfs_stub, tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    line = ["train", "algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE]
    done = CliRunner().invoke(app, [*line, "--dry-run"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*line, "trainer.default_local_dir=hdfs://namenode/run"])
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "trainer.default_local_dir=hdfs://namenode/run: a run is written to" in said
    assert not list(place.iterdir())


def test_what_we_read_of_files_and_models_ourselves_is_unknown_where_they_are_remote(compose_fast):
    config, _ = compose_fast(
        "algo=gsd", "task=arithmetic", "hardware=cpu", *REMOTE, "data.filter_overlong_prompts=false"
    )
    assert held_out_prompts(config) == Counter()
    assert shape_of(config) is None and rows_of([FILE]) is None
    assert fingerprints([FILE]) == [FILE] and files_with("__rollout_n__", [FILE]) == []


def test_we_connect_to_no_storage(tmp_path):
    """pyarrow takes hdfs:/namenode/x for an address, too, and would wait for a server."""
    pq.write_table(pa.table({"__rollout_n__": [8, 8]}), tmp_path / "train.parquet")
    file = f"file://{tmp_path}/train.parquet"  # the one address that it can open here
    assert pq.read_metadata(Path(file)).num_rows == 2
    assert rows_of(file) is None and files_with("__rollout_n__", file) == []
