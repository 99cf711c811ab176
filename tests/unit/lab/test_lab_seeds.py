"""Runs of several seeds: their words and folders, what is skipped, trained again and rejected, and how they end."""

import json
import math
import os
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from verl_gsd.cli import lab_train
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation.intervals import proportion, student_mean
from verl_gsd.jobs.submission import SEED_KEYS
from verl_gsd.lab.training import seeds
from verl_gsd.lab.training.processes import LabRun, train_runs
from verl_gsd.run import compose
from verl_gsd.run.compose import Line, write_yaml
from verl_gsd.run.messages import MessageWriter, RunStoppedError, read_messages
from verl_gsd.rundir import EXACT, RunDirectory, read_metrics

STEPS = 3


def test_seeds_are_numbers_and_ranges():
    assert seeds.parse_seeds("3") == [3]
    assert seeds.parse_seeds("1..4") == [1, 2, 3, 4]
    assert seeds.parse_seeds("7,1..2,5") == [7, 1, 2, 5]


@pytest.mark.parametrize("text", ["", "a", "4..1", "1..", "1,,2", "-1", "1-3", "1,2..3,2"])
def test_other_texts_are_not_seeds(text):
    with pytest.raises(ConfigError, match=r"--seeds .*(1\.\.32|Remove the repetition)"):
        seeds.parse_seeds(text)


@pytest.mark.usefixtures("composing_is_fast")
def test_a_seed_sets_its_keys_in_the_config_and_in_the_words(tmp_path):
    line = compose.parse_line(["algo=grpo", "task=arithmetic", "hardware=cpu"])
    config = seeds.config_of_seed(compose.compose_config(line), 7, tmp_path / "seed_7")
    assert [OmegaConf.select(config, key) for key in SEED_KEYS] == [7, 7, 7]
    assert config.trainer.default_local_dir == str(tmp_path / "seed_7")
    assert [f"{key}=7" for key in SEED_KEYS] == seeds.words_of_seed(line, 7)[-3:]


@pytest.mark.parametrize("key", [*SEED_KEYS, "trainer.default_local_dir"])
def test_a_key_that_each_seed_sets_is_rejected_on_the_line(key):
    with pytest.raises(ConfigError, match=f"{key}: --seeds sets this key"):
        seeds.check_line(Line({}, (f"{key}=3",)))


def lab_run(folder, number, words=("algo=grpo",)):
    config = OmegaConf.create({"trainer": {"default_local_dir": str(folder / f"seed_{number}")}})
    return LabRun(f"seed {number}", config, [*words, f"data.seed={number}"])


def train_stub(config, on_step):
    """In place of the trainer: writes the files of a run, and fails where its folder has a file that says how."""
    run = RunDirectory(Path(config.trainer.default_local_dir))
    fault = run.path.parent / f"fault_of_{run.path.name}"
    config.trainer.total_training_steps = STEPS
    write_yaml(config, run.config)
    run.metrics(1).parent.mkdir()
    print("printed by a library")
    for step in range(1, STEPS + 1):
        if step == 2 and fault.is_file():
            if fault.read_text() == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault.read_text() == "stop":
                MessageWriter(run.messages(1)).write("stop", "it was too large")
            errors = {"error": ValueError, "config": ConfigError, "stop": RunStoppedError}
            raise errors[fault.read_text()]("it was too large")
        metrics = {"val-core/x/acc/mean@1": step / 10}
        with run.metrics(1).open("a") as file:
            file.write(json.dumps({"step": step, "data": metrics}) + "\n")
        on_step(step, metrics)


def train(*runs, processes=2):
    steps, ends = [], {}
    train_runs(
        runs,
        processes=processes,
        on_step=lambda run, step, metrics: steps.append((run.name, step)),
        on_end=lambda run, error: ends.update({run.name: error}),
        train=train_stub,
    )
    return steps, ends


@pytest.fixture
def bars(monkeypatch):
    """Stubs for the command's trainer and its bars, which are returned after they were shown."""
    shown = []
    original = lab_train._bars
    monkeypatch.setattr(lab_train, "_bars", lambda: shown.append(original()) or shown[-1])
    monkeypatch.setattr(lab_train, "held_out_prompts", lambda config: Counter())
    monkeypatch.setitem(train_runs.__kwdefaults__, "train", train_stub)
    return shown


def test_without_a_terminal_each_finished_seed_is_a_line_with_its_last_accuracy(bars, tmp_path, capfd):
    runs = [lab_run(tmp_path / "grpo", number) for number in (1, 2, 3, 4)]
    train(runs[0])
    (tmp_path / "grpo" / "fault_of_seed_3").write_text("error")
    assert list(lab_train._train_seeds(runs)) == ["seed 3"]
    printed = capfd.readouterr().err
    lines = sorted(re.findall(r"^(seed \d) finished, (\d) of 4  held-out x 0\.300$", printed, re.MULTILINE))
    assert [name for name, _ in lines] == ["seed 2", "seed 4"]
    assert sorted(count for _, count in lines) == ["2", "3"]
    steps, ended = bars[0].tasks
    assert (steps.completed, steps.total) == (3 + 1 + 3, 3 * STEPS)
    assert (ended.completed, ended.total) == (3, 3)


