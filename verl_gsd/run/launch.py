"""Launches a run in a separate process, reports its progress, and ends all its processes afterwards.

verl, Ray and vLLM print thousands of lines, which go to RUN/logs. The launcher reads progress from the metrics file of
verl's ``file`` logger, and the trainer's notes and warnings from RUN/messages.

However the run ends (by itself, with an error, by Ctrl-C or SIGTERM), the launcher ends all processes that it started.
It finds them by a mark in their environment, which they inherit even when Ray daemonizes them. A Ray cluster that was
already running does not have the mark and is left alone.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import private_folders
from verl_gsd.checkpoints import step_of
from verl_gsd.cpu import forkserver
from verl_gsd.errors import ConfigError
from verl_gsd.judge.cache import TRUSTED
from verl_gsd.python_commands import module_command
from verl_gsd.run import cluster_lock, compile_cache, job, lost_metrics, memory_kills, trust
from verl_gsd.run.causes import likely_cause
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.run.compose import to_yaml, write_yaml
from verl_gsd.run.messages import Kind, Message, MessageReader, RunStoppedError
from verl_gsd.run.run_log import first_exception, last_lines, last_lines_of
from verl_gsd.run.written_folders import create_written_folders
from verl_gsd.rundir import MetricsReader, RunDirectory
from verl_gsd.writing import atomic_write, open_new

MARK = "VERL_GSD_RUN_MARK"
#: Seconds between two reads of the metrics file.
_POLL_INTERVAL = 0.5
#: Seconds that processes get to end after SIGTERM, before SIGKILL.
_GRACE = 10.0
#: A disk with fewer free bytes counts as full: it has room for records and log lines, but not for a checkpoint.
_FULL = 4 << 20
#: Seconds that a trainer gets to end after it wrote why the run stops. It may be waiting for a dead process.
_STOPPING = 15.0

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The path of verl's file logger. It overrides the user's value, because the launcher reads progress from this file.
_METRICS = "VERL_FILE_LOGGER_PATH"
#: The number of the attempt, which the trainer needs for its records.
_ATTEMPT = "VERL_GSD_ATTEMPT"

#: Numbers of log lines: shown of the run, shown of the failed process, and searched for a cause.
_SHOWN, _SHOWN_OF_PROCESS, _SEARCHED = 25, 15, 2_000

OnStep = Callable[[int, dict[str, float]], None]
OnMessage = Callable[[Kind, str], None]


class RunFailedError(RuntimeError):
    """The run's process ended with an error. The message has the likely cause and the last lines of the log."""


@contextmanager
def new_attempt(
    config: DictConfig, overrides: list[str], resuming: bool, *, trusted: bool = False
) -> Iterator[tuple[RunDirectory, int]]:
    """Create the run directory, or the next attempt in an existing one, and lock it for this process.

    This sets the paths of verl's loggers and saves the config. If verl rejects the config (a ``ConfigError`` inside the
    context), or a file cannot be written, the directory is restored to its previous state. A resume removes files that
    a killed attempt left half-written. If it starts from a checkpoint of this run that is not the newest, this
    checkpoint becomes the newest, and the later steps are trained again.

    Args:
        trusted: the user trusts everyone who can write or replace the folder, with the word ``trust=``.

    Yields:
        The run directory and the number of the attempt.

    Raises:
        ConfigError: the directory cannot be written, another process is training in it, or, unless ``trusted``, other
            users can write or replace it.
    """
    run = RunDirectory(Path(config.trainer.default_local_dir))
    with locked(run):
        # Again, because another user could have created the folder in the meantime, or a link in its place.
        if not trusted and trust.check_folder(run.path) != run.path:
            raise ConfigError(
                f"trainer.default_local_dir={run.path}: the path leads through a symbolic link. Who can change the "
                "link can change the run while it trains. Set "
                f"{shlex.quote(f'trainer.default_local_dir={run.path.resolve()}')}."
            )
        if not trusted:
            create_written_folders(config, run.path)
        if not resuming:
            require_unused(run)
        attempt = max(run.attempts(), default=0) + 1
        files = (run.config, run.overrides, run.signature, run.marker)
        before = {path: path.read_bytes() for path in files if path.is_file()}
        try:
            _prepare(run, attempt, config, overrides, resuming)
            yield run, attempt
        except ConfigError:
            if before:
                _restore(run, before)
                run.log(attempt).unlink(missing_ok=True)
                run.attempt_config(attempt).unlink(missing_ok=True)
            else:
                shutil.rmtree(run.path)  # created above
            raise
        finally:
            if run.path.is_dir():
                lost_metrics.restore(run)


