"""``verl-gsd plan``: what solve rates promise before a run, and rollouts shared out by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_gsd.cli.rate_options import Column, CorrectColumn, Samples, TotalColumn
from verl_gsd.console import fail, out

if TYPE_CHECKING:
    from verl_gsd.planning.summary import Target
    from verl_gsd.solve_rates import SolveRates

_MOST_SIZES = 8


def plan(
    solve_rates: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A .parquet, .jsonl or .csv file with a row a prompt; a folder of verl's rollout dumps; a run's "
            "folder; or a .json list whose entry k says how many prompts were solved k times.",
        ),
    ],
    column: Column = None,
    samples: Samples = None,
    correct_column: CorrectColumn = None,
    total_column: TotalColumn = None,
    group_size: Annotated[list[str], typer.Option(help="Responses a prompt; several, or 4,8,16, side by side.")] = [  # noqa: B006
        "8"
    ],
    alpha: Annotated[
        list[float] | None, typer.Option(help="A further exponent of the dial, beside 1 (GRPO) and 0 (Dr. GRPO).")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="fidelity=0.95 or mixed=0.9: exact group sizes that reach it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it all: a name that ends in .html or .png.")] = None,
    allocate: Annotated[
        Path | None,
        typer.Option(metavar="OUT.parquet", help="Write a training set in which each prompt has its own group size."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of --allocate: the training set; by default the file of the solve rates.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Of --allocate: expected_std (the default), mixed, or fidelity (equal, not most)."),
    ] = None,
    minimum: Annotated[int | None, typer.Option(help="Of --allocate: smallest group, 2 by default.")] = None,
    maximum: Annotated[int | None, typer.Option(help="Of --allocate: largest group; none by default.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Of --allocate: share out within each so many rows, for data.shuffle=false."),
    ] = None,
) -> None:
    """Silent groups, signal, and where the gradient comes from, for prompts of known solve rates; budgets by them."""
    from verl_gsd.cli import plan_allocate, plan_tables
    from verl_gsd.planning import summary
    from verl_gsd.solve_rates import read_solve_rates
    from verl_gsd.solve_rates.allocating import write_allocation

    if plot is not None and plot.suffix not in (".html", ".png"):
        fail(f"--plot {plot}: write a name that ends in .html or .png")
    of_allocate = {"data": data, "objective": objective, "minimum": minimum, "maximum": maximum}
    for name, value in (of_allocate | {"batch-size": batch_size}).items():
        if allocate is None and value is not None:
            fail(f"--{name} {value}: does nothing without --allocate. Leave it out, or write --allocate OUT.parquet")
    sizes = _sizes(group_size)
    alphas = list(dict.fromkeys([1.0, 0.0, *(alpha or ())]))
    if allocate is not None and len(sizes) != 1:
        fail(f"--group-size {','.join(map(str, sizes))}: with --allocate write one, the mean over all prompts")
    try:
        rates = read_solve_rates(
            solve_rates,
            column=column,
            samples=samples,
            correct_column=correct_column,
            total_column=total_column,
        )
        promises = [summary.promise(rates.rate, rates.correct, rates.total, size) for size in sizes]
        targets = [_target(rates, text) for text in target or ()]
        shared = None
        if allocate is not None:  # before anything is written: here is what most can be wrong with
            shared = plan_allocate.share_out(
                allocate,
                rates,
                data or solve_rates,
                sizes[0],
                objective=objective or "expected_std",
                minimum=2 if minimum is None else minimum,
                maximum=maximum,
                batch_size=batch_size,
            )
        plan_tables.show(rates, promises, alphas, targets)
        if plot is not None:
            from verl_gsd.cli.plan_charts import draw

            draw(plot, rates, promises, alphas, targets)
            out.print(f"{plot} has the pictures.", markup=False, highlight=False, soft_wrap=True)
        if allocate is not None and shared is not None:
            sheet, found = shared
            write_allocation(sheet, found.sizes, allocate)
            for sentence in plan_allocate.sentences(allocate, found, sizes[0], objective, batch_size):
                out.print(sentence, markup=False, highlight=False, soft_wrap=True)
    except (OSError, ValueError) as error:
        fail(str(error))


def _sizes(given: list[str]) -> list[int]:
    sizes = []
    for word in (word.strip() for text in given for word in text.split(",")):
        if not word.isdecimal() or int(word) < 2:
            fail(f"--group-size {word}: write whole numbers, 2 or more, such as 8 or 4,8,16")
        sizes.append(int(word))
    sizes = sorted(set(sizes))
    if len(sizes) > _MOST_SIZES:
        fail(f"--group-size: {len(sizes)} of them; write {_MOST_SIZES} at most")
    return sizes


def _target(rates: SolveRates, text: str) -> Target:
    from verl_gsd.planning.summary import target

    criterion, _, value = text.partition("=")
    try:
        wanted = float(value)
    except ValueError:
        wanted = 0.0
    if criterion not in ("fidelity", "mixed") or not 0 < wanted < 1:
        fail(f"--target {text}: write fidelity=X or mixed=X with X between 0 and 1, such as fidelity=0.95")
    return target(rates.rate, criterion, wanted)  # type: ignore[arg-type]  # it is one of both
