"""Starting a process, watching its metrics, and leaving nothing behind."""

import json
import math
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from verl_gsd.rundir import MetricsReader, RunDirectory, read_metrics
from verl_gsd.trainer import launch
from verl_gsd.trainer.config import ConfigError


def line(step, **data):
    return json.dumps({"step": step, "data": data}) + "\n"


def test_metrics_cut_off_by_a_crash_are_read_up_to_the_last_whole_line(tmp_path):
    path = tmp_path / "attempt_1.jsonl"
    path.write_text(line(0, a=1.0) + line(1, a=2.0) + line(2, a=3.0)[:-9])
    assert list(read_metrics(path)) == [(0, {"a": 1.0}), (1, {"a": 2.0})]
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


def test_a_metrics_file_being_written_gives_every_line_once_and_null_as_nan(tmp_path):
    reader = MetricsReader(tmp_path / "attempt_1.jsonl")
    assert list(reader.new()) == []
    with (tmp_path / "attempt_1.jsonl").open("w") as file:
        file.write(line(0, a=None) + line(1, a=2.0)[:5])
        file.flush()
        ((step, data),) = reader.new()
        assert step == 0 and math.isnan(data["a"])
        file.write(line(1, a=2.0)[5:])
        file.flush()
        assert list(reader.new()) == [(1, {"a": 2.0})]


def test_run_directory_counts_attempts_and_knows_its_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    assert (run.attempts(), run.latest_checkpoint()) == ([], None)
    for attempt in (1, 2, 10):
        run.log(attempt).parent.mkdir(exist_ok=True)
        run.log(attempt).touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    assert (run.attempts(), run.latest_checkpoint()) == ([1, 2, 10], 20)


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "TENSORBOARD_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return OmegaConf.create(
        {"trainer": {"default_local_dir": str(tmp_path / "run")}, "ray_kwargs": {"ray_init": {"runtime_env": {}}}}
    )


def attempt(config, *overrides, resuming=False):
    return launch.attempt_in(config, list(overrides), resuming)


def test_a_new_attempt_points_verls_loggers_into_the_run(config):
    with attempt(config, "algo=grpo") as (run, number):
        environment = config.ray_kwargs.ray_init.runtime_env.env_vars
        assert str(run.metrics(number)) == environment.VERL_FILE_LOGGER_PATH
        assert str(run.tensorboard) == environment.TENSORBOARD_DIR
        assert environment.WANDB_MODE == "offline"
        assert OmegaConf.load(run.config) == config
        assert OmegaConf.load(run.overrides) == ["algo=grpo"]


def test_wandb_goes_online_with_a_key_and_the_key_is_written_nowhere(config, monkeypatch):
    key = "0123456789abcdef" * 2
    monkeypatch.setenv("WANDB_API_KEY", key)
    with attempt(config) as (run, _):
        written = [path.read_text() for path in run.path.rglob("*") if path.is_file()]
    assert written and not any(key in text or "offline" in text for text in written)


