"""Resuming as a user does: which checkpoint, what is said of a damaged one, and lines that can be pasted."""

import json
import re
import shlex
import shutil
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_runs
import typer
import yaml
from checkpoint_files import write_checkpoint
from typer.testing import CliRunner

from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.cli import train
from verl_gsd.cli.main import app
from verl_gsd.cli.step_display import StepDisplay
from verl_gsd.errors import ConfigError
from verl_gsd.extension import fingerprints
from verl_gsd.jobs.submission import resumed_run
from verl_gsd.prompts import PromptStore
from verl_gsd.run import compose, launch, trust
from verl_gsd.run.checks import gsd_section, validate, with_verl
from verl_gsd.run.checks.steps_left import check_steps_left, planned_steps
from verl_gsd.run.compose import parse_line, resolve
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import save_state

LINE = ["algo=grpo", "task=arithmetic", "hardware=cpu"]

pytestmark = pytest.mark.usefixtures("composing_is_fast")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with whole checkpoints of steps 4, 8 and 10."""
    monkeypatch.setattr(gsd_section, "memory_settings", lambda config: {})
    run = RunDirectory(tmp_path / "my run")
    run.path.mkdir()
    store(run, LINE)
    for step in (4, 8, 10):
        write_checkpoint(run.path, step)
    return run


def store(run, words):
    """Write the run's line as its launcher does."""
    launch.write_yaml(words, run.overrides)
    trust.sign(run, run.overrides.read_bytes())


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def problems(place, *words):
    """What is wrong with a line that resumes a run, or a checkpoint in its folder, before Ray starts."""
    path = place.path if isinstance(place, RunDirectory) else place
    line, config = train._compose([f"resume={path}", *words])
    return [problem for check in validate.CHECKS for problem in check(config, line)]


def test_whole_checkpoints_are_resumed_in_silence(run):
    assert problems(run) == []
    _, config = train._compose([f"resume={run.path}"])
    assert (config.trainer.resume_mode, gsd_section.checkpoint_to_resume(config)) == ("auto", run.checkpoint(10))


def test_a_resume_keeps_sizes_that_were_chosen_for_the_data(run, tmp_path):
    """The data may have changed meanwhile. A key on the line of the resume still wins."""
    files = [f"data.{split}_files={tmp_path}/{split}.parquet" for split in ("train", "val")]
    store(run, ["algo=grpo", "hardware=cpu", f"model={tmp_path}", *files])
    sizes = {"train_batch_size": 4, "max_prompt_length": 77, "max_response_length": 99}
    run.config.write_text(yaml.safe_dump({"data": sizes}))
    line = train._line_to_resume(parse_line([f"resume={run.path}", "data.max_response_length=55"]))
    assert {f"data.{name}={size}" for name, size in (sizes | {"max_response_length": 55}).items()} <= set(line.words)
    assert "data.max_response_length=99" not in line.words


def test_damaged_weights_offer_the_newest_whole_checkpoint(run):
    cut(run.checkpoint(10) / "actor" / "model_world_size_1_rank_0.pt")
    cut(run.checkpoint(8) / "data.pt")
    (problem,) = problems(run)
    damaged, command = problem.splitlines()
    assert "global_step_10/actor/model_world_size_1_rank_0.pt: " in damaged
    assert "global_step_4" in damaged
    assert command == f"verl-gsd train resume='{run.path}/global_step_4'"


def test_a_damaged_memory_offers_the_older_checkpoint_before_an_empty_memory(run):
    cut(run.checkpoint(10) / "gsd" / "state.json")
    cut(run.checkpoint(8) / "gsd" / "arrays.safetensors")
    (problem,) = problems(run)
    damaged, command, otherwise = problem.splitlines()
    assert "global_step_10/gsd: " in damaged
    assert command.endswith("global_step_4'") and "algorithm.gsd.state=fresh" in otherwise
    assert problems(run, "algorithm.gsd.state=fresh") == [], "which adopts the weights"


