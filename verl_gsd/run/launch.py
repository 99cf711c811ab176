"""Start a run in a process of its own, watch it, and leave nothing behind.

verl, Ray and vLLM print thousands of lines; they go to RUN/logs. Progress is read from the metrics file that verl's own
``file`` logger writes, and what the trainer tells the user from its file of messages. Whatever ends the run (its end,
an error, Ctrl-C, SIGTERM), every process that descends from it is ended: they all carry a mark in their environment,
which survives Ray's daemonising. A cluster that was already running does not carry it and is left alone.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
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
from verl_gsd.run import cluster_lock, job, lost_metrics, memory_kills
from verl_gsd.run.causes import likely_cause
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
from verl_gsd.run.compose import write_yaml
from verl_gsd.run.messages import Kind, Message, MessageReader, RunStoppedError
from verl_gsd.run.run_log import first_exception, last_lines, last_lines_of
from verl_gsd.rundir import MetricsReader, RunDirectory
from verl_gsd.writing import atomic_write

MARK = "VERL_GSD_RUN_MARK"
#: Seconds between two looks at the metrics file, and for processes to end by themselves before they are killed.
_LOOK_INTERVAL = 0.5
_GRACE = 10.0
#: A disk with fewer free bytes is full: a step's records and a line of the log still fit, a checkpoint does not.
_FULL = 4 << 20
#: Seconds that a trainer has to end by itself once it has said why the run stops. It may wait for a dead process.
_STOPPING = 15.0

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Where verl's file logger writes. Ours, whatever a user set: progress and result are read from it.
_METRICS = "VERL_FILE_LOGGER_PATH"
#: Which attempt the trainer's records belong to.
_ATTEMPT = "VERL_GSD_ATTEMPT"

#: Lines of a log that are shown, of the run and of the process that is to blame; and lines searched for a cause.
_SHOWN, _SHOWN_OF_PROCESS, _SEARCHED = 25, 15, 2_000

OnStep = Callable[[int, dict[str, float]], None]
OnMessage = Callable[[Kind, str], None]


class RunFailedError(RuntimeError):
    """The run's process ended with an error; the message has the likely cause and the last lines of its log."""


@contextmanager
def attempt_in(config: DictConfig, overrides: list[str], resuming: bool) -> Iterator[tuple[RunDirectory, int]]:
    """Make the run directory, or the next attempt in it, for this process alone.

    Points verl's loggers into it and writes the config down. An attempt that verl refuses (``ConfigError`` inside the
    context) leaves everything as it was. A resume removes what a killed attempt left half written. If the attempt
    resumes a checkpoint of this run other than the newest, that checkpoint is the newest from here on: the steps after
    it are made again.

    Raises:
        ConfigError: the directory cannot be written, or another process is training in it.
    """
    run = RunDirectory(Path(config.trainer.default_local_dir))
    lock = FileLock(run.lock, blocking=False)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ConfigError(f"trainer.default_local_dir={run.path}: another process is training in it") from None
    except OSError as error:
        raise ConfigError(f"trainer.default_local_dir={run.path}: {error.strerror}. Write another folder.") from error
    with lock:
        if not resuming:
            require_unused(run)
        attempt = max(run.attempts(), default=0) + 1
        files = (run.config, run.overrides, run.marker)
        before = {path: path.read_bytes() for path in files if path.is_file()}
        for folder in (run.metrics(attempt).parent, run.log(attempt).parent):
            folder.mkdir(exist_ok=True)
        _add_environment(config, _logger_environment(run, attempt))
        write_yaml(config, run.config)
        write_yaml(overrides, run.overrides)
        if resuming:
            _remove_half_written(run)
            lost_metrics.restore(run)
            _announce(run, checkpoint_to_resume(config))
        try:
            yield run, attempt
        except ConfigError:
            if before:
                for path, content in before.items():
                    path.write_bytes(content)
                run.log(attempt).unlink(missing_ok=True)
            else:
                shutil.rmtree(run.path)  # made above
            raise
        finally:
            if run.path.is_dir():
                lost_metrics.restore(run)


def _announce(run: RunDirectory, checkpoint: Path | None) -> None:
    """Make ``checkpoint`` the run's newest in verl's marker, which may be damaged or name a later step."""
    step = None if checkpoint is None or checkpoint.parent != run.path else step_of(checkpoint)
    if step is not None and (run.marker_is_damaged() or run.latest_checkpoint() != step):
        with atomic_write(run.marker) as path:
            path.write_text(str(step))


def _remove_half_written(run: RunDirectory) -> None:
    """What writers of ours that were killed have left: they write beside a file and rename."""
    names = ("*.yaml.tmp", f"{run.marker.name}.tmp", "records/attempt_*/*.tmp", "global_step_*/gsd/*.tmp")
    for path in (path for name in names for path in run.path.glob(name)):
        path.unlink(missing_ok=True)
    for folder in run.path.glob("global_step_*/gsd.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def require_unused(run: RunDirectory) -> None:
    """Raise a ConfigError if something is in the folder: verl would go on with it, and say nothing."""
    if run.is_used():
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: not empty, and verl would go on with what is in it. Write "
            f"resume={run.path} to do so, or another folder."
        )


