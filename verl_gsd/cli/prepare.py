"""``verl-gsd prepare arithmetic | maths``: make what a run reads before it asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from verl_gsd.cli.console import fail, out

app = typer.Typer(help="Make what a run reads: the embedded task, or mathematics from a table.", no_args_is_help=True)


@app.command()
def arithmetic(
    directory: Annotated[Path | None, typer.Option(help="Where to; by default where task=arithmetic looks.")] = None,
) -> None:
    """The embedded task: train and test files and a warm-started model (about a minute on two cores)."""
    if directory is None:
        from verl_gsd import config

        directory = Path(config.load("task", "arithmetic").task.directory)
    made = ensure_with_progress(directory)
    out.print(f"arithmetic is in [bold]{made}[/]")


@app.command(no_args_is_help=True)
def maths(
    input: Annotated[Path, typer.Option(help="Problems: .parquet, .jsonl or .csv.")],
    output: Annotated[Path, typer.Option(help="Where to: .parquet, with verl's columns.")],
    problem_column: Annotated[str, typer.Option(help="Texts, or chats, whose last user's message is it.")] = "problem",
    answer_column: Annotated[
        str | None,
        typer.Option(
            help="Answers, or solutions whose last \\boxed{} is one, or verl's reward_model; without it, answer."
        ),
    ] = None,
    demonstration_column: Annotated[
        str | None, typer.Option(help="Texts, lists of them, or lists of messages: an expert's responses.")
    ] = None,
    data_source: Annotated[
        str | None, typer.Option(help="Its name in metrics and records; by default the input's.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(help="Written after every problem; by default what asks for \\boxed{}.")
    ] = None,
    judged_by_model: Annotated[
        bool, typer.Option("--judged-by-model", help="No answers: the reward is a model's.")
    ] = False,
) -> None:
    """Problems, answers and demonstrations of a table, as verl reads them: for the recipes, and data of your own."""
    from verl_gsd.sheets import read_sheet
    from verl_gsd.tasks.maths_data import SUFFIX, verl_table, write_table

    if output.suffix != ".parquet":
        fail(f"--output {output}: write a name that ends in .parquet")
    if judged_by_model and answer_column is not None:
        fail(f"--answer-column {answer_column}: has no effect beside --judged-by-model")
    try:
        table = verl_table(
            read_sheet(input),
            data_source or input.stem,
            problem=problem_column,
            answer=None if judged_by_model else answer_column or "answer",
            demonstration=demonstration_column,
            suffix=SUFFIX if suffix is None else suffix,
        )
        write_table(table, output)
    except (ValueError, OSError) as error:
        fail(str(error))
    shown = (
        ""
        if demonstration_column is None
        else (f", {len(table) - table.column('demonstration').null_count} with demonstrations")
    )
    out.print(f"{len(table)} problems{shown} are in [bold]{output}[/]", soft_wrap=True)


def ensure_with_progress(directory: Path) -> Path:
    """``tasks.embedded.ensure`` with a bar for the warm start, shown only if there is something to make."""
    from safetensors import SafetensorError

    from verl_gsd.tasks.embedded import Specification, ensure, is_ready

    specification = Specification()
    try:
        if is_ready(directory, specification):
            return directory
    except OSError as error:
        fail(f"task.directory={directory}: {error}")
    with Progress(
        TextColumn("making task arithmetic: warm start"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.2f}"),
        TimeElapsedColumn(),
        console=out,
    ) as progress:
        bar = progress.add_task("", total=specification.warm_start_steps, loss=float("nan"))
        try:
            return ensure(directory, specification, lambda step, loss: progress.update(bar, completed=step, loss=loss))
        except (OSError, SafetensorError) as error:  # a full disk, a folder that cannot be written
            fail(f"task.directory={directory}: {error}")
