"""Trains what a study still needs: first the learning rates that it tries, then all seeds at the best one.

``verl-gsd lab train`` trains the seeds of one arm, task and learning rate on one core. As many of these commands run
side by side as there are cores. Finished runs go into the ledger, and a command that is started again skips them and
what finished in the folder of the runs. So a stop loses the runs in progress alone, one per core.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from studies.declaration import Arm, Study, Tuned
from studies.ledger import LEDGER, FinishedRun, append, read_finished, read_ledger, start_of
from verl_gsd.lab.training.seeds import parse_seeds

Ledger = Mapping[tuple[tuple[str, ...], int], FinishedRun]
#: The lowest and the highest learning rate that a study tries.
_LOWEST, _HIGHEST = 1e-6, 1e-2


@dataclass(frozen=True)
class Cell:
    """The runs of one arm on one task at one learning rate.

    Attributes:
        folder: of its seeds below the folder of the runs: STUDY/TASK/ARM or STUDY/TASK/tuning/ARM@RATE.
        seeds: in the notation of ``--seeds``.
    """

    arm: Arm
    task: str
    rate: float
    words: tuple[str, ...]
    seeds: str
    folder: Path

    @property
    def command(self) -> str:
        """The line that repeats the cell, with runs in the current folder."""
        return shlex.join(["verl-gsd", "lab", "train", *self.words, "--seeds", self.seeds, "--label", self.folder.name])

    def found(self, ledger: Ledger) -> dict[int, FinishedRun]:
        """seed -> run, for the seeds that have finished, from any start."""
        seeds = parse_seeds(self.seeds)
        return {seed: ledger[self.words, seed] for seed in seeds if (self.words, seed) in ledger}

    def missing(self, ledger: Ledger) -> list[int]:
        """The seeds that have not finished from the package's start."""
        start, found = start_of(self.task), self.found(ledger)
        return [seed for seed in parse_seeds(self.seeds) if seed not in found or found[seed].start != start]


def tuning_cell(study: Study, task: str, arm: Arm, rate: float) -> Cell:
    folder = Path(study.name, task, "tuning", f"{arm.name}@{rate:.3g}")
    return Cell(arm, task, rate, study.words(arm, task, rate), study.tuning_seeds, folder)


def main_cell(study: Study, task: str, arm: Arm, rate: float) -> Cell:
    """All seeds of an arm at its rate."""
    return Cell(arm, task, rate, study.words(arm, task, rate), study.seeds, Path(study.name, task, arm.name))


def learning_curve(run: FinishedRun, task: str) -> tuple[float, ...]:
    """(V,) what a study measures: the exact accuracy, and on the graded task the mean reward, which it trains."""
    return run.reward if task == "arithmetic_graded" else run.accuracy


def late_mean(run: FinishedRun, task: str, budget: int) -> float:
    """The mean of the learning curve over the second half of a budget of tokens, or of the run's tokens if fewer."""
    return late_mean_of(run, learning_curve(run, task), budget)


