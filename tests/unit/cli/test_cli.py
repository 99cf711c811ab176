"""The commands as a user types them, short of a training run."""

import re
from importlib.metadata import version

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from verl_gsd.cli import train
from verl_gsd.cli.main import app
from verl_gsd.groups import Group
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.run import trust
from verl_gsd.run.compose import parse_line
from verl_gsd.rundir import RunDirectory

LINE = ["algo=dapo", "task=arithmetic", "hardware=cpu"]

pytestmark = pytest.mark.usefixtures("composing_is_fast")


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_the_version_is_that_of_the_package():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0 and done.stdout == f"{version('verl-gsd')}\n"


def flat(text):
    return re.sub(r"\s+", " ", text)


def test_mistakes_end_with_code_2_and_say_what_to_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["algo=nope", *LINE[1:]], "algo=nope: "),
        (["task=arithmetic"], "algo is missing.*algo="),
        ([*LINE, "algorithm.lam=0.5"], r"algorithm\.lam=0\.5 .*gae"),
        ([f"resume={tmp_path}/none"], r"resume=.*overrides\.yaml"),
    ):
        done = invoke("train", *words)
        assert done.exit_code == 2 and re.search(message, flat(done.stderr)), (words, done.output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--rehearse"]])
def test_seeds_of_train_name_the_keys_and_the_commands_that_have_the_option(more):
    done = invoke("train", *LINE, "--seeds", "3,4", *more)
    assert done.exit_code == 2 and "No such option" not in done.output
    said = flat(done.stderr)
    for text in ("--seeds 3,4: ", "data.seed=3", "data_loader_seed=3", "submit --seeds", "lab train --seeds"):
        assert text in said, said
    assert "--seeds" not in invoke("train", "--help").output


def test_a_run_without_a_checkpoint_cannot_be_resumed(tmp_path):
    (tmp_path / "overrides.yaml").write_text("[algo=grpo]")
    done = invoke("train", f"resume={tmp_path}")
    assert done.exit_code == 2 and "trainer.save_freq" in flat(done.stderr)


def test_where_an_earlier_start_began_and_its_fresh_memory_are_not_asked_for_again(tmp_path):
    once = ["++algorithm.gsd.state=fresh", "trainer.resume_mode=resume_path", "trainer.resume_from_path=/global_step_2"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump([*LINE, *once, "trainer.total_training_steps=7"]))
    trust.sign(RunDirectory(tmp_path), RunDirectory(tmp_path).overrides.read_bytes())
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    line = train._line_to_resume(parse_line([f"resume={tmp_path}", "trainer.total_training_steps=9"]))
    assert "trainer.total_training_steps" in line.keys
    assert not {"algorithm.gsd.state", "trainer.resume_mode", "trainer.resume_from_path"} & set(line.keys)
    line = train._line_to_resume(parse_line([f"resume={tmp_path}", "algorithm.gsd.state=fresh"]))
    assert "algorithm.gsd.state" in line.keys


def test_prepare_names_the_tasks_it_knows(tmp_path):
    done = invoke("prepare", "gsm9k")
    assert done.exit_code == 2 and re.search("gsm9k: .*arithmetic, .*gsm8k, math", flat(done.stderr))


def test_audit_bias_shows_a_runs_bias_and_says_what_it_is_not(tmp_path):
    groups = [Group(str(k), "math", k, *(np.array([1.0] * k + [0.0] * (8 - k)),) * 2, np.ones(8)) for k in (1, 7)]
    for step in (1, 2):
        table = step_records([LeftGroup(group, "trained") for group in groups], step=step, attempt=1, alpha=1.0)
        write_step(tmp_path, table, step=step, attempt=1)
    words = ["audit-bias", str(tmp_path), "--preset", "0.5"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    assert re.search(r"0\.1 to 0\.3 │ +2 +│ +0% +│ +0\.125", done.output)
    for words, message in (
        ([str(tmp_path / "nowhere")], "nowhere: "),
        ([str(tmp_path), "--preset", "sfot"], "preset=sfot: "),
    ):
        done = invoke("audit-bias", *words)
        assert done.exit_code == 2 and message in flat(done.stderr)
    (tmp_path / "empty").mkdir()
    assert "empty: no records" in flat(invoke("audit-bias", str(tmp_path / "empty")).stderr)
    signed = [Group("u", "math", 1, *(np.array([1.0, last]),) * 2, np.ones(2)) for last in (1, -1)]
    table = step_records([LeftGroup(group, "trained") for group in signed], step=1, attempt=1, alpha=1.0)
    write_step(tmp_path / "signed", table, step=1, attempt=1)
    half = Group("u", "math", 1, *(np.array([1.0, 0.5]),) * 2, np.ones(2))
    write_step(
        tmp_path / "graded",
        step_records([LeftGroup(half, "trained"), LeftGroup(groups[0], "trained")], step=1, attempt=1, alpha=1.0),
        step=1,
        attempt=1,
    )
    assert "2 mixed groups are not in the table" in flat(invoke("audit-bias", str(tmp_path / "graded")).stdout)
    assert "signed: no group has accuracies" in flat(invoke("audit-bias", str(tmp_path / "signed")).stderr)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--rehearse"]])
def test_train_without_words_says_what_to_type_first(more):
    done = invoke("train", *more)
    assert done.exit_code == 2 and done.stdout == ""
    lines = [line.strip() for line in done.stderr.splitlines()]
    assert "verl-gsd train algo=grpo task=arithmetic hardware=cpu" in lines
    assert "verl-gsd algos" in done.stderr and "verl-gsd train --help" in done.stderr
    for line in (line for line in lines if line.startswith("verl-gsd train")):
        assert parse_line(line.split()[2:]).choices