def _prepare(run: RunDirectory, attempt: int, config: DictConfig, overrides: list[str], resuming: bool) -> None:
    """Write the files of an attempt.

    Raises:
        ConfigError: a file cannot be written.
    """
    try:
        for folder in (run.metrics(attempt).parent, run.log(attempt).parent, run.attempt_config(attempt).parent):
            folder.mkdir(exist_ok=True)
        _add_environment(config, _logger_environment(run, attempt))
        write_yaml(config, run.config)
        write_yaml(config, run.attempt_config(attempt))
        trust.write_words(run, to_yaml(overrides))
        if resuming:
            _remove_partial_files(run)
            lost_metrics.restore(run)
            _set_newest_checkpoint(run, checkpoint_to_resume(config))
    except OSError as error:
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: cannot be written ({error.strerror}). Free some space, or correct "
            "the permissions of this folder and its files."
        ) from error


def _restore(run: RunDirectory, before: dict[Path, bytes]) -> None:
    """Write the earlier contents of files again, as far as the disk has space.

    While the words are replaced, the signature is valid for both versions of them (``trust.write_words``).
    """
    with suppress(OSError):
        if run.signature in before:
            _write(run.signature, before[run.signature] + run.signature.read_bytes())
        for path, content in before.items():
            _write(path, content)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def locked(run: RunDirectory, *, remedy: str = "Wait until that run ends, or use another folder.") -> Iterator[None]:
    """Create the run's folder if it does not exist, and lock it for this process.

    Args:
        remedy: what the user can do if another process has the lock.

    Raises:
        ConfigError: the folder cannot be written, or another process is training in it.
    """
    lock = FileLock(run.lock, blocking=False)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: another process is training in this folder. {remedy}"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: {error.strerror}. Set it to another folder."
        ) from error
    with lock:
        yield


def _set_newest_checkpoint(run: RunDirectory, checkpoint: Path | None) -> None:
    """Write ``checkpoint`` as the newest into verl's marker file, which may be damaged or name a later step."""
    step = None if checkpoint is None or checkpoint.parent != run.path else step_of(checkpoint)
    if step is not None and (run.marker_is_damaged() or run.latest_checkpoint() != step):
        with atomic_write(run.marker) as path:
            path.write_text(str(step))


def _remove_partial_files(run: RunDirectory) -> None:
    """Remove temporary files of killed processes. Our writers create a temporary file and then rename it."""
    names = ["*.yaml*.tmp", f"{run.marker.name}*.tmp", f"{run.signature.name}.*.tmp"]
    names += ["records/attempt_*/*.tmp", "global_step_*/gsd/*.tmp"]
    for path in (path for name in names for path in run.path.glob(name)):
        path.unlink(missing_ok=True)
    for folder in run.path.glob("global_step_*/gsd.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def require_unused(run: RunDirectory) -> None:
    """Raise a ConfigError if the folder contains a run, which verl would resume without telling the user."""
    if run.is_used():
        if run.latest_checkpoint() is None:
            raise ConfigError(
                f"trainer.default_local_dir={run.path}: this folder is not empty, and its run saved no checkpoint from "
                "which it could be resumed. Set trainer.default_local_dir to another folder."
            )
        if not run.overrides.exists():
            raise ConfigError(
                f"trainer.default_local_dir={run.path}: verl's own command wrote the run in this folder, and resume= "
                "cannot go on with it. Set trainer.default_local_dir to another folder. To begin with its weights, set "
                "trainer.resume_mode=resume_path and "
                f"trainer.resume_from_path={run.checkpoint(run.latest_checkpoint() or 0)}."
            )
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: this folder is not empty, and verl would resume the run in it. Set "
            f"resume={run.path} to resume it, or set trainer.default_local_dir to another folder."
        )


