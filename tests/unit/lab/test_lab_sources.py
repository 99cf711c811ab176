"""A finished seed counts again only if the code, the data and the weights that it was made from are the same."""

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.sources import check_same_sources, sources_of, write_sources
from verl_gsd.run.compose import write_yaml
from verl_gsd.rundir import RunDirectory


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config whose data, weights, reward function and own stage are small files."""
    (tmp_path / "model").mkdir()
    model = ("model/model.safetensors", "model/generation_config.json")
    for name in ("train.parquet", "test.parquet", *model, "reward.py", "own_stage_of_a_test.py"):
        (tmp_path / name).write_text("# 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "own_stage_of_a_test")
    return OmegaConf.create(
        {
            "algorithm": {"gsd": {"alpha": 1.0}},
            "data": {"train_files": f"{tmp_path}/train.parquet", "val_files": [f"{tmp_path}/test.parquet"]},
            "actor_rollout_ref": {"model": {"path": f"{tmp_path}/model"}},
            "reward": {"custom_reward_function": {"path": f"{tmp_path}/reward.py"}},
            "trainer": {"total_training_steps": 1, "default_local_dir": f"{tmp_path}/run"},
        }
    )


def finished(config):
    """A run of one step that was made from the sources of ``config``."""
    run = RunDirectory(Path(config.trainer.default_local_dir))
    run.metrics(1).parent.mkdir(parents=True)
    write_yaml(config, run.config)
    run.metrics(1).write_text(json.dumps({"step": 1, "data": {}}) + "\n")
    write_sources(run, config)
    return run


def test_a_run_of_the_same_sources_is_kept(config):
    check_same_sources(finished(config), sources_of(config))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("train.parquet", "data.train_files"),
        ("test.parquet", "data.val_files"),
        ("model/model.safetensors", "actor_rollout_ref.model.path"),
        ("model/generation_config.json", "actor_rollout_ref.model.path"),
        ("reward.py", "reward.py"),
        ("own_stage_of_a_test.py", "own_stage_of_a_test"),
    ],
)
def test_a_change_of_any_source_is_named(config, tmp_path, file, name):
    run = finished(config)
    (tmp_path / file).write_text("# 2")
    sys.modules.pop("own_stage_of_a_test", None)
    with pytest.raises(ConfigError, match=f"{name} changed since the run in this folder"):
        check_same_sources(run, sources_of(config))


def test_a_run_that_has_not_finished_starts_again_anyway(config, tmp_path):
    run = finished(config)
    run.metrics(1).write_text("")
    (tmp_path / "reward.py").write_text("# 2")
    check_same_sources(run, sources_of(config))
