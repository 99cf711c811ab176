"""What a user sees of a run's steps: lines in a log, and a bar in a terminal."""

import io
import re

import pytest
from omegaconf import OmegaConf

from verl_gsd.cli import train
from verl_gsd.cli.step_display import StepDisplay
from verl_gsd.console import SafeConsole
from verl_gsd.run import launch
from verl_gsd.rundir import RunDirectory

STEP = {"training/global_step": 1, "critic/score/mean": 0.5, "timing_s/step": 12.34}
FILTERED = STEP | {"group/reward/generated": 0.25}
HELD_OUT = {"val-core/maths/acc/mean@1": 0.75}


def shown(steps, *, terminal, total=None, total_later=None):
    """What the console's file has after these steps."""
    file = io.StringIO()
    with StepDisplay(total, SafeConsole(file=file, width=160, force_terminal=terminal)) as display:
        if total_later:
            display.set_total(total_later)
        for step, metrics in steps:
            display.show(step, metrics)
    return file.getvalue()


def last_frame(text):
    """The text of the last line that a terminal shows, without the sequences that draw it."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").strip().splitlines()[-1]


def test_a_log_has_one_plain_line_per_step():
    printed = shown([(0, HELD_OUT), (1, STEP), (2, STEP | HELD_OUT)], terminal=False, total=40)
    assert printed.splitlines() == [
        "step    0/40  held-out maths 0.750",
        "step    1/40  reward 0.500  12.3 s",
        "step    2/40  reward 0.500  12.3 s  held-out maths 0.750",
    ]


def test_the_reward_of_everything_generated_is_shown_if_the_run_filters_groups():
    (line,) = shown([(1, FILTERED)], terminal=False).splitlines()
    assert line == "step    1/?  reward 0.500 (0.250 of all generated responses)  12.3 s"
    assert "reward 0.500 (0.250 of all generated responses)" in last_frame(shown([(1, FILTERED)], terminal=True))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_trainer_can_tell_the_last_step_later(terminal):
    printed = shown([(3, STEP | HELD_OUT)], terminal=terminal, total_later=9)
    assert "step    3/9  reward 0.500" in printed and (not terminal or "3/9" in last_frame(printed))


def test_a_terminal_has_a_bar_with_both_times_instead_of_lines_of_steps_without_results():
    printed = shown([(0, HELD_OUT), (1, STEP), (2, FILTERED)], terminal=True, total=40)
    assert "step    0/40  held-out maths 0.750" in printed and "step    2/" not in printed
    bar = last_frame(printed)
    assert re.search(r"training +reward 0\.500 .* 2/40 elapsed \d:\d\d:\d\d remaining", bar), bar


def test_a_resumed_run_has_no_remaining_time_from_steps_that_another_attempt_made():
    """At the first step after the resume, 100 steps have not been made in the seconds since the start."""
    assert "remaining -:--:--" in last_frame(shown([(101, STEP)], terminal=True, total=200))


def test_the_command_shows_steps_with_the_last_one_that_the_trainer_names(tmp_path, monkeypatch, capsys):
    def stub_that_trains_one_step(run, attempt, config, on_step, on_wait, on_message):
        on_message("steps", "damaged")
        on_message("steps", "7")
        on_message("warning", "something")
        on_step(1, STEP)

    monkeypatch.setattr(launch, "train", stub_that_trains_one_step)
    monkeypatch.setattr(train, "err", SafeConsole(stderr=True, width=160))
    train.train_attempt(RunDirectory(tmp_path), 1, OmegaConf.create({"trainer": {"total_training_steps": None}}))
    captured = capsys.readouterr()
    printed = captured.err
    assert captured.out == "", "standard output is for the result"
    assert "step    1/7  reward 0.500" in printed and "warning: something" in printed
    assert "damaged" not in printed