def test_a_seed_that_another_command_has_trained_meanwhile_is_a_line_without_accuracy(
    bars, tmp_path, capfd, monkeypatch
):
    run = lab_run(tmp_path / "grpo", 1)
    train(run)
    monkeypatch.setattr(seeds, "is_finished", lambda folder: False)  # as it was when this command started
    assert lab_train._train_seeds([run]) == {}
    assert re.search(r"^seed 1 finished, 1 of 1$", capfd.readouterr().err, re.MULTILINE)


def test_the_bar_and_the_lines_of_one_run_have_the_number_of_steps_that_only_the_trainer_knows(bars, tmp_path, capfd):
    run = lab_run(tmp_path, 1)
    assert OmegaConf.select(run.config, "trainer.total_training_steps") is None
    assert lab_train._train_one(run) == {}
    printed = capfd.readouterr().err
    assert [f"step    {step}/{STEPS}  held-out x" in printed for step in (1, 2, 3)] == [True] * STEPS
    (bar,) = bars[0].tasks
    assert (bar.completed, bar.total) == (STEPS, STEPS)


def test_finished_runs_end_with_the_command_that_reports_them(bars, tmp_path, capfd, monkeypatch):
    run, *of_seeds = lab_run(tmp_path / "my runs", 1), lab_run(tmp_path / "grpo", 2), lab_run(tmp_path / "grpo", 3)
    lab_train._train_one(run)
    assert capfd.readouterr().out.splitlines()[-1] == f"verl-gsd report '{run.directory.path}'"
    (tmp_path / "grpo").mkdir()
    (tmp_path / "grpo" / "fault_of_seed_2").write_text("error")
    monkeypatch.chdir(tmp_path)
    lab_train._train_seeds(of_seeds)
    *_, compared, report = capfd.readouterr().out.splitlines()
    assert report == "verl-gsd report grpo/seed_3" and not compared.startswith("verl-gsd report")


def test_all_seeds_are_trained_and_their_files_belong_to_them(tmp_path):
    runs = [lab_run(tmp_path, number) for number in range(1, 6)]
    steps, ends = train(*runs)
    assert sorted(steps) == [(run.name, step) for run in runs for step in range(1, STEPS + 1)]
    assert ends == {run.name: None for run in runs}
    for run in runs:
        assert seeds.is_finished(run.directory)
        seeds.check_same_line(run.directory, run.words)
        assert "printed by a library" in run.directory.log(1).read_text()


def test_means_are_over_the_seeds_with_an_interval(tmp_path):
    runs = [lab_run(tmp_path, number) for number in (1, 2)]
    train(*runs)
    ((source, (first, last)),) = seeds.mean_accuracies([run.directory for run in runs]).items()
    assert source == "x" and (first.value, last.value) == (0.1, pytest.approx(0.3)) and last.n == 2


def test_intervals_of_means_know_the_number_of_responses(tmp_path):
    runs = [RunDirectory(tmp_path / "grpo" / f"seed_{seed}") for seed in (1, 2)]
    for run in runs:
        run.metrics(1).parent.mkdir(parents=True)
        data = {"val-core/x/acc/mean@4": 0.5, "val/prompts/x": 25}
        run.metrics(1).write_text(json.dumps({"step": 0, "data": data}) + "\n")
    first, last = seeds.mean_accuracies(runs)["x"]
    assert first == last and (first.low, first.high, first.n) == (
        proportion(100, 200).low,
        proportion(100, 200).high,
        2,
    )
    runs[1].metrics(1).write_text(json.dumps({"step": 0, "data": {"val-core/x/acc/mean@4": 0.5}}) + "\n")
    assert math.isinf(seeds.mean_accuracies(runs)["x"][0].low), "the seeds agree, and one of them does not know"


def test_means_of_1_and_minus_1_have_the_interval_of_any_mean(tmp_path):
    runs = [RunDirectory(tmp_path / "grpo" / f"seed_{seed}") for seed in (1, 2)]
    for run, value in zip(runs, (0.1, 0.7), strict=True):
        run.metrics(1).parent.mkdir(parents=True)
        data = {"val-core/x/acc/mean@4": value, "val/prompts/x": 25, "val/outside/x": 15}
        run.metrics(1).write_text(json.dumps({"step": 0, "data": data}) + "\n")
    first, _ = seeds.mean_accuracies(runs)["x"]
    assert first == student_mean(np.array([0.1, 0.7])) and first.low < 0


