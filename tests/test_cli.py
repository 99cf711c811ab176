"""The commands as a user types them, short of a training run."""

import re

import yaml
from typer.testing import CliRunner

from verl_gsd.cli import train
from verl_gsd.cli.main import app
from verl_gsd.trainer.config import parse_line

LINE = ["algo=dapo", "task=arithmetic", "hardware=cpu"]


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def flat(text):
    return re.sub(r"\s+", " ", text)


def test_dry_run_prints_the_resolved_config_and_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path / "cache"))
    done = invoke("train", *LINE, "trainer.total_training_steps=7", "--dry-run")
    assert done.exit_code == 0, done.output
    config = yaml.safe_load(done.stdout)
    assert config["trainer"]["total_training_steps"] == 7
    assert config["algorithm"]["filter_groups"]["enable"] is True
    assert "${" not in done.stdout
    assert "divides by sigma (GRPO)" in flat(done.stderr) and "evicted and replaced" in flat(done.stderr)
    assert list(tmp_path.iterdir()) == [], "a dry run leaves nothing behind"


def test_mistakes_end_with_code_2_and_say_what_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["algo=nope", *LINE[1:]], "algo=nope: no such choice"),
        (["task=arithmetic"], "algo is missing. Add algo="),
        ([*LINE, "algorithm.lam=0.5"], "algorithm.lam=0.5 does nothing"),
        ([f"resume={tmp_path}/none"], "no run there"),
    ):
        done = invoke("train", *words)
        assert done.exit_code == 2 and message in flat(done.stderr), (words, done.output)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    (tmp_path / "overrides.yaml").write_text("[algo=grpo]")
    done = invoke("train", f"resume={tmp_path}")
    assert done.exit_code == 2 and "saved no checkpoint" in flat(done.stderr)


def test_where_an_earlier_start_began_and_its_fresh_memory_are_not_asked_for_again(tmp_path):
    once = ["++algorithm.gsd.state=fresh", "trainer.resume_mode=resume_path", "trainer.resume_from_path=/global_step_2"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump([*LINE, *once, "trainer.total_training_steps=7"]))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    line = train._resumed(parse_line([f"resume={tmp_path}", "trainer.total_training_steps=9"]))
    assert "trainer.total_training_steps" in line.keys
    assert not {"algorithm.gsd.state", "trainer.resume_mode", "trainer.resume_from_path"} & set(line.keys)
    line = train._resumed(parse_line([f"resume={tmp_path}", "algorithm.gsd.state=fresh"]))
    assert "algorithm.gsd.state" in line.keys


def test_prepare_names_the_tasks_it_knows(tmp_path):
    done = invoke("prepare", "gsm9k")
    assert done.exit_code == 2 and "Write arithmetic" in flat(done.stderr)
