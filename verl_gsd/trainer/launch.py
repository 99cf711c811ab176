"""Start a run in a process of its own, watch it, and leave nothing behind.

verl, Ray and vLLM print thousands of lines; they go to RUN/logs. Progress is read from the metrics file that verl's own
``file`` logger writes. Whatever ends the run (its end, an error, Ctrl-C, SIGTERM), every process that descends from it
is ended: they all carry a mark in their environment, which survives Ray's daemonising. A cluster that was already
running does not carry it and is left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.rundir import RunDirectory, read_metrics
from verl_gsd.trainer import job
from verl_gsd.trainer.config import ConfigError, write_yaml

MARK = "VERL_GSD_RUN_MARK"
#: Seconds between two looks at the metrics file, and for processes to end by themselves before they are killed.
_LOOK_INTERVAL = 0.5
_GRACE = 10.0

OnStep = Callable[[int, dict[str, float]], None]


class RunFailedError(RuntimeError):
    """The run's process ended with an error; the message ends with the last lines of its log."""


def new_attempt(config: DictConfig, overrides: list[str]) -> tuple[RunDirectory, int]:
    """Make the run directory (or the next attempt in it), point verl's loggers into it, and write the config down."""
    run = RunDirectory(Path(config.trainer.default_local_dir))
    attempt = max(run.attempts(), default=0) + 1
    for folder in (run.metrics(attempt).parent, run.log(attempt).parent):
        folder.mkdir(parents=True, exist_ok=True)
    with open_dict(config):
        OmegaConf.update(config, "ray_kwargs.ray_init.runtime_env.env_vars", _logger_environment(run, attempt))
    write_yaml(config, run.config)
    write_yaml(overrides, run.overrides)
    return run, attempt


def forget(run: RunDirectory, attempt: int) -> None:
    """Undo ``new_attempt`` for an attempt that was refused before anything ran."""
    if attempt == 1:
        shutil.rmtree(run.path)
    else:
        run.log(attempt).unlink()


def train(run: RunDirectory, attempt: int, on_step: OnStep) -> None:
    """Run RUN/config.yaml to its end, calling ``on_step`` for every metrics line as it is written.

    Raises:
        ConfigError: verl refuses the config; Ray was not started.
        RunFailedError: the process ended with an error.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    mark = uuid.uuid4().hex
    seen = 0

    def report() -> None:
        nonlocal seen
        for step, data in list(read_metrics(run.metrics(attempt)))[seen:]:
            on_step(step, data)
            seen += 1

    with _sigterm_interrupts(), run.log(attempt).open("wb") as log, _nothing_left_behind(mark):
        process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.trainer.job", str(run.config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark},
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
        raise RunFailedError(f"exit code {process.returncode}\n{_tail(run.log(attempt))}")


def _logger_environment(run: RunDirectory, attempt: int) -> dict[str, str]:
    """Where verl's loggers write, for Ray workers wherever they are. Paths alone: verl prints these."""
    environment = {
        "VERL_FILE_LOGGER_PATH": str(run.metrics(attempt)),
        "TENSORBOARD_DIR": str(run.tensorboard),
        "WANDB_DIR": str(run.path),
    }
    if "WANDB_MODE" not in os.environ and not _wandb_logged_in():
        environment["WANDB_MODE"] = "offline"
    return environment


def _wandb_logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _nothing_left_behind(mark: str) -> Iterator[None]:
    try:
        yield
    finally:
        end_marked(mark)


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


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
