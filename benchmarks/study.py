"""Plan, run and publish a study of ``benchmarks/studies``: one command each.

    .venv/bin/python benchmarks/study.py plan methods
    .venv/bin/python benchmarks/study.py run methods
    .venv/bin/python benchmarks/study.py table methods

``run`` first tries each arm's learning rates on seeds of their own, then trains all seeds at the best rate. Finished
runs are lines of ``benchmarks/results/studies/runs.jsonl``; ``run`` trains what is not there. ``table`` writes
``benchmarks/results/studies/NAME.json`` from them, its tables in ``docs/studies.md`` and the README, and its picture.
"""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import publishing
import typer
from rich.console import Console
from studies.analysis import analyse
from studies.declaration import Study
from studies.judge_server import serving
from studies.ledger import LEDGER, read_ledger
from studies.page import PAGE, README, RESULTS, draw, has_picture, markdown, picture_of, summary, with_table
from studies.runs import needed, train

from verl_gsd.lab.training.seeds import parse_seeds

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)
out = Console()
Name = Annotated[str, typer.Argument(help="A file of benchmarks/studies, e.g. methods.")]


def load(name: str) -> Study:
    study: Study = importlib.import_module(f"studies.{name}").STUDY
    assert study.name == name, f"{study.name} is in {name}.py"
    return study


def _result(name: str) -> dict[str, Any]:
    return analyse(load(name), read_ledger(), load)


@app.command()
def plan(name: Name) -> None:
    """Print what the study states, and the number of its runs."""
    study = load(name)
    for title in ("question", "hypothesis", "measure", "tuning", "spread", "correction"):
        out.print(f"{title}: {getattr(study, title)}", markup=False, highlight=False)
    arms = [(task, arm) for task in study.tasks for arm in study.arms_of(task)]
    tuned = sum(arm.rate is None for _, arm in arms)
    tuning = tuned * len(study.rates) * len(parse_seeds(study.tuning_seeds))
    ledger = read_ledger()
    next_runs = sum(len(cell.missing(ledger)) for task in study.tasks for cell in needed(study, task, ledger, load))
    out.print(f"runs to tune learning rates: {tuning}, and more where the best one is at an end", highlight=False)
    out.print(f"runs to compare: {len(arms) * len(parse_seeds(study.seeds))}", highlight=False)
    out.print(f"runs that can start now: {next_runs}", highlight=False)


@app.command()
def run(
    name: Name,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/studies"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; can be repeated.")] = None,
) -> None:
    """Train what has not finished."""
    study = load(name)
    with serving() if study.judges else nullcontext():
        failed = train(study, task or study.tasks, runs, load)
    for line in failed:
        out.print(line, markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def table(name: Name) -> None:
    """Write the results of the runs that have finished."""
    result = _result(name)
    output = LEDGER.parent / f"{name}.json"
    publishing.write(result, output)
    PAGE.write_text(with_table(PAGE.read_text(), name, markdown(result)))
    README.write_text(with_table(README.read_text(), RESULTS, summary(*map(_result, ("methods", "stability")))))
    if has_picture(result):
        draw(result, picture_of(name))
    out.print(f"{'partial' if result['missing'] else 'complete'}: {output}", soft_wrap=True)


if __name__ == "__main__":
    app()