def late_mean_of(run: FinishedRun, curve: Sequence[float], budget: int) -> float:
    """The same for any curve of a run, (V,). It is linear between validations."""
    last = min(budget, run.tokens[-1])
    first = max(run.tokens[0], last // 2)
    inside = [tokens for tokens in run.tokens if first < tokens < last]
    grid = np.array([first, *inside, last], dtype=float)
    return float(np.trapezoid(np.interp(grid, run.tokens, curve), grid) / (last - first))


@dataclass(frozen=True)
class Tuning:
    """How far the search for an arm's learning rate is.

    Attributes:
        means: rate -> mean of the measure over the tuning seeds. The budget is what the shortest run generated.
        following: the rates to train next; empty if the search has ended.
    """

    means: Mapping[float, float]
    following: Sequence[float]

    @property
    def best(self) -> float | None:
        """The rate with the highest mean; None until the search has ended."""
        return None if self.following else max(self.means, key=self.means.__getitem__)


def tune(study: Study, task: str, arm: Arm, ledger: Ledger) -> Tuning:
    """The search for the rate of an arm that has none, as far as the ledger knows its runs.

    The rates of the study come first. While the best one is at an end, the next one by a factor of 2 follows. All runs
    of a search begin with the same policy. A search that has ended from an earlier start is not repeated: the best rate
    is a setting, and not a result.
    """
    starts = [start_of(task), ""]
    searches = [
        _search(study, task, arm, {key: run for key, run in ledger.items() if run.start == start}) for start in starts
    ]
    return next((search for search in searches if not search.following), searches[0])


def _search(study: Study, task: str, arm: Arm, ledger: Ledger) -> Tuning:
    """``tune`` over runs that begin with the same policy."""
    rates = list(study.rates)
    while True:
        cells = {rate: tuning_cell(study, task, arm, rate) for rate in rates}
        runs = {rate: cell.found(ledger) for rate, cell in cells.items()}
        if following := [rate for rate, cell in cells.items() if len(runs[rate]) < len(parse_seeds(cell.seeds))]:
            return Tuning({}, following)
        budget = min(run.tokens[-1] for found in runs.values() for run in found.values())
        means = {
            rate: float(np.mean([late_mean(run, task, budget) for run in found.values()]))
            for rate, found in runs.items()
        }
        best = max(means, key=means.__getitem__)
        if best == rates[0] and best / 2 >= _LOWEST:
            rates.insert(0, best / 2)
        elif best == rates[-1] and best * 2 <= _HIGHEST:
            rates.append(best * 2)
        else:
            return Tuning(means, ())


def rate_of(study: Study, task: str, arm: Arm, ledger: Ledger, load: Callable[[str], Study]) -> float | None:
    """The learning rate of an arm; None if it is not tuned yet.

    Args:
        load: returns the study of a name.
    """
    if isinstance(arm.rate, Tuned):
        other = load(arm.rate.study)
        tuned = next(found for found in other.arms_of(task) if found.name == arm.rate.arm)
        rate = rate_of(other, task, tuned, ledger, load)
        return None if rate is None else rate * arm.rate.times
    return tune(study, task, arm, ledger).best if arm.rate is None else arm.rate


def needed(study: Study, task: str, ledger: Ledger, load: Callable[[str], Study]) -> list[Cell]:
    """The cells that can be trained now: learning rates of arms that are not tuned, all seeds of the others."""
    cells = []
    for arm in study.arms_of(task):
        rate = rate_of(study, task, arm, ledger, load)
        if rate is not None:
            cells.append(main_cell(study, task, arm, rate))
        elif arm.rate is None:
            cells += [tuning_cell(study, task, arm, tried) for tried in tune(study, task, arm, ledger).following]
        # else another study has to tune it first
    return [cell for cell in cells if cell.missing(ledger)]


def train(
    study: Study, tasks: Sequence[str], runs: Path, load: Callable[[str], Study], ledger: Path = LEDGER
) -> list[str]:
    """Train all that the study needs. Returns the runs that failed, one text for each.

    Args:
        runs: folder of the runs.
        ledger: the file with the finished runs of all studies.
    """
    cores: SimpleQueue[int] = SimpleQueue()
    allowed = sorted(os.sched_getaffinity(0))
    for core in allowed:
        cores.put(core)
    commit = _commit()
    lock = threading.Lock()
    failed: list[str] = []

    def train_cell(cell: Cell) -> None:
        core = cores.get()
        try:
            absent = cell.missing(read_ledger(ledger))
            folder = (runs / cell.folder).absolute()
            program = str(Path(sys.executable).parent / "verl-gsd")
            seeds, label = ["--seeds", ",".join(map(str, absent))], ["--label", folder.name]
            words = ["lab", "train", *cell.words, *seeds, "--runs", str(folder.parent), *label]
            subprocess.run(["taskset", "--cpu-list", str(core), program, *words])
            for seed in absent:
                run = read_finished(folder / f"seed_{seed}", cell.words, seed, commit)
                with lock:
                    if run is None:
                        failed.append(f"{folder / f'seed_{seed}'}: not finished")
                    else:
                        append(run, ledger)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(len(allowed)) as pool:
        while not failed:
            cells = [cell for task in tasks for cell in needed(study, task, read_ledger(ledger), load)]
            if not cells:
                break
            list(pool.map(train_cell, cells))
    return failed


def _commit() -> str:
    """The commit of this code, for the ledger."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
