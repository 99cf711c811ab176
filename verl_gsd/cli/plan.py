"""``verl-gsd plan``: expected silent groups and signal from solve rates, and a group size for each prompt."""

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
            help="A .parquet, .jsonl or .csv file with one row per prompt; a folder of verl's rollout dumps; a run's "
            "folder; or a .json list whose entry k is the number of prompts that were solved k times.",
        ),
    ],
    column: Column = None,
    samples: Samples = None,
    correct_column: CorrectColumn = None,
    total_column: TotalColumn = None,
    group_size: Annotated[list[str], typer.Option(help="Responses per prompt; 4,8,16 compares sizes.")] = [  # noqa: B006
        "8"
    ],
    alpha: Annotated[
        list[float] | None, typer.Option(help="Also show this exponent of the dial, besides 1 (GRPO) and 0 (Dr. GRPO).")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="fidelity=0.95 or mixed=0.9: show the exact group sizes that reach it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write charts to this file, which ends in .html or .png.")] = None,
    allocate: Annotated[
        Path | None,
        typer.Option(metavar="OUT.parquet", help="Write a training set in which each prompt has its own group size."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --allocate: the training set. Default: the file with the solve rates.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="With --allocate: expected_std (default), mixed, or fidelity (raises the lowest first)."),
    ] = None,
    minimum: Annotated[int | None, typer.Option(help="With --allocate: smallest group size. Default: 2.")] = None,
    maximum: Annotated[int | None, typer.Option(help="With --allocate: largest group size. Default: no limit.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="With --allocate: keep the total exact in each batch of this size, for data.shuffle=false."),
    ] = None,
) -> None:
    """Show expected silent groups, signal and gradient shares from solve rates, and allocate rollouts to prompts.

    Examples:
        verl-gsd plan --solve-rates RUN --group-size 4,8,16
        verl-gsd plan --solve-rates rates.parquet --samples 64 --allocate train.parquet
    """
    from verl_gsd.cli import plan_allocate, plan_tables
    from verl_gsd.planning import summary
    from verl_gsd.run.trust import real_run
    from verl_gsd.solve_rates import read_solve_rates
    from verl_gsd.solve_rates.allocating import write_allocation

    if plot is not None and plot.suffix not in (".html", ".png"):
        fail(f"--plot {plot} is not a chart file. Use a name that ends in .html or .png.")
    allocate_options = {"data": data, "objective": objective, "minimum": minimum, "maximum": maximum}
    for name, value in (allocate_options | {"batch-size": batch_size}).items():
        if allocate is None and value is not None:
            fail(f"--{name} {value}: has no effect without --allocate. Remove it, or add --allocate OUT.parquet.")
    sizes = _sizes(group_size)
    alphas = list(dict.fromkeys([1.0, 0.0, *(alpha or ())]))
    if allocate is not None and len(sizes) != 1:
        fail(
            f"--group-size {','.join(map(str, sizes))}: more than one size. Use one with --allocate, the mean over all "
            "prompts."
        )
    try:
        real_run(solve_rates)
        rates = read_solve_rates(
            solve_rates,
            column=column,
            samples=samples,
            correct_column=correct_column,
            total_column=total_column,
        )
        summaries = [summary.summarize(rates.rate, *rates.unbiased_counts, size) for size in sizes]
        targets = [_target(rates, text) for text in target or ()]
        allocated = None
        if allocate is not None:  # before anything is written, because most mistakes are found here
            allocated = plan_allocate.allocate_training_set(
                allocate,
                rates,
                data or solve_rates,
                sizes[0],
                objective=objective or "expected_std",
                minimum=2 if minimum is None else minimum,
                maximum=maximum,
                batch_size=batch_size,
            )
        plan_tables.show(rates, summaries, alphas, targets)
        if plot is not None:
            from verl_gsd.cli.plan_charts import draw

            draw(plot, rates, summaries, alphas, targets)
            out.print(f"The charts are in {plot}.", markup=False, highlight=False, soft_wrap=True)
        if allocate is not None and allocated is not None:
            table, allocation = allocated
            write_allocation(table, allocation.sizes, allocate)
            for sentence in plan_allocate.sentences(allocate, allocation, sizes[0], objective, batch_size):
                out.print(sentence, markup=False, highlight=False, soft_wrap=True)
    except (OSError, ValueError) as error:
        fail(str(error))


def _sizes(options: list[str]) -> list[int]:
    sizes = []
    for word in (word.strip() for text in options for word in text.split(",")):
        if not word.isdecimal() or int(word) < 2:
            fail(f"--group-size {word}: not a group size. Use whole numbers from 2 up, for example 8 or 4,8,16.")
        sizes.append(int(word))
    sizes = sorted(set(sizes))
    if len(sizes) > _MOST_SIZES:
        fail(f"--group-size: {len(sizes)} sizes are too many. Use at most {_MOST_SIZES}.")
    return sizes


def _target(rates: SolveRates, text: str) -> Target:
    from verl_gsd.planning.summary import target

    criterion, _, value = text.partition("=")
    try:
        wanted = float(value)
    except ValueError:
        wanted = 0.0
    if criterion not in ("fidelity", "mixed") or not 0 < wanted < 1:
        fail(f"--target {text}: not a target. Use fidelity=X or mixed=X with X between 0 and 1, like fidelity=0.95.")
    return target(rates.rate, criterion, wanted)  # type: ignore[arg-type]  # checked above
