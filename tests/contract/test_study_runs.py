"""The studies in ``benchmarks/studies`` on verl: every declared line is one, and runs end in the ledger."""

import importlib
import sys

import pytest
from places import ROOT

from verl_gsd.cli.lab_train import _compose

sys.path.append(str(ROOT / "benchmarks"))  # as the script has it

from studies.declaration import Arm, Study
from studies.judge_server import judge_words, serving
from studies.ledger import TRACES, read_ledger
from studies.runs import train

from verl_gsd.lab.training.checks import check_lab
from verl_gsd.rundir import RunDirectory, read_metrics

NAMES = sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.py") if "STUDY = " in path.read_text())
TINY = ("data.val_max_samples=8", "data.train_batch_size=4", "actor_rollout_ref.rollout.n=4")


@pytest.mark.parametrize("name", NAMES)
def test_the_laboratory_accepts_every_line_of_a_study(name):
    study = importlib.import_module(f"studies.{name}").STUDY
    task = study.tasks[0]  # composing takes a third of a second, and tasks do not change what an arm accepts
    for arm in study.arms_of(task):
        line, composed = _compose(study.words(arm, task, 1e-4))
        check_lab(composed, line)


def test_a_study_trains_what_is_missing_and_goes_on_after_a_stop(tmp_path):
    study = Study(
        name="tiny",
        question="Does it run?",
        hypothesis="It does.",
        measure="Runs.",
        spread="None.",
        tasks=("arithmetic",),
        baseline="grpo",
        arms=(Arm("grpo", ("algo=grpo", *TINY), 1e-3), Arm("gvpo", ("algo=gvpo", *TINY), 1e-3)),
        steps=4,
        validate_every=2,
        seeds="1..2",
    )
    ledger, runs = tmp_path / "runs.jsonl", tmp_path / "runs"
    assert train(study, study.tasks, runs, {}.get, ledger) == []
    found = read_ledger(ledger)
    assert sorted(seed for _, seed in found) == [1, 1, 2, 2]
    for run in found.values():
        assert run.steps == (0, 2, 4) and run.tokens[0] == 0 < run.tokens[1] < run.tokens[2]
        assert len(set(run.accuracy)) == 3  # the policy changes between two validations
        assert {len(values) for values in run.levels.values()} == {3}
        assert set(run.traces) == set(TRACES) and None not in run.traces["gradient_norm"]

    # A stop between a run's end and its line, on a machine that has the run's folder, and on one that does not.
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics/*.jsonl")}
    assert train(study, study.tasks, runs, {}.get, ledger) == []
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("metrics/*.jsonl")} == before
    assert read_ledger(ledger) == found
    ledger.write_text("".join(lines[:-1]))
    assert train(study, study.tasks, tmp_path / "elsewhere", {}.get, ledger) == []
    assert len(list((tmp_path / "elsewhere").rglob("metrics/*.jsonl"))) == 1
    assert {key: run.accuracy for key, run in read_ledger(ledger).items()} == {
        key: run.accuracy for key, run in found.items()
    }


def test_runs_of_a_study_ask_a_judge_of_known_quality(tmp_path):
    study = Study(
        name="judged",
        question="Is it asked?",
        hypothesis="It is.",
        measure="Calls.",
        spread="None.",
        tasks=("arithmetic",),
        baseline="mask",
        arms=(Arm("mask", ("algo=dagrpo_mask", *judge_words(0.9), "data.val_max_samples=8"), 1e-3),),
        steps=2,
        validate_every=2,
        seeds="1",
    )
    with serving():
        assert train(study, study.tasks, tmp_path, {}.get, tmp_path / "runs.jsonl") == []
    metrics = [data for _, data in read_metrics(RunDirectory(tmp_path / "judged/arithmetic/mask/seed_1").metrics(1))]
    judged = [data for data in metrics if data.get("judge/responses")]
    assert judged and all(data["judge/failures/any"] == 0 for data in judged)
    assert any(0 < data["dagrpo/pairs/kept"] < 1 for data in judged)
