"""The runs of a study: ``verl-gsd lab train`` once per arm, task and learning rate, then all seeds at the best.

Each command trains the seeds that have not finished, so that a study that was stopped goes on where it was: at most the
runs in progress are lost.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studies.declaration import Arm, Study, Tuned
from verl_gsd.compare.comparison import mean_accuracy
from verl_gsd.compare.curves import Curve
from verl_gsd.compare.run_curves import read_curve
from verl_gsd.lab.training.seeds import parse_seeds

RESULTS = Path(__file__).parent.parent / "results" / "studies"


@dataclass(frozen=True)
class Cell:
    """The runs of one arm on one task at one learning rate.

    Attributes:
        folder: of its seeds, RUNS/STUDY/TASK/ARM or RUNS/STUDY/TASK/tuning/ARM@RATE.
        seeds: in the notation of ``--seeds``.
    """

    arm: Arm
    task: str
    rate: float
    words: list[str]
    seeds: str
    folder: Path

    @property
    def command(self) -> str:
        """The line that repeats the cell, with runs in the current folder."""
        return shlex.join(["verl-gsd", "lab", "train", *self.words, "--seeds", self.seeds, "--label", self.folder.name])

    def curves(self) -> dict[int, Curve]:
        """The exact learning curves of the seeds that have finished."""
        found = {}
        for seed in parse_seeds(self.seeds):
            run = self.folder / f"seed_{seed}"
            if run.is_dir() and (curve := read_curve(run, label=self.arm.name, exact=True)).finished:
                found[seed] = curve
        return found

    def train(self) -> bool:
        """Train the seeds that have not finished. Returns whether all have finished then."""
        if len(self.curves()) == len(parse_seeds(self.seeds)):
            return True
        command = [str(Path(sys.executable).parent / "verl-gsd"), "lab", "train", *self.words, "--seeds", self.seeds]
        folder = self.folder.absolute()
        return subprocess.run([*command, "--runs", str(folder.parent), "--label", folder.name]).returncode == 0


def tuning_cells(study: Study, task: str, arm: Arm, runs: Path) -> list[Cell]:
    """One cell per rate that the study tries for an arm; none for an arm whose rate is given."""
    if arm.rate is not None:
        return []
    folder = runs / study.name / task / "tuning"
    return [
        Cell(arm, task, rate, study.words(arm, task, rate), study.tuning_seeds, folder / f"{arm.name}@{rate:.3g}")
        for rate in study.rates
    ]


def main_cell(study: Study, task: str, arm: Arm, rate: float, runs: Path) -> Cell:
    """All seeds of an arm at its rate."""
    return Cell(arm, task, rate, study.words(arm, task, rate), study.seeds, runs / study.name / task / arm.name)


def given_rate(arm: Arm, task: str) -> float | None:
    """The rate of an arm that is not tuned in its own study; None if the study that tunes it has not chosen one yet."""
    if not isinstance(arm.rate, Tuned):
        return arm.rate
    results = RESULTS / "methods.json"
    chosen: dict[str, Any] = json.loads(results.read_text())["rates"] if results.is_file() else {}
    rate = chosen.get(task, {}).get(arm.rate.arm)
    return None if rate is None else rate * arm.rate.times


def late_accuracy(curve: Curve, budget: int) -> float:
    """The mean accuracy over the last quarter of a budget of tokens, or of the run if it generated fewer."""
    last = min(budget, curve.tokens[-1])
    return mean_accuracy(curve, max(curve.tokens[0], (3 * last) // 4), last)


def tuned_rate(cells: list[Cell]) -> tuple[float, dict[float, float]] | None:
    """The rate with the highest mean of the study's measure, and these means; None unless all runs have finished.

    The budget is what the shortest of these runs generated, at all rates alike.
    """
    curves = {cell.rate: cell.curves() for cell in cells}
    if any(len(found) < len(parse_seeds(cell.seeds)) for cell, found in zip(cells, curves.values(), strict=True)):
        return None
    budget = min(curve.tokens[-1] for found in curves.values() for curve in found.values())
    means = {
        rate: float(np.mean([late_accuracy(curve, budget) for curve in found.values()]))
        for rate, found in curves.items()
    }
    return max(means, key=means.__getitem__), means