def test_what_a_user_set_for_a_logger_stays(config, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_DIR", "/mine")
    config.ray_kwargs.ray_init.runtime_env.env_vars = {"WANDB_MODE": "disabled"}
    with attempt(config):
        environment = config.ray_kwargs.ray_init.runtime_env.env_vars
        assert environment.WANDB_MODE == "disabled" and "TENSORBOARD_DIR" not in environment


def test_a_refused_attempt_leaves_everything_as_it_was(config):
    with pytest.raises(ConfigError, match="refused"), attempt(config, "first"):
        raise ConfigError("refused")
    assert not Path(config.trainer.default_local_dir).exists()

    with attempt(config, "first") as (run, _):
        run.log(1).touch()
    with pytest.raises(ConfigError, match="refused"), attempt(config, "second", resuming=True) as (_, number):
        assert number == 2
        raise ConfigError("refused")
    assert OmegaConf.load(run.overrides) == ["first"] and run.attempts() == [1]


def test_a_directory_is_one_processs_at_a_time_and_not_gone_on_with_in_silence(config):
    with attempt(config), pytest.raises(ConfigError, match="another process is training in it"), attempt(config):
        pass
    with pytest.raises(ConfigError, match=r"not empty.*Write resume=.* to do so"), attempt(config):
        pass


def test_a_directory_that_cannot_be_made_is_named(config, tmp_path):
    (tmp_path / "file").touch()
    config.trainer.default_local_dir = str(tmp_path / "file" / "run")
    with pytest.raises(ConfigError, match=r"trainer\.default_local_dir=.*/file/run: Not a directory"), attempt(config):
        pass


# A stand-in for verl's process tree: a child in a session of its own, and a grandchild that hides its mark and ignores
# SIGTERM, as a Ray worker that set its title and hangs would.
TREE = """
import os, signal, subprocess, sys
hidden = "import os, signal; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", hidden], env={}, start_new_session=True, stdout=subprocess.PIPE)
print(os.getpid(), child.stdout.readline().decode().strip(), flush=True)
signal.pause()
"""


def test_every_process_of_a_run_is_ended_and_no_other(monkeypatch):
    monkeypatch.setattr(launch, "_GRACE", 1.0)

    def start(mark):
        process = subprocess.Popen(
            [sys.executable, "-c", TREE],
            env={launch.MARK: mark},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return process, [int(pid) for pid in process.stdout.readline().split()]

    ours, our_pids = start("ours")
    other, other_pids = start("other")
    try:
        launch.end_marked("ours")
        ours.wait()
        assert [pid for pid in our_pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"] == []
        assert all(psutil.pid_exists(pid) for pid in other_pids)
    finally:
        launch.end_marked("other")
        other.wait()


def run_with_job_stub(tmp_path, monkeypatch, body):
    """``launch.train`` on a stand-in for the training process."""
    run = RunDirectory(tmp_path / "run")
    run.metrics(1).parent.mkdir(parents=True)
    run.log(1).parent.mkdir()
    stub = tmp_path / "python_stub"
    stub.write_text(f"#!{sys.executable}\n{body}")
    stub.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(stub))
    seen = []
    launch.train(run, 1, lambda step, data: seen.append((step, data)), seen.append)
    return seen


def test_steps_are_reported_once_and_in_order(tmp_path, monkeypatch):
    metrics = tmp_path / "run" / "metrics" / "attempt_1.jsonl"
    body = f"open({str(metrics)!r}, 'w').write({(line(0, a=1) + line(1, a=2))!r})"
    assert run_with_job_stub(tmp_path, monkeypatch, body) == [(0, {"a": 1}), (1, {"a": 2})]


def test_what_a_run_waits_for_is_told_once_and_nothing_else_of_its_log(tmp_path, monkeypatch):
    body = "print('Ray says much'); print('verl-gsd waits: another run trains'); print('verl-gsd waits: for m', end='')"
    assert run_with_job_stub(tmp_path, monkeypatch, body) == ["verl-gsd waits: another run trains"]


def test_a_failed_run_shows_the_end_of_its_log(tmp_path, monkeypatch):
    with pytest.raises(launch.RunFailedError, match=r"(?s)exit code 1.*ValueError: the disk is full"):
        run_with_job_stub(tmp_path, monkeypatch, "raise ValueError('the disk is full')")


def test_a_failed_run_names_the_first_exception_though_verl_went_on_for_long_after_it(tmp_path, monkeypatch):
    body = (
        "print('\\x1b[36m(Worker pid=7)\\x1b[0m ZeroDivisionError: the cause')\n"
        "for i in range(100): print('went on', i)\n"
        "raise RuntimeError('too many failed groups')"
    )
    with pytest.raises(
        launch.RunFailedError, match=r"(?s)first exception: \(Worker pid=7\) ZeroDivisionError: the cause"
    ):
        run_with_job_stub(tmp_path, monkeypatch, body)


def test_a_refusal_is_a_config_error_without_the_noise_before_it(tmp_path, monkeypatch):
    from verl_gsd.trainer.job import REFUSAL, REFUSED

    body = f"import sys; print('noise'); print({REFUSAL!r}); print('a.b=1: wrong'); sys.exit({REFUSED})"
    with pytest.raises(ConfigError, match=r"^a\.b=1: wrong$"):
        run_with_job_stub(tmp_path, monkeypatch, body)
