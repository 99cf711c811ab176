"""Runs that a user or an error ends: none leaves a process."""

import re
import signal
import subprocess
import time

import psutil
import pytest
from running import BINARIES, TASK, Started, verl_gsd


@pytest.fixture(scope="module")
def task():
    done = verl_gsd("prepare", "arithmetic")
    assert done.returncode == 0, done.stderr
    return TASK


SMALL = ("task=arithmetic", "hardware=cpu", "data.train_batch_size=4", "trainer.val_before_train=false")


def of_a_run_since(start):
    """Command lines of processes that a training run would leave."""
    left = []
    for process in psutil.process_iter(["create_time", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["create_time"] >= start and re.search(r"ray|vllm|verl_gsd", line, re.IGNORECASE):
            left.append(line)
    return left


@pytest.mark.minutes(2)
def test_ctrl_c_twice_in_the_middle_of_a_run_leaves_no_process_and_says_how_to_go_on(task, tmp_path):
    start = time.time()
    words = ["algo=grpo", *SMALL, f"trainer.default_local_dir={tmp_path}/run", "trainer.save_freq=1"]
    with Started(
        [BINARIES / "verl-gsd", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as training:
        for line in training.stdout:
            if line.startswith("step    2/"):
                break
        training.send_signal(signal.SIGINT)
        training.send_signal(signal.SIGINT)
        printed = training.stdout.read()
    assert training.returncode == 130, printed
    assert f"resume={tmp_path}/run" in re.sub(r"\s", "", printed)
    assert of_a_run_since(start) == []


@pytest.mark.minutes(2)
def test_a_crash_leaves_no_process_and_shows_the_cause(task, tmp_path):
    """A verifier that raises: verl goes on over groups that all fail, and gives up on other grounds."""
    start = time.time()
    (tmp_path / "reward.py").write_text(
        "def compute_score(*_, **__):\n    raise ArithmeticError('broken on purpose')\n"
    )
    words = ["algo=grpo", *SMALL, f"trainer.default_local_dir={tmp_path}/run"]
    done = verl_gsd("train", *words, f"reward.custom_reward_function.path={tmp_path}/reward.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ArithmeticError: broken on purpose" in done.stderr
    assert of_a_run_since(start) == []