def test_without_another_whole_checkpoint_that_is_said(run):
    for step in (4, 8, 10):
        cut(run.checkpoint(step) / "data.pt")
    (problem,) = problems(run)
    assert "global_step_10/data.pt: " in problem and "resume" not in problem
    for step in (4, 8, 10):
        cut(run.checkpoint(step) / "gsd" / "state.json")
    assert problems(run)[1].endswith(gsd_section.REMEDY)


def test_verls_own_command_is_offered_its_own_keys(run):
    cut(run.checkpoint(10) / "gsd" / "state.json")
    config = resolve(compose.compose_config(parse_line([*LINE, f"trainer.default_local_dir='{run.path}'"])))
    assert any(
        f"Set trainer.resume_mode=resume_path 'trainer.resume_from_path={run.checkpoint(8)}'" in problem
        for problem in gsd_section.gsd_section_problems(config)
    )


def test_an_older_checkpoint_can_be_named(run):
    line, config = train._compose([f"resume={run.path}/global_step_8", "trainer.total_training_steps=9"])
    assert (line.resume, config.trainer.default_local_dir) == (run.path, str(run.path))
    assert gsd_section.checkpoint_to_resume(config) == run.checkpoint(8)
    assert not any("resume" in word for word in line.words), "the next resume starts from the newest again"
    assert list(check_steps_left(config, line)) == []
    line, config = train._compose([f"resume={run.path}/global_step_8", "trainer.total_training_steps=8"])
    (problem,) = check_steps_left(config, line)
    assert "8 steps" in problem
    for place in (run.checkpoint(9), run.path.parent / "global_step_1"):
        with pytest.raises(ConfigError, match=f"resume={place}: "):
            train._compose([f"resume={place}"])


def trained(run, attempt, steps):
    report_runs.metrics(run.path, [(step, {}) for step in steps], attempt=attempt)


def test_a_checkpoint_from_which_a_later_attempt_went_back_begins_a_new_run(run, tmp_path):
    """Its metrics and records would be those of two trainings. Attempt 2 resumed from step 4 and ended at step 7."""
    trained(run, 1, range(1, 11))
    assert problems(run) == problems(run.checkpoint(4)) == []
    trained(run, 2, range(5, 8))
    run.marker.write_text("4")
    (problem,) = problems(run.checkpoint(10))
    assert problem.startswith(f"{run.checkpoint(10)}: a later attempt resumed from an earlier step")
    assert problems(run) == problems(run.checkpoint(4)) == []
    keys = re.search(r"with (.*)\.$", problem)[1].replace("FOLDER", f"{tmp_path}/new")
    line, config = train._compose([*LINE, *shlex.split(keys)])
    assert [text for check in validate.CHECKS for text in check(config, line)] == []
    assert gsd_section.checkpoint_to_resume(config) == run.checkpoint(10)
    cut(run.checkpoint(4) / "data.pt")
    (problem,) = problems(run)
    assert "no other complete checkpoint" in problem, "the others are of the branch that was given up"


def test_a_checkpoint_says_which_attempt_saved_it(run):
    """Attempt 2 passed step 10 without saving it again."""
    trained(run, 1, range(1, 11))
    trained(run, 2, range(9, 13))
    assert problems(run.checkpoint(10)) == [], "it could be that of attempt 2"
    saved = {"attempt": 1, "step": 10, "data": {}}
    (run.checkpoint(10) / "gsd" / "metrics.json").write_text(json.dumps(saved))
    (problem,) = problems(run.checkpoint(10))
    assert "a later attempt resumed" in problem


def test_another_number_of_gpus_is_said_before_anything_starts(run):
    (problem,) = problems(run, "trainer.n_gpus_per_node=2")
    assert "was saved by 1 processes" in problem and "product is 1" in problem and "verl-gsd export" in problem
    write_checkpoint(run.path, 12, ranks=2)
    assert "was saved by 2 processes" in problems(run)[0]
    assert not any("processes" in text for text in problems(run, "trainer.n_gpus_per_node=2"))


