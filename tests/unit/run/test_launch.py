"""Launching a run's process, reading its metrics and messages, and ending all its processes."""

import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from canaries import CANARIES, files_with_a_canary
from checkpoint_files import write_checkpoint
from omegaconf import OmegaConf

from verl_gsd.cpu import forkserver
from verl_gsd.errors import ConfigError
from verl_gsd.run import launch, lost_metrics, trust
from verl_gsd.run.causes import likely_cause
from verl_gsd.run.compose import to_yaml
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.rundir import MetricsReader, RunDirectory, read_metrics


def line(step, **data):
    return json.dumps({"step": step, "data": data}) + "\n"


def test_incomplete_last_line_of_metrics_is_ignored(tmp_path):
    path = tmp_path / "attempt_1.jsonl"
    path.write_text(line(0, a=1.0) + line(1, a=2.0) + line(2, a=3.0)[:-9])
    assert list(read_metrics(path)) == [(0, {"a": 1.0}), (1, {"a": 2.0})]
    assert list(read_metrics(tmp_path / "none.jsonl")) == []


def test_metrics_reader_returns_each_line_once_and_null_as_nan(tmp_path):
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


def test_run_directory_lists_attempts_and_the_latest_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    assert (run.attempts(), run.latest_checkpoint()) == ([], None)
    for attempt in (1, 2, 10):
        run.log(attempt).parent.mkdir(exist_ok=True)
        run.log(attempt).touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    assert (run.attempts(), run.latest_checkpoint()) == ([1, 2, 10], 20)


def resumed(config, tmp_path, **keys):
    """An attempt that resumes the run in tmp_path/run."""
    config.trainer.update({"resume_mode": "auto"} | keys)
    with attempt(config, "again", resuming=True) as (run, _):
        return run


