"""Start a run in a process of its own, watch it, and leave nothing behind.

verl, Ray and vLLM print thousands of lines; they go to RUN/logs. Progress is read from the metrics file that verl's own
``file`` logger writes. Whatever ends the run (its end, an error, Ctrl-C, SIGTERM), every process that descends from it
is ended: they all carry a mark in their environment, which survives Ray's daemonising. A cluster that was already
running does not carry it and is left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.rundir import MetricsReader, RunDirectory
from verl_gsd.trainer import cluster, forkserver, job, weight_sockets
from verl_gsd.trainer.config import ConfigError, write_yaml

MARK = "VERL_GSD_RUN_MARK"
#: Seconds between two looks at the metrics file, and for processes to end by themselves before they are killed.
_LOOK_INTERVAL = 0.5
_GRACE = 10.0

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Where verl's file logger writes. Ours, whatever a user set: progress and result are read from it.
_METRICS = "VERL_FILE_LOGGER_PATH"
#: Which attempt the trainer's records belong to.
_ATTEMPT = "VERL_GSD_ATTEMPT"

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^.*\b\w+(Error|Exception): .+$", re.MULTILINE)

OnStep = Callable[[int, dict[str, float]], None]


class RunFailedError(RuntimeError):
    """The run's process ended with an error; the message has the first exception and the last lines of its log."""


@contextmanager
def attempt_in(config: DictConfig, overrides: list[str], resuming: bool) -> Iterator[tuple[RunDirectory, int]]:
    """Make the run directory, or the next attempt in it, for this process alone.

    Points verl's loggers into it and writes the config down. An attempt that verl refuses (``ConfigError`` inside the
    context) leaves everything as it was.

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
        before = {path: path.read_bytes() for path in (run.config, run.overrides) if path.is_file()}
        for folder in (run.metrics(attempt).parent, run.log(attempt).parent):
            folder.mkdir(exist_ok=True)
        _add_environment(config, _logger_environment(run, attempt))
        write_yaml(config, run.config)
        write_yaml(overrides, run.overrides)
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


def require_unused(run: RunDirectory) -> None:
    """Raise a ConfigError if something is in the folder: verl would go on with it, and say nothing."""
    if run.is_used():
        raise ConfigError(
            f"trainer.default_local_dir={run.path}: not empty, and verl would go on with what is in it. Write "
            f"resume={run.path} to do so, or another folder."
        )


def train(run: RunDirectory, attempt: int, on_step: OnStep, on_wait: Callable[[str], None]) -> None:
    """Run RUN/config.yaml to its end, calling ``on_step`` for every metrics line as it is written, and ``on_wait`` with
    what a run on a cluster says that it waits for.

    Raises:
        ConfigError: verl refuses the config; Ray was not started.
        RunFailedError: the process ended with an error.
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP.
    """
    mark = uuid.uuid4().hex
    metrics = MetricsReader(run.metrics(attempt))

    def report() -> None:
        for text in _said(reading):
            on_wait(text)
        for step, data in metrics.new():
            on_step(step, data)

    with (
        signals_interrupt(),
        run.log(attempt).open("wb") as log,
        run.log(attempt).open("rb") as reading,
        # Of the run's process, which may be killed before it removes it; short, for a socket's path.
        tempfile.TemporaryDirectory(prefix="verl_gsd_", dir="/tmp") as folder,
        _nothing_left_behind(mark),
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.trainer.job", str(run.config), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark, forkserver.FOLDER: folder},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
        )
        while True:
            try:
                process.wait(_LOOK_INTERVAL)
            except subprocess.TimeoutExpired:
                report()
            else:
                break
        report()
    if process.returncode == job.REFUSED:
        raise ConfigError(run.log(attempt).read_text(encoding="utf-8").partition(job.REFUSAL)[2].strip())
    if process.returncode != 0:
        raise RunFailedError(f"exit code {process.returncode}\n{_what_happened(run.log(attempt))}")


def _said(log: BinaryIO) -> Iterator[str]:
    """Of the lines completed since the last call those that are for whoever waits."""
    for line in iter(log.readline, b""):
        if not line.endswith(b"\n"):
            log.seek(-len(line), os.SEEK_CUR)
            return
        if line.startswith(cluster.WAITING.encode()):
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
            weight_sockets.remove_unused()


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


def _what_happened(log: Path, lines: int = 25) -> str:
    """The first exception a log names and its last lines: verl often goes on for long after what went wrong."""
    text = _COLOURS.sub("", log.read_text(encoding="utf-8", errors="replace"))
    first = _EXCEPTION.search(text)
    heading = f"first exception: {first[0].strip()}\n...\n" if first else ""
    return heading + "\n".join(text.splitlines()[-lines:])