def test_a_resume_that_only_validates_does_not_stay(run):
    store(run, [*LINE, "trainer.val_only=true"])
    _, config = train._compose([f"resume={run.path}"])
    assert config.trainer.val_only is False


@pytest.mark.parametrize(
    ("stored", "words", "left_out"),
    [
        (
            ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"],
            ["algorithm.filter_groups.enable=false"],
            ["algorithm.filter_groups.metric=acc"],
        ),
        (["algorithm.gsd.eps=1e-4"], ["algorithm.gsd.alpha=0"], ["algorithm.gsd.eps=1e-4"]),
        (["algorithm.gsd.eps=1e-4"], ["trainer.total_training_steps=20"], []),
        (["algorithm.gsd.eps=1e-4"], [], []),
    ],
)
def test_new_words_can_switch_off_what_a_run_was_started_with(run, capsys, stored, words, left_out):
    """A report advises such words one after the other."""
    store(run, [*LINE, *stored])
    assert not [text for text in problems(run, *words) if "does nothing" in text]
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "is left out" in line] == [
        f"note: {word} of the run to resume is left out: with the words of this line, it has no effect"
        for word in left_out
    ]


def test_a_new_word_without_an_effect_is_still_rejected(run):
    store(run, [*LINE, "algorithm.gsd.eps=1e-4"])
    found = problems(run, "algorithm.gsd.alpha=0", "algorithm.gsd.ddof=0")
    assert [text.partition(" ")[0] for text in found if "does nothing" in text] == ["algorithm.gsd.ddof=0"]


def test_a_run_that_stopped_before_its_first_checkpoint_is_told_how_often_to_save(run):
    for path in [*run.path.glob("global_step_*"), run.marker]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConfigError, match=r"trainer\.save_freq above 0 and not above the step at which"):
        train._compose([f"resume={run.path}"])


def test_a_folder_without_a_checkpoint_is_not_offered_to_be_resumed(run):
    with pytest.raises(ConfigError, match="Set resume="):
        launch.require_unused(run)
    run.overrides.unlink()  # as after verl's own command
    with pytest.raises(ConfigError, match=r"To begin with its weights, .*resume_from_path=.*global_step"):
        launch.require_unused(run)
    run.marker.unlink()
    with pytest.raises(ConfigError, match=r"saved no checkpoint .* Set trainer\.default_local_dir") as caught:
        launch.require_unused(run)
    assert "resume=" not in str(caught.value)


@pytest.fixture
def twenty_rows(tmp_path):
    """Words for a training set of 20 rows in batches of 4, which is 5 steps per epoch."""
    pq.write_table(pa.table({"prompt": ["x"] * 20}), tmp_path / "twenty.parquet")
    return [f"data.train_files={tmp_path}/twenty.parquet", "data.train_batch_size=4"]


def test_a_finished_run_is_rejected_with_each_key_to_raise(run, twenty_rows):
    """The newest checkpoint is that of step 10, which is two epochs."""

    def found(*words):
        line, config = train._compose([f"resume={run.path}", *twenty_rows, *words])
        return list(check_steps_left(config, line))

    unset, used_up = "trainer.total_training_steps=null", "trainer.total_epochs=2"
    (problem,) = found(unset, used_up)
    assert problem.startswith("trainer.total_epochs=2: ") and "10 steps" in problem and "3 or more" in problem
    assert found(unset, "trainer.total_epochs=3") == []
    assert found("trainer.total_training_steps=40", used_up) == [problem], "verl ends at the limit that comes first"
    steps, epochs = found("trainer.total_training_steps=10", used_up)
    assert steps.startswith("trainer.total_training_steps=10: ") and epochs == problem
    assert found(unset, used_up, "data.train_max_samples=12"), "and a smaller data set has shorter epochs"
    assert found(unset, "trainer.total_epochs=3", "data.train_max_samples=12"), "of 3 steps each"
    assert found(unset, "trainer.total_epochs=4", "data.train_max_samples=12") == []
    assert found(unset, used_up, "trainer.val_only=true", "trainer.val_before_train=true") == []
    assert any("trainer.total_epochs=2: " in text for text in problems(run, *twenty_rows, unset, used_up))


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["trainer.total_training_steps=null", "trainer.total_epochs=3"], 15),
        (["trainer.total_training_steps=7", "trainer.total_epochs=3"], 7),
        (["trainer.total_training_steps=40", "trainer.total_epochs=3"], 15),
        (["trainer.total_training_steps=7", "trainer.total_epochs=3", "data.train_files=missing.parquet"], 7),
        (["trainer.total_training_steps=null", "trainer.total_epochs=3", "data.train_files=missing.parquet"], None),
    ],
)
def test_a_dry_run_tells_the_number_of_steps(twenty_rows, words, steps):
    _, config = train._compose([*LINE, *twenty_rows, *words])
    assert planned_steps(config) == steps


