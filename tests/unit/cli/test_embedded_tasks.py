"""The commands that make or read an embedded task, with a warm start of one step."""

import functools
import json

import pytest
from typer.testing import CliRunner

from verl_gsd.cli import evaluate, train
from verl_gsd.cli.main import app
from verl_gsd.run.compose import compose_config, parse_line
from verl_gsd.tasks import embedded
from verl_gsd.tasks.catalog import TASKS

pytestmark = [
    pytest.mark.usefixtures("composing_is_fast"),
    pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS)),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and a specification that is made in a second."""
    sizes = {"train_per_level": 2, "test_per_level": 1, "warm_start_steps": 1}
    monkeypatch.setattr(embedded, "Specification", functools.partial(embedded.Specification, **sizes))
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def task_in(folder):
    return json.loads((folder / "manifest.json").read_text())["task"]


def test_prepare_makes_the_task_in_the_cache_and_eval_finds_it_there(task, cache, tmp_path):
    done = CliRunner().invoke(app, ["prepare", task.name], env={"COLUMNS": "500"})
    assert done.exit_code == 0 and f"{task.name} is in {cache / task.name}" in done.stdout
    assert f"making task {task.name}" in done.stderr and task_in(cache / task.name) == task.name
    again = CliRunner().invoke(app, ["prepare", task.name], env={"COLUMNS": "500"})
    assert again.exit_code == 0 and "making task" not in again.output
    (bench,) = evaluate._benches(f"{task.name}, {task.name}", tmp_path / "data")
    assert bench.file == cache / task.name / "test.parquet" and bench.verifier == task.verifier
    answer = bench.questions[0].truth
    assert bench.compute_score()(task.name, answer, answer)["acc"] == 1


def test_prepare_makes_the_task_in_another_folder_and_eval_finds_it_there(task, cache, tmp_path):
    done = CliRunner().invoke(app, ["prepare", task.name, "--data", str(tmp_path / "data")])
    assert done.exit_code == 0 and not cache.exists()
    (bench,) = evaluate._benches(task.name, tmp_path / "data")
    assert bench.file == tmp_path / "data" / task.name / "test.parquet"


def test_train_makes_the_task_on_first_use(task, tmp_path):
    words = ["algo=grpo", f"task={task.name}", "hardware=cpu", f"task.directory={tmp_path}/task"]
    train.make_task(compose_config(parse_line(words)))
    assert task_in(tmp_path / "task") == task.name


def test_a_line_says_how_long_it_takes_before_a_task_is_made(task, cache, monkeypatch):
    """Without a terminal, as here, the bar is shown only at the end."""

    def interrupted(*_):
        raise OSError("interrupted")

    monkeypatch.setattr(embedded, "ensure", interrupted)
    done = CliRunner().invoke(app, ["prepare", task.name], env={"COLUMNS": "500"})
    assert done.exit_code == 2
    assert f"making task {task.name} in {cache / task.name}; this takes one to two minutes" in done.stderr
