"""Run, resume and draw a study of ``benchmarks/studies``: one command per question.

    .venv/bin/python benchmarks/study.py plan methods
    .venv/bin/python benchmarks/study.py run methods --runs FOLDER
    .venv/bin/python benchmarks/study.py table methods --runs FOLDER

``run`` first tries each arm's learning rates on seeds of their own, then trains all seeds at the best rate. A stop
loses the runs in progress, at most one per core. ``table`` writes ``benchmarks/results/studies/NAME.json`` from the
runs that have finished, and marks a study as partial if runs are missing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import publishing
import typer
from rich.console import Console
from studies.analysis import analyse
from studies.declaration import Study
from studies.runs import RESULTS, given_rate, main_cell, tuned_rate, tuning_cells

from verl_gsd.lab.training.seeds import parse_seeds

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
out = Console()
Name = Annotated[str, typer.Argument(help="A file of benchmarks/studies, e.g. methods.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]


def load(name: str) -> Study:
    study: Study = importlib.import_module(f"studies.{name}").STUDY
    assert study.name == name, f"{study.name} is in {name}.py"
    return study


@app.command()
def plan(name: Name) -> None:
    """Print what the study states, and the number of its runs."""
    study = load(name)
    for title in ("question", "hypothesis", "measure", "spread", "correction"):
        out.print(f"{title}: {getattr(study, title)}", markup=False, highlight=False)
    tuning = main = 0
    for task in study.tasks:
        for arm in study.arms_of(task):
            tuning += len(study.rates) * len(parse_seeds(study.tuning_seeds)) if arm.rate is None else 0
            main += len(parse_seeds(study.seeds))
    out.print(f"runs: {tuning} to tune learning rates, {main} to compare", highlight=False)


@app.command()
def run(
    name: Name, runs: Runs = Path("runs/studies"), task: Annotated[list[str] | None, typer.Option()] = None
) -> None:
    """Train what has not finished. ``--task`` restricts it to some tasks."""
    study = load(name)
    failed = []
    for here in task or study.tasks:
        for arm in study.arms_of(here):
            tuning = tuning_cells(study, here, arm, runs)
            failed += [cell.folder for cell in tuning if not cell.train()]
            best = tuned_rate(tuning) if tuning else None
            rate = best[0] if best else given_rate(arm, here)
            if rate is None:
                failed.append(runs / study.name / here / arm.name)
                continue
            cell = main_cell(study, here, arm, rate, runs)
            failed += [] if cell.train() else [cell.folder]
    for folder in failed:
        out.print(f"not finished: {folder}", markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def table(name: Name, runs: Runs = Path("runs/studies")) -> None:
    """Write the results of the runs that have finished."""
    result = analyse(load(name), runs)
    publishing.write(result, RESULTS / f"{name}.json")
    out.print(f"{'partial' if result['missing'] else 'complete'}: {RESULTS / f'{name}.json'}", soft_wrap=True)


if __name__ == "__main__":
    app()