def train(
    run: RunDirectory,
    attempt: int,
    config: DictConfig,
    on_step: OnStep,
    on_wait: Callable[[str], None],
    on_message: OnMessage,
) -> None:
    """Run RUN/config.yaml until it ends.

    Args:
        config: what ``new_attempt`` wrote to that file. A file with other content is rejected.
        on_step: called with step and metrics for every line of the metrics file.
        on_wait: called with a sentence when a run on a cluster starts to wait for something.
        on_message: called with the trainer's notes and warnings.

    Raises:
        ConfigError: verl rejected the config, somebody has changed the file, or other users can write where torch
            keeps compiled code. Ray was not started.
        RunStoppedError: the trainer stopped the run. The message says why.
        RunFailedError: the process ended with an error.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    compile_cache.protect()
    mark, kills = uuid.uuid4().hex, memory_kills.oom_kills()
    metrics, messages = MetricsReader(run.metrics(attempt), skip_damaged=True), MessageReader(run.messages(attempt))
    stops: list[Message] = []

    def report() -> None:
        for text in _new_wait_lines(reading):
            on_wait(text)
        for step, data in metrics.new():
            on_step(step, data)
        for message in messages.new():
            if message.kind == "stop":
                stops.append(message)
            else:
                on_message(message.kind, message.text)

    with (
        signals_interrupt(),
        open_new(run.log(attempt)) as log,
        run.log(attempt).open("rb") as reading,
        private_folders.run_folder() as folder,  # of the run's process, which may be killed before it removes it
        _all_processes_ended(mark),
    ):
        private_folders.remove_unused()
        process = subprocess.Popen(
            module_command("verl_gsd.run.job", str(run.config), job.digest(to_yaml(config)), str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark, forkserver.FOLDER: folder},
            start_new_session=True,  # Ctrl-C then reaches only this process, which ends the others in order
        )
        deadline = math.inf
        while time.monotonic() < deadline:
            try:
                process.wait(_POLL_INTERVAL)
            except subprocess.TimeoutExpired:
                report()
                if stops:
                    deadline = min(deadline, time.monotonic() + _STOPPING)
            else:
                break
        report()
        code = process.poll()
    if stops and code != 0:
        raise RunStoppedError(_why_stopped(stops[-1], run.log(attempt)))
    if code == job.EXIT_REJECTED:
        raise ConfigError(run.log(attempt).read_text(encoding="utf-8").partition(job.REJECTION_MARK)[2].strip())
    if code != 0:
        assert code is not None  # the loop ends before the process only after a stop message
        raise RunFailedError(_why_failed(code, run.log(attempt), memory_kills.killed_since(kills)))


def _new_wait_lines(log: BinaryIO) -> Iterator[str]:
    """The lines since the last call that tell the user what the run waits for."""
    for line in iter(log.readline, b""):
        if not line.endswith(b"\n"):
            log.seek(-len(line), os.SEEK_CUR)
            return
        if line.startswith(cluster_lock.WAITING.encode()):
            yield line.decode(errors="replace").strip()


def _add_environment(config: DictConfig, environment: dict[str, str]) -> None:
    """Add to the environment of all Ray workers, without overriding what the user set in the config or environment."""
    runtime_env = config.ray_kwargs.ray_init.runtime_env
    from_config = OmegaConf.to_container(runtime_env).get("env_vars") or {}
    defaults = {name: value for name, value in environment.items() if name not in os.environ}
    if TRUSTED in os.environ:  # a cluster that was already running does not have it
        defaults[TRUSTED] = os.environ[TRUSTED]
    with open_dict(config):
        runtime_env.env_vars = defaults | from_config | {name: environment[name] for name in (_METRICS, _ATTEMPT)}


def _logger_environment(run: RunDirectory, attempt: int) -> dict[str, str]:
    """Where verl's loggers write. This must not contain secrets, because verl prints it."""
    environment = {
        _METRICS: str(run.metrics(attempt)),
        _ATTEMPT: str(attempt),
        "TENSORBOARD_DIR": str(run.tensorboard),
        "WANDB_DIR": str(run.path),
    }
    if wandb_is_offline():
        environment["WANDB_MODE"] = "offline"
    return environment