def test_a_resume_from_an_older_checkpoint_makes_it_the_newest(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    for step in (8, 10):
        write_checkpoint(run.path, step)
    resumed(config, tmp_path, resume_mode="resume_path", resume_from_path=str(run.checkpoint(8)))
    assert run.marker.read_text() == "8", "also if the attempt ends before it saves one"
    with pytest.raises(ConfigError), attempt(config, "again", resuming=True):
        raise ConfigError("refused")
    config.trainer.resume_from_path = str(run.checkpoint(10))
    with pytest.raises(ConfigError), attempt(config, "again", resuming=True):
        assert run.marker.read_text() == "10"
        raise ConfigError("refused")
    assert run.marker.read_text() == "8", "as it was before the attempt that was rejected"


def test_resuming_from_another_runs_checkpoint_keeps_the_marker(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    for path in (run.path, tmp_path / "other"):
        path.mkdir()
        write_checkpoint(path, 4)
    other = str(tmp_path / "other" / "global_step_2")
    resumed(config, tmp_path, resume_mode="resume_path", resume_from_path=other)
    assert run.latest_checkpoint() == 4


def test_empty_marker_is_rewritten(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_checkpoint(run.path, 4)
    run.marker.write_text("")
    resumed(config, tmp_path)
    assert run.marker.read_text() == "4"


def test_only_partial_files_of_a_killed_attempt_are_removed(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    checkpoint = write_checkpoint(run.path, 4)
    whole = sorted(run.path.rglob("*"))
    (checkpoint / "gsd.tmp").mkdir()
    run.records(1).mkdir(parents=True)
    step = run.records(1) / "step_000001.parquet"
    left = [checkpoint / "gsd.tmp" / "state.json", checkpoint / "gsd" / "metrics.json.tmp", step.with_suffix(".tmp")]
    left += [run.path / "config.yaml.tmp", run.path / "latest_checkpointed_iteration.txt.tmp"]
    left += [path.with_name(f"{path.name}.0123456789abcdef.tmp") for path in (run.config, run.marker, run.signature)]
    left += [step.with_name(f"{step.name}.0123456789abcdef.tmp")]
    for path in (*left, step, run.path / "mine.tmp"):
        path.touch()
    resumed(config, tmp_path)
    assert not any(path.exists() for path in left) and not (checkpoint / "gsd.tmp").exists()
    assert step.exists() and (run.path / "mine.tmp").exists() and set(whole) <= set(run.path.rglob("*"))


def test_lost_metrics_are_restored_when_the_attempt_ends(config, tmp_path):
    with pytest.raises(launch.RunFailedError), attempt(config) as (run, number):
        lost_metrics.save(write_checkpoint(run.path, 3), number, 3, {"training/global_step": 3, "a": 0.5})
        run.metrics(number).write_text(line(2, a=1.0) + line(3, a=1.0)[:9])
        raise launch.RunFailedError("killed")
    assert list(read_metrics(run.metrics(1))) == [(2, {"a": 1.0}), (3, {"training/global_step": 3, "a": 0.5})]


def test_lost_metrics_are_restored_on_resume(config, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    lost_metrics.save(write_checkpoint(run.path, 3), 1, 3, {"training/global_step": 3})
    resumed(config, tmp_path)
    assert list(read_metrics(run.metrics(1))) == [(3, {"training/global_step": 3})]


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "TENSORBOARD_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return OmegaConf.create(
        {"trainer": {"default_local_dir": str(tmp_path / "run")}, "ray_kwargs": {"ray_init": {"runtime_env": {}}}}
    )


def attempt(config, *overrides, resuming=False):
    return launch.new_attempt(config, list(overrides), resuming)


def test_new_attempt_sets_the_paths_of_verls_loggers(config):
    with attempt(config, "algo=grpo") as (run, number):
        environment = config.ray_kwargs.ray_init.runtime_env.env_vars
        assert str(run.metrics(number)) == environment.VERL_FILE_LOGGER_PATH
        assert str(run.tensorboard) == environment.TENSORBOARD_DIR
        assert environment.WANDB_MODE == "offline"
        assert OmegaConf.load(run.config) == config
        assert OmegaConf.load(run.overrides) == ["algo=grpo"]


def test_wandb_is_online_with_a_key_and_no_file_contains_the_key(config, monkeypatch):
    key = "0123456789abcdef" * 2
    monkeypatch.setenv("WANDB_API_KEY", key)
    with attempt(config) as (run, _):
        written = [path.read_text() for path in run.path.rglob("*") if path.is_file()]
    assert written and not any(key in text or "offline" in text for text in written)


def test_no_secret_of_the_environment_is_in_the_files_that_start_a_run(config, monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with attempt(config) as (run, _):
        assert {run.config, run.overrides} <= set(run.path.rglob("*"))
        assert files_with_a_canary(run.path) == []


def test_logger_settings_of_the_user_are_kept(config, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_DIR", "/mine")
    config.ray_kwargs.ray_init.runtime_env.env_vars = {"WANDB_MODE": "disabled"}
    with attempt(config):
        environment = config.ray_kwargs.ray_init.runtime_env.env_vars
        assert environment.WANDB_MODE == "disabled" and "TENSORBOARD_DIR" not in environment


def test_rejected_attempt_restores_the_directory(config):
    with pytest.raises(ConfigError, match="refused"), attempt(config, "first"):
        raise ConfigError("refused")
    assert not Path(config.trainer.default_local_dir).exists()

    with attempt(config, "first") as (run, _):
        run.log(1).touch()
    with pytest.raises(ConfigError, match="refused"), attempt(config, "second", resuming=True) as (_, number):
        assert number == 2
        raise ConfigError("refused")
    assert OmegaConf.load(run.overrides) == ["first"] and run.attempts() == [1]


def test_directory_in_use_or_not_empty_is_rejected(config):
    with attempt(config), pytest.raises(ConfigError, match=r"trainer\.default_local_dir=.*/run: "), attempt(config):
        pass
    with pytest.raises(ConfigError, match=r"trainer\.default_local_dir=.*/run: .*another folder"), attempt(config):
        pass


def test_directory_that_cannot_be_created_is_reported(config, tmp_path):
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


def test_all_processes_of_a_run_and_no_others_are_ended(monkeypatch):
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
    run.log(1).parent.mkdir(exist_ok=True)
    stub = tmp_path / "python_stub"
    stub.write_text(f"#!{sys.executable}\n{body}")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    seen = []
    launch.train(
        run,
        1,
        OmegaConf.create({}),
        on_step=lambda step, data: seen.append((step, data)),
        on_wait=seen.append,
        on_message=lambda *message: seen.append(message),
    )
    return seen


def test_the_log_is_not_written_through_a_link(tmp_path, monkeypatch):
    (theirs := tmp_path / "bashrc").write_text("precious")
    log = RunDirectory(tmp_path / "run").log(1)
    log.parent.mkdir(parents=True)
    log.symlink_to(theirs)
    run_with_job_stub(tmp_path, monkeypatch, "print('a line of the log')")
    assert theirs.read_text() == "precious" and log.read_text() == "a line of the log\n"


def messages(tmp_path, *entries):
    """Code of a stand-in for the training process that writes messages."""
    path = str(tmp_path / "run" / "messages" / "attempt_1.jsonl")
    written = f"from verl_gsd.run.messages import MessageWriter\nwriter = MessageWriter(pathlib.Path({path!r}))\n"
    return "import os, pathlib, signal, sys\n" + written + "".join(f"writer.write(*{entry!r})\n" for entry in entries)


def test_steps_are_reported_once_and_in_order(tmp_path, monkeypatch):
    metrics = tmp_path / "run" / "metrics" / "attempt_1.jsonl"
    body = f"open({str(metrics)!r}, 'w').write({(line(0, a=1) + line(1, a=2))!r})"
    assert run_with_job_stub(tmp_path, monkeypatch, body) == [(0, {"a": 1}), (1, {"a": 2})]


def test_only_complete_wait_lines_are_reported_and_once(tmp_path, monkeypatch):
    body = "print('Ray says much'); print('verl-gsd waits: another run trains'); print('verl-gsd waits: for m', end='')"
    assert run_with_job_stub(tmp_path, monkeypatch, body) == ["verl-gsd waits: another run trains"]


def test_error_of_a_failed_run_has_the_end_of_the_log(tmp_path, monkeypatch):
    with pytest.raises(launch.RunFailedError, match=r"(?s)exit code 1.*ValueError: the disk is full"):
        run_with_job_stub(tmp_path, monkeypatch, "raise ValueError('the disk is full')")


def test_error_of_a_failed_run_has_the_first_exception(tmp_path, monkeypatch):
    body = (
        "print('\\x1b[36m(Worker pid=7)\\x1b[0m ZeroDivisionError: the cause')\n"
        "for i in range(100): print('went on', i)\n"
        "raise RuntimeError('too many failed groups')"
    )
    with pytest.raises(
        launch.RunFailedError, match=r"(?s)exit code 1.*\(Worker pid=7\) ZeroDivisionError: the cause\n"
    ):
        run_with_job_stub(tmp_path, monkeypatch, body)


def test_notes_and_warnings_are_reported(tmp_path, monkeypatch):
    body = messages(tmp_path, ("note", "3 prompts are left out"), ("warning", "rewards fail"))
    assert run_with_job_stub(tmp_path, monkeypatch, body) == [
        ("note", "3 prompts are left out"),
        ("warning", "rewards fail"),
    ]


def test_stop_message_is_shown_with_the_log_of_the_failed_process(tmp_path, monkeypatch):
    body = messages(tmp_path, ("warning", "no response for 60 s"), ("stop", "vLLM's engine died: process id 77", 77))
    body += (
        "print('\x1b[36m(vLLMHttpServer pid=77)\x1b[0m loading')\n"
        "print('\x1b[36m(vLLMHttpServer pid=77)\x1b[0m (EngineCore pid=78) CUDA out of memory. Tried to allocate')\n"
        "print('\x1b[36m(TaskRunnerV1 pid=5)\x1b[0m KeyError: what followed')\n"
        "sys.exit(1)"
    )
    with pytest.raises(RunStoppedError) as raised:
        run_with_job_stub(tmp_path, monkeypatch, body)
    assert str(raised.value).splitlines() == [
        "vLLM's engine died: process id 77",
        f"likely cause: {likely_cause('CUDA out of memory')}",
        "last lines of process 77:",
        "loading",
        "CUDA out of memory. Tried to allocate",
    ]


def test_run_that_hangs_after_a_stop_message_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_STOPPING", 0.1)
    body = messages(tmp_path, ("stop", "vLLM's engine died")) + "signal.pause()"
    with pytest.raises(RunStoppedError, match=r"^vLLM's engine died$"):
        run_with_job_stub(tmp_path, monkeypatch, body)


@pytest.mark.parametrize(
    ("name", "ended"),
    [("SIGKILL", r"SIGKILL .*memory.*\n"), ("SIGSEGV", r"SIGSEGV\n")],
)
def test_signal_that_ended_the_process_is_reported(tmp_path, monkeypatch, name, ended):
    body = f"import os, signal\nprint('the last line', flush=True)\nos.kill(os.getpid(), signal.{name})"
    with pytest.raises(launch.RunFailedError, match=f"{ended}the last line$"):
        run_with_job_stub(tmp_path, monkeypatch, body)


def test_increase_of_the_kernels_kill_count_is_reported(tmp_path, monkeypatch):
    counts = iter((3, 5))
    monkeypatch.setattr(launch.memory_kills, "oom_kills", lambda: next(counts))
    with pytest.raises(
        launch.RunFailedError,
        match=r"SIGKILL\..* 2 processes ",
    ):
        run_with_job_stub(tmp_path, monkeypatch, "import os\nos.kill(os.getpid(), 9)")


def test_likely_cause_is_reported_and_lines_are_cut(tmp_path, monkeypatch):
    body = "print('step:1 - ' + 'actor/loss:0.1 - ' * 300)\nraise OSError(28, 'No space left on device')"
    with pytest.raises(launch.RunFailedError, match=r"exit code 1\nlikely cause: .*disk") as raised:
        run_with_job_stub(tmp_path, monkeypatch, body)
    assert max(map(len, str(raised.value).splitlines()[2:])) < 350


def test_launchers_folder_is_removed_however_the_run_ends(tmp_path, monkeypatch):
    """What a launcher that was killed has left goes at the next start (test_weight_sockets)."""
    name = f"import os, sys\nprint(os.environ[{forkserver.FOLDER!r}])\n"
    for end in ("", "sys.exit(1)", "os.kill(os.getpid(), 9)"):
        folder = tmp_path / f"end_{len(end)}"
        with suppress(launch.RunFailedError):
            run_with_job_stub(folder, monkeypatch, name + end)
        made = Path((folder / "run" / "logs" / "attempt_1.log").read_text().splitlines()[0])
        assert made.parent == Path("/tmp") and made.name.startswith("verl_gsd_run_") and not made.exists()


def test_rejection_is_a_config_error_without_the_rest_of_the_log(tmp_path, monkeypatch):
    from verl_gsd.run.job import EXIT_REJECTED, REJECTION_MARK

    body = f"import sys; print('noise'); print({REJECTION_MARK!r}); print('a.b=1: wrong'); sys.exit({EXIT_REJECTED})"
    with pytest.raises(ConfigError, match=r"^a\.b=1: wrong$"):
        run_with_job_stub(tmp_path, monkeypatch, body)


def job_of(tmp_path, digest):
    """verl-gsd's training process on RUN/config.yaml. It ends before it imports verl if it rejects the file."""
    code = f"import os; from verl_gsd.run import job; job.main({str(tmp_path / 'run' / 'config.yaml')!r}, {digest!r}, "
    return subprocess.run([sys.executable, "-c", f"{code}os.getppid())"], capture_output=True, text=True)


def test_a_config_that_somebody_changed_after_it_was_written_is_not_used(config, tmp_path):
    from verl_gsd.run import job

    with attempt(config) as (run, _):
        written = run.config.read_bytes()
        assert job.read_config(run.config, job.digest(to_yaml(config))) == config
    run.config.write_bytes(written + b"reward: {custom_reward_function: {path: theirs.py}}\n")
    done = job_of(tmp_path, job.digest(written))
    assert done.returncode == job.EXIT_REJECTED, done.stderr
    assert f"{run.config}: this file is not what verl-gsd has just written" in done.stdout.replace("\n", " ")
    assert "default_local_dir" in done.stdout


def test_the_training_process_gets_the_digest_of_the_config_and_not_of_the_file(tmp_path, monkeypatch):
    from verl_gsd.run.job import digest

    body = "import sys; print('\\n'.join(sys.argv))"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("theirs: 1\n")
    run_with_job_stub(tmp_path, monkeypatch, body)
    printed = RunDirectory(tmp_path / "run").log(1).read_text().splitlines()
    assert printed[-3:-1] == [str(tmp_path / "run" / "config.yaml"), digest(b"{}\n")]


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@as_root
@pytest.mark.parametrize("place", ["run", ""])
def test_a_run_does_not_start_in_a_folder_that_another_user_owns(config, tmp_path, place):
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / place, 65534, 65534)
    with pytest.raises(ConfigError, match=rf"default_local_dir=.*belongs to user id 65534.*trust={tmp_path}/run"):
        attempt(config).__enter__()
    assert not RunDirectory(tmp_path / "run").config.exists()
    with launch.new_attempt(config, [], resuming=False, trusted=True) as (run, _):
        assert run.config.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_run_does_not_start_in_a_folder_where_others_can_write(config, tmp_path, mode, monkeypatch):
    monkeypatch.setattr("verl_gsd.file_access.is_own_group", lambda group: False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(ConfigError, match=rf"other users can write {tmp_path}/run \(mode {mode:04o}\)"):
        attempt(config).__enter__()


def test_a_run_starts_below_a_sticky_folder_and_in_one_of_the_users_own_group(config, tmp_path, monkeypatch):
    monkeypatch.setattr("verl_gsd.file_access.is_own_group", lambda group: True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o775)
    tmp_path.chmod(0o1777)
    with attempt(config) as (run, _):
        assert run.config.exists()


def test_a_missing_folder_is_checked_by_those_above_it(tmp_path):
    trust.check_folder(tmp_path / "a" / "b")
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=rf"other users can write {tmp_path} .*trust={tmp_path}/a/b"):
        trust.check_folder(tmp_path / "a" / "b")


def test_words_that_somebody_else_wrote_meanwhile_are_not_signed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    trust.write_words(run, b"- algo=grpo\n")
    run.overrides.write_bytes(b"- algo=theirs\n")
    trust.sign(run, b"- algo=grpo\n")
    with pytest.raises(ConfigError, match="nothing shows that you started this run"):
        trust.stored_words(run, None, trusted=False)
    run.overrides.write_bytes(b"- algo=grpo\n")
    assert trust.stored_words(run, None, trusted=False) == ["algo=grpo"]