def train(
    run: RunDirectory, attempt: int, on_step: OnStep, on_wait: Callable[[str], None], on_message: OnMessage
) -> None:
    """Run RUN/config.yaml to its end.

    Args:
        on_step: called for every metrics line as it is written.
        on_wait: called with what a run on a cluster says that it waits for.
        on_message: called with the trainer's notes and warnings.

    Raises:
        ConfigError: verl refuses the config; Ray was not started.
        RunStoppedError: the trainer stopped the run, and said why.
        RunFailedError: the process ended with an error.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    mark, kills = uuid.uuid4().hex, memory_kills.oom_kills()
    metrics, messages = MetricsReader(run.metrics(attempt), skip_damaged=True), MessageReader(run.messages(attempt))
    stops: list[Message] = []

    def report() -> None:
        for text in _said(reading):
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
        run.log(attempt).open("wb") as log,
        run.log(attempt).open("rb") as reading,
        private_folders.run_folder() as folder,  # of the run's process, which may be killed before it removes it
        _nothing_left_behind(mark),
    ):
        private_folders.remove_unused()
        process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.run.job", str(run.config), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark, forkserver.FOLDER: folder},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
        )
        last_look = math.inf
        while time.monotonic() < last_look:
            try:
                process.wait(_LOOK_INTERVAL)
            except subprocess.TimeoutExpired:
                report()
                if stops:
                    last_look = min(last_look, time.monotonic() + _STOPPING)
            else:
                break
        report()
        code = process.poll()
    if stops and code != 0:
        raise RunStoppedError(_why_stopped(stops[-1], run.log(attempt)))
    if code == job.REFUSED:
        raise ConfigError(run.log(attempt).read_text(encoding="utf-8").partition(job.REFUSAL)[2].strip())
    if code != 0:
        assert code is not None  # only a stop ends the loop before the process has ended
        raise RunFailedError(_why_failed(code, run.log(attempt), memory_kills.killed_since(kills)))


def _said(log: BinaryIO) -> Iterator[str]:
    """Of the lines completed since the last call those that are for whoever waits."""
    for line in iter(log.readline, b""):
        if not line.endswith(b"\n"):
            log.seek(-len(line), os.SEEK_CUR)
            return
        if line.startswith(cluster_lock.WAITING.encode()):
            yield line.decode(errors="replace").strip()


def _add_environment(config: DictConfig, environment: dict[str, str]) -> None:
    """Environment of all Ray workers. What a user set, in the config or in this environment, stays."""
    runtime_env = config.ray_kwargs.ray_init.runtime_env
    given = OmegaConf.to_container(runtime_env).get("env_vars") or {}
    kept = {name: value for name, value in environment.items() if name not in os.environ}
    with open_dict(config):
        runtime_env.env_vars = kept | given | {name: environment[name] for name in (_METRICS, _ATTEMPT)}


def _logger_environment(run: RunDirectory, attempt: int) -> dict[str, str]:
    """Where verl's loggers write. Paths alone: verl prints these."""
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
    """Whether nobody is logged in to wandb, so that its files stay in the run directory."""
    if os.environ.get("WANDB_API_KEY"):
        return False
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return not (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that closes, end a run as Ctrl-C does; a second one changes nothing."""

    def interrupt(signum: int, frame: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    with _handled(interrupt, *_ENDING):
        yield


@contextmanager
def _nothing_left_behind(mark: str) -> Iterator[None]:
    try:
        yield
    finally:
        with _handled(signal.SIG_IGN, *_ENDING):  # an impatient Ctrl-C must not leave half of it running
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
    """End every process of the run that carries ``mark``: SIGTERM, then SIGKILL for those that stay."""
    while processes := _family(mark):
        for process in processes:
            _quietly(process.terminate)
        _, alive = psutil.wait_procs(processes, timeout=_GRACE)
        for process in alive:
            _quietly(process.kill)
        psutil.wait_procs(alive, timeout=_GRACE)


def _family(mark: str) -> set[psutil.Process]:
    """Processes that carry ``mark``, and their descendants: a process that sets its title overwrites its mark."""
    family: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                family |= {process, *process.children(recursive=True)}
        except psutil.Error:  # gone, or another user's
            continue
    return family


def _quietly(action: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        action()


def _why_stopped(stop: Message, log: Path) -> str:
    """What the trainer said, and what the process that it names printed last."""
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
    """How the run's process ended, the likely cause, the first exception in its log, and the log's last lines.

    verl often continues for long after what went wrong, so that the last lines alone do not explain it.
    """
    parts = [_how_it_ended(code, killed)]
    if cause := _full_disk(log) or likely_cause("\n".join(last_lines(log, _SEARCHED))):
        parts.append(f"likely cause: {cause}")
    if first := first_exception(log):
        parts += [f"first exception: {first}", "..."]
    return "\n".join([*parts, *last_lines(log, _SHOWN)])


def _full_disk(log: Path) -> str | None:
    """One sentence if the run's disk is full. Neither the log nor the trainer's messages can then tell."""
    free = shutil.disk_usage(log.parent).free
    if free >= _FULL:
        return None
    return f"The disk of {log.parent.parent} is full ({free} bytes are free). Free some before you resume the run."


def _how_it_ended(code: int, killed: str | None) -> str:
    if code >= 0:
        return f"exit code {code}" + (f". {killed}" if killed else "")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    guess = " (out of memory?)" if name == "SIGKILL" and not killed else ""
    return f"the run's process was killed by {name}{guess}" + (f". {killed}" if killed else "")