def wandb_is_offline() -> bool:
    """Whether the user is not logged in to wandb. Its files then stay in the run directory."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return not (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt as Ctrl-C does. Later signals are ignored."""

    def interrupt(signum: int, frame: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled(interrupt, *_ENDING):
        yield


@contextmanager
def _all_processes_ended(mark: str) -> Iterator[None]:
    """On exit, end all processes with ``mark`` and remove the folders that they used."""
    try:
        yield
    finally:
        with _handled(signal.SIG_IGN, *_ENDING):  # a second Ctrl-C must not leave processes running
            end_marked(mark)
            private_folders.remove_unused()


@contextmanager
def _handled(handler: Any, *signals: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_marked(mark: str) -> None:
    """End all processes with ``mark`` and their descendants, with SIGTERM and then SIGKILL."""
    while processes := _marked_processes(mark):
        for process in processes:
            _ignore_ended(process.terminate)
        _, alive = psutil.wait_procs(processes, timeout=_GRACE)
        for process in alive:
            _ignore_ended(process.kill)
        psutil.wait_procs(alive, timeout=_GRACE)


def _marked_processes(mark: str) -> set[psutil.Process]:
    """Processes with ``mark`` in their environment, and their descendants.

    Descendants are needed because a process that sets its title can overwrite its environment.
    """
    processes: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                processes |= {process, *process.children(recursive=True)}
        except psutil.Error:  # it ended, or it belongs to another user
            continue
    return processes


def _ignore_ended(action: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        action()


def _why_stopped(stop: Message, log: Path) -> str:
    """The trainer's message, and the last lines printed by the process that the message is about."""
    if stop.pid is None:
        return stop.text
    lines = last_lines_of(log, stop.pid, _SEARCHED)
    parts = [stop.text]
    cause = likely_cause("\n".join(lines))
    if cause and cause not in stop.text:
        parts.append(f"likely cause: {cause}")
    if lines:
        parts += [f"last lines of process {stop.pid}:", *lines[-_SHOWN_OF_PROCESS:]]
    return "\n".join(parts)


def _why_failed(code: int, log: Path, killed: str | None) -> str:
    """How the run's process ended, the likely cause, the first exception in the log, and the last lines of the log.

    verl often continues for a long time after an error, so the last lines alone may not explain the failure.
    """
    parts = [_exit_status(code, killed)]
    if cause := _full_disk(log) or likely_cause("\n".join(last_lines(log, _SEARCHED))):
        parts.append(f"likely cause: {cause}")
    if first := first_exception(log):
        parts += [f"first exception: {first}", "..."]
    return "\n".join([*parts, *last_lines(log, _SHOWN)])


def _full_disk(log: Path) -> str | None:
    """A sentence if the run's disk is full. In that case the log and the trainer's messages may be incomplete."""
    free = shutil.disk_usage(log.parent).free
    if free >= _FULL:
        return None
    return f"The disk of {log.parent.parent} is full ({free} bytes are free). Free some space, then resume the run."


def _exit_status(code: int, killed: str | None) -> str:
    if code >= 0:
        return f"exit code {code}" + (f". {killed}" if killed else "")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    guess = " (out of memory?)" if name == "SIGKILL" and not killed else ""
    return f"the run's process was killed by {name}{guess}" + (f". {killed}" if killed else "")