def test_exact_accuracies_have_means_of_their_own_and_are_compared(tmp_path):
    for seed, (first, last) in {1: (0.4, 0.5), 2: (0.4, 0.7)}.items():
        run = RunDirectory(tmp_path / "grpo" / f"seed_{seed}")
        run.metrics(1).parent.mkdir(parents=True)
        lines = [{"step": step, "data": {EXACT: value}} for step, value in ((0, first), (40, last))]
        run.metrics(1).write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = [RunDirectory(tmp_path / "grpo" / f"seed_{seed}") for seed in (1, 2)]
    first, last = seeds.mean_accuracies(runs)["exact"]
    assert (first.value, last.value, last.n) == (pytest.approx(0.4), pytest.approx(0.6), 2)
    assert lab_train._compare_command(runs[0].path.parent, exact=True).startswith("verl-gsd compare --exact ")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("error", "ValueError: it was too large"), ("kill", "SIGKILL"), ("config", "it was too large")],
)
def test_a_seed_that_fails_is_named_and_the_others_go_on_and_the_next_time_it_starts_again(fault, message, tmp_path):
    runs = [lab_run(tmp_path, number) for number in (1, 2, 3)]
    (tmp_path / "fault_of_seed_2").write_text(fault)
    _, ends = train(*runs, processes=1)
    assert message in ends.pop("seed 2") and ends == {"seed 1": None, "seed 3": None}
    assert not seeds.is_finished(runs[1].directory)
    assert runs[1].directory.is_used() == (fault != "config")
    if fault == "error":
        assert "train_stub" in runs[1].directory.log(1).read_text()  # the traceback
    (tmp_path / "fault_of_seed_2").unlink()
    before = runs[0].directory.metrics(1).stat().st_mtime_ns
    steps, ends = train(*runs)
    assert ends == dict.fromkeys(["seed 1", "seed 2", "seed 3"])
    assert steps == [("seed 2", 1), ("seed 2", 2), ("seed 2", 3)]
    assert [step for step, _ in read_metrics(runs[1].directory.metrics(1))] == [1, 2, 3]
    assert runs[0].directory.metrics(1).stat().st_mtime_ns == before


def test_a_seed_that_was_stopped_says_why_and_starts_again_without_the_old_messages(tmp_path):
    run = lab_run(tmp_path, 1)
    (tmp_path / "fault_of_seed_1").write_text("stop")
    _, ends = train(run)
    assert ends == {"seed 1": "it was too large"}
    assert [message.kind for message in read_messages(run.directory.messages(1))] == ["stop"]
    (tmp_path / "fault_of_seed_1").unlink()
    _, ends = train(run)
    assert ends == {"seed 1": None} and read_messages(run.directory.messages(1)) == []


def test_half_a_last_line_is_not_a_finished_run(tmp_path):
    run = lab_run(tmp_path, 1)
    train(run)
    whole = run.directory.metrics(1).read_text()
    run.directory.metrics(1).write_text(whole[:-3])
    assert not seeds.is_finished(run.directory)
    run.directory.metrics(1).write_text(whole)
    assert seeds.is_finished(run.directory)
    run.directory.config.unlink()
    assert not seeds.is_finished(run.directory)


def test_a_folder_of_another_line_is_rejected_with_the_difference_and_left_alone(tmp_path):
    train(lab_run(tmp_path, 1, words=("algo=grpo", "a=1")))
    other = lab_run(tmp_path, 1, words=("algo=grpo", "a=2"))
    with pytest.raises(ConfigError, match=r"seed_1: the run in this folder has a=1, and this line has a=2\."):
        seeds.check_same_line(other.directory, other.words)
    (tmp_path / "seed_1" / "config.yaml").unlink()  # unfinished, so that its processes would train in it
    _, ends = train(other)
    assert "a=1" in ends["seed 1"] and RunDirectory(tmp_path / "seed_1").metrics(1).is_file()


def test_a_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "seed_1").mkdir()
    (tmp_path / "seed_1" / "thesis.tex").write_text("text")
    run = lab_run(tmp_path, 1)
    with pytest.raises(ConfigError, match="no run of the laboratory"):
        seeds.check_same_line(run.directory, run.words)
    _, ends = train(run)
    assert "no run of the laboratory" in ends["seed 1"]
    assert (tmp_path / "seed_1" / "thesis.tex").read_text() == "text"


def test_an_interrupt_ends_all_processes(tmp_path):
    runs = [lab_run(tmp_path, number) for number in (1, 2)]
    running = {}

    def wait_stub(config, on_step):
        on_step(os.getpid(), {})
        signal.pause()

    def interrupt(run, process, metrics):
        running[run.name] = process
        if len(running) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_runs(runs, processes=2, on_step=interrupt, on_end=lambda *_: None, train=wait_stub)
    assert len(running) == 2
    for process in running.values():
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_two_commands_do_not_train_in_one_folder(tmp_path):
    from verl_gsd.run.launch import locked

    run = lab_run(tmp_path, 1)
    with locked(run.directory):
        _, ends = train(run)
    assert "another process is training in this folder" in ends["seed 1"]
    assert ends["seed 1"].endswith(
        "Wait until it ends and run this command again, or use another folder (with --seeds: another --label)."
    )
    _, ends = train(run)
    assert ends == {"seed 1": None}