def test_a_checkpoint_of_another_run_can_be_the_last_one_too(run, twenty_rows, tmp_path):
    where = f"trainer.resume_from_path='{run.checkpoint(10)}'"
    folder = f"trainer.default_local_dir={tmp_path}/new"
    words = [*LINE, folder, *twenty_rows, "trainer.resume_mode=resume_path", where, "trainer.total_epochs=2"]
    line, config = train._compose(words)
    assert any("trainer.total_epochs=2: " in text for text in check_steps_left(config, line))


def test_a_damaged_marker_is_said_and_the_newest_whole_checkpoint_resumed(run, monkeypatch):
    """The verdict of a dry run counts the warning."""
    monkeypatch.setattr(with_verl, "validate_with_verl", lambda config: [])

    def warnings_of(word):
        done = CliRunner().invoke(app, ["train", word, "--dry-run"], env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.stderr
        verdict = done.stderr.splitlines()[-1]
        assert verdict.startswith("Config valid, ") and re.search(r"\. Steps: at most \d+\. ", verdict)
        counted = re.match(r"Config valid, (\d+) warning", verdict)
        assert done.stderr.count("warning: ") == (int(counted[1]) if counted else 0)
        return [
            text for text in done.stderr.splitlines() if text.startswith("warning: ") and "contains no step" in text
        ]

    assert warnings_of(f"resume={run.path}") == []
    run.marker.write_text("")
    cut(run.checkpoint(10) / "data.pt")
    (warning,) = warnings_of(f"resume={run.path}")
    assert str(run.marker) in warning and "global_step_8" in warning
    assert warnings_of(f"resume={run.path}/global_step_4") == [], "the marker does not matter"
    _, config = train._compose([f"resume={run.path}"])
    assert gsd_section.checkpoint_to_resume(config) == run.checkpoint(8)


def test_a_damaged_checkpoint_ends_the_command_before_anything_starts(run, tmp_path, monkeypatch):
    cut(run.checkpoint(10) / "data.pt")
    monkeypatch.setenv("COLUMNS", "40")
    done = CliRunner().invoke(app, ["train", f"resume={run.path}"])
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert f"verl-gsd train resume='{run.path}/global_step_8'" in done.output.splitlines()
    assert run.attempts() == []


@pytest.mark.parametrize(("job", "command"), [(False, "verl-gsd train resume="), (True, "verl-gsd submit --resume ")])
def test_the_line_to_resume_is_one_line_on_a_narrow_terminal(run, monkeypatch, capsys, job, command):
    monkeypatch.setenv("COLUMNS", "40")
    if job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    train._show_how_to_resume(run)
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1] == f"{command}'{run.path}'"
    assert "step 10" in printed


def test_a_job_can_resume_a_checkpoint_of_a_run():
    job = resumed_run("/runs/a/global_step_8/", ["trainer.total_training_steps=9"], datetime(2026, 11, 25))
    assert job.run == "/runs/a" and job.identifier == "a-resumed-20261125-000000"
    assert job.words == ("trainer.total_training_steps=9", "resume=/runs/a/global_step_8")


