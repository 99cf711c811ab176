"""Trains runs of the laboratory in child processes: one process and one core per run.

The parent has imported verl and forks a process for every run. A fork takes 0.03 s; a spawned process takes 9 to 11 s,
because it imports verl itself. With a process of its own, every run starts from the same state, whatever ran before it,
and a run that is killed takes no other one with it. In a pool, verl's process group and global random states would stay
from one run to the next. The parent must not have trained itself: a fork of a process group's threads would hang.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from omegaconf import DictConfig

from verl_gsd.cpu.forkserver import die_with_parent
from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.seeds import check_same_line, is_finished
from verl_gsd.lab.training.sources import write_sources
from verl_gsd.run.cgroups import cpu_quota
from verl_gsd.run.compose import write_yaml
from verl_gsd.run.launch import locked
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.rundir import RunDirectory
from verl_gsd.writing import open_new

#: What to do if another command trains the same run. Later, --seeds skips the seeds that the other one has finished.
_WAIT = "Wait until it ends and run this command again, or use another folder (with --seeds: another --label)."
#: Called with the step's number and its metrics.
OnStep = Callable[[int, Mapping[str, float]], None]
#: Trains a resolved config to its last step.
Train = Callable[[DictConfig, OnStep], None]


@dataclass(frozen=True, eq=False)
class LabRun:
    """A run to train.

    Attributes:
        name: for messages.
        config: the resolved config.
        words: the command line, for RUN/overrides.yaml.
    """

    name: str
    config: DictConfig
    words: Sequence[str]

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(Path(self.config.trainer.default_local_dir))


def cores() -> int:
    """The number of cores that this process may use: those that it may run on, or fewer if a container limits its time.

    A limit of 1.5 cores counts as 2: two runs then use all of it, and one run would not.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else min(allowed, math.ceil(quota))


def train_config(config: DictConfig, on_step: OnStep) -> None:
    """Train a config in this process. Its folder exists, and has the command line."""
    from transformers import set_seed

    from verl_gsd.lab.training.trainer import LabTrainer

    # An extension may use the global random states. Each seed then has its own, whatever the parent process did.
    set_seed(config.actor_rollout_ref.rollout.seed or 0)
    trainer = LabTrainer(config, on_step)
    run = RunDirectory(Path(config.trainer.default_local_dir))
    write_yaml(config, run.config)  # with the number of steps
    write_sources(run, config)
    trainer.train()


def train_runs(
    runs: Sequence[LabRun],
    *,
    processes: int,
    on_step: Callable[[LabRun, int, Mapping[str, float]], None],
    on_end: Callable[[LabRun, str | None], None],
    train: Train = train_config,
) -> None:
    """Train all runs, and several of them at a time. When this function ends in any way, so have its processes.

    A run whose folder has an unfinished run of the same line starts from its first step.

    Args:
        processes: the largest number of runs at a time.
        on_end: called with the reason why a run failed; None if it has finished.
    """
    context = multiprocessing.get_context("fork")
    waiting, active = deque(runs), dict[Connection, tuple[LabRun, BaseProcess]]()
    errors: dict[str, str] = {}
    try:
        while waiting or active:
            while waiting and len(active) < processes:
                run = waiting.popleft()
                receiving, sending = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_child, args=(run, sending, os.getpid(), train))
                process.start()
                sending.close()  # the child has the only end, so that its death closes the pipe
                active[receiving] = run, process
            for ready in wait(list(active)):
                assert isinstance(ready, Connection)
                run, process = active[ready]
                try:
                    step, content = ready.recv()
                except EOFError:
                    process.join()
                    del active[ready]
                    on_end(run, _why_failed(process, errors.get(run.name)))
                    continue
                if step is None:
                    errors[run.name] = content
                else:
                    on_step(run, step, content)
    finally:
        for _, process in active.values():
            process.kill()
        for _, process in active.values():
            process.join()


def _why_failed(process: BaseProcess, error: str | None) -> str | None:
    if process.exitcode == 0 or error is not None:
        return error
    code = process.exitcode or 0
    return f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"


def _child(run: LabRun, connection: Connection, parent: int, train: Train) -> None:
    """Train one run, and send steps and the error, if there is one, to the parent."""
    die_with_parent(parent, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # the parent tells the user about Ctrl-C
    try:
        with locked(run.directory, remedy=_WAIT):
            if not is_finished(run.directory):  # another command may have finished it since this one started
                _train_from_scratch(run, lambda step, metrics: connection.send((step, metrics)), train)
    except Exception as error:
        is_explained = isinstance(error, ConfigError | RunStoppedError)
        connection.send((None, str(error) if is_explained else f"{type(error).__name__}: {error}"))
        sys.exit(1)


def _train_from_scratch(run: LabRun, on_step: OnStep, train: Train) -> None:
    folder = run.directory
    check_same_line(folder, run.words)
    # The command line is written first and removed last: without it, the folder does not belong to the laboratory.
    written = (folder.records(1), folder.metrics(1), folder.messages(1), folder.log(1))
    for path in (*(file.parent for file in written), folder.config):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_yaml(list(run.words), folder.overrides)
    folder.log(1).parent.mkdir()
    _print_to(folder.log(1))
    try:
        train(run.config, on_step)
    except ConfigError:
        shutil.rmtree(folder.path)  # as verl-gsd train does with a run that never started
        raise
    except Exception:
        traceback.print_exc()
        raise


def _print_to(path: Path) -> None:
    """Send what this process prints from now on to a file, also what libraries print without Python's streams."""
    log = TextIOWrapper(open_new(path), encoding="utf-8", line_buffering=True)
    for descriptor in (1, 2):
        os.dup2(log.fileno(), descriptor)
    sys.stdout = sys.stderr = log
