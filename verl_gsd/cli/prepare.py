"""``verl-gsd prepare arithmetic``: make a task's data (and here its model) before a run asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from verl_gsd.cli.console import fail, out


def prepare(
    name: Annotated[str, typer.Argument(help="The task: arithmetic.")],
    directory: Annotated[Path | None, typer.Option(help="Where to; by default where task=NAME looks.")] = None,
) -> None:
    """Make a task's train and test files and, for arithmetic, its warm-started model (about a minute on two cores)."""
    if name != "arithmetic":
        fail(f"prepare {name}: no such task. Write arithmetic.")
    if directory is None:
        from verl_gsd import config

        directory = Path(config.load("task", name).task.directory)
    made = ensure_with_progress(directory)
    out.print(f"{name} is in [bold]{made}[/]")


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