def test_messages_are_shown_plainly_and_warnings_in_yellow(capsys):
    train._show_message("note", "[3] prompts are left out")
    train._show_message("warning", "rewards fail")
    assert capsys.readouterr().err.splitlines() == ["[3] prompts are left out", "warning: rewards fail"]


def test_scores_of_a_rehearsal_are_marked_where_they_look_like_an_accuracy(capsys):
    metrics = {"critic/score/mean": 0.629, "val-core/mine/acc/mean@1": 0.5, "timing_s/step": 2.0}
    StepDisplay(2, train.out, " (seeded)").show(2, metrics)
    assert capsys.readouterr().out == "step    2/2  reward 0.629 (seeded)  2.0 s  held-out mine 0.500 (seeded)\n"
    StepDisplay(2, train.out).show(2, metrics)
    assert "seeded" not in capsys.readouterr().out


def test_a_stopped_run_ends_with_what_the_trainer_said(run, monkeypatch, capsys):
    """The end of ``verl-gsd train``, with a stand-in for what runs in between."""

    def stopped_stub(*_, **__):
        raise RunStoppedError("vLLM's engine died: process id 7 [on node a]")

    monkeypatch.setattr(launch, "train", stopped_stub)
    line, config = train._compose([f"resume={run.path}"])
    monkeypatch.setattr(train, "held_out_prompts", lambda config: {})
    with pytest.raises(typer.Exit) as ended:
        train._run(config, line)
    printed = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert "vLLM's engine died: process id 7 [on node a]\n" in printed.err
    assert f"\nverl-gsd train resume='{run.path}'\n" in printed.err
    assert printed.out == "", "a failed run has no result"


def test_a_finished_run_ends_with_the_command_that_reports_it(run, monkeypatch, capsys):
    monkeypatch.setattr(launch, "train", lambda *_, **__: None)
    monkeypatch.setattr(launch, "wandb_is_offline", lambda: True)
    monkeypatch.setattr(train, "held_out_prompts", lambda config: {})
    line, config = train._compose([f"resume={run.path}"])
    config.trainer.logger = ["wandb"]
    train._run(config, line)
    assert capsys.readouterr().out.splitlines()[-1] == f"verl-gsd report '{run.path}'"


def with_state(run, preset, **saved):
    """A run of HA-DW whose line names no preset, with a checkpoint whose anchors are of ``preset``."""
    store(run, ["algo=hadw", *LINE[1:]])
    hadw = Hadw({"preset": preset, **saved})
    for step in (4, 8, 10):
        save_state(run.checkpoint(step), {"prompts": PromptStore(), "hadw": hadw}, fingerprints({"hadw": hadw}))


@pytest.mark.parametrize("preset", ["hard", "soft", 0.4])
def test_a_resume_keeps_the_settings_of_its_state_where_the_default_has_changed(run, preset):
    """Runs that began when ``algo=hadw`` had the hard anchor go on with it. The line alone would give the default."""
    with_state(run, preset, accuracy_range=[0, 2])
    assert problems(run) == []
    _, config = train._compose([f"resume={run.path}"])
    assert config.algorithm.gsd.hadw.preset == preset and config.algorithm.gsd.hadw.accuracy_range == [0, 2]


def test_a_setting_on_the_line_of_a_resume_is_checked_and_not_replaced(run):
    soft = "algorithm.gsd.hadw.preset=soft"
    with_state(run, "hard")
    assert any("hadw.preset" in problem and "hard" in problem for problem in problems(run, soft))
    _, config = train._compose([f"resume={run.path}", "algorithm.gsd.state=fresh"])
    assert config.algorithm.gsd.hadw.preset == "soft", "a run that starts with an empty state has today's default"
    store(run, ["algo=hadw", *LINE[1:], soft])
    assert any("hadw.preset" in problem and "hard" in problem for problem in problems(run)), "also on the stored line"


def test_a_resume_adds_no_section_that_its_line_does_not_have(run):
    with_state(run, "hard")
    _, config = train._compose([f"resume={run.path}", "algo=grpo"])
    assert "hadw" not in config.algorithm.gsd
