"""``verl-gsd lab``: every algorithm on prompts without a model, and the group of the laboratory's other commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_gsd.cli import lab_identity, lab_train
from verl_gsd.cli.command_groups import LabCommands, add_command, help_and_examples
from verl_gsd.cli.rate_options import Column, CorrectColumn, Samples, TotalColumn
from verl_gsd.console import err, fail

if TYPE_CHECKING:
    from verl_gsd.lab.experiment import Results
    from verl_gsd.lab.prompts import Prompts


app = typer.Typer(cls=LabCommands, invoke_without_command=True)


def lab(
    context: typer.Context,
    solve_rates: Annotated[
        Path | None,
        typer.Option(help="Solve rates to start from: a table, dumps or a run, as for plan. Default: a mixture."),
    ] = None,
    column: Column = None,
    samples: Samples = None,
    correct_column: CorrectColumn = None,
    total_column: TotalColumn = None,
    algo: Annotated[
        list[str] | None, typer.Option(help="Only this algorithm; may be repeated. alpha=X is the dial at any X.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=4, help="Number of prompts, at quantiles of the solve rates.")] = 6000,
    steps: Annotated[int, typer.Option(min=1, help="Steps per run.")] = 150,
    group_size: Annotated[int, typer.Option(min=2, help="Responses per group.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal numbers.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write a page to this file, FILE.html.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write every chart into this folder.")] = None,
) -> None:
    """Small experiments without Ray and vLLM, in seconds to minutes.

    With a command: experiments with a real policy. Without one: simulate algorithms on prompts with known solve rates,
    without a model. The figures of the dial's paper are recomputed, too.

    Examples:
        verl-gsd lab --algo grpo --algo dr_grpo --algo alpha=0.5 --output lab.html
        verl-gsd lab train algo=grpo task=arithmetic
    """
    if context.invoked_subcommand is not None:
        _reject_options(context)
        return
    from verl_gsd.lab.outputs import check_outputs, write_outputs

    check_outputs(output, png)
    options = {"column": column, "samples": samples, "correct_column": correct_column, "total_column": total_column}
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if solve_rates is None and given:
        fail(f"{given[0]}: there is no --solve-rates, whose file it describes. Use both options or neither.")
    from verl_gsd.lab.algorithms import algorithm, algorithms

    try:
        names = list(dict.fromkeys(algo or algorithms()))
        for name in names:
            algorithm(name)
        start = _prompts(solve_rates, options)
        results = _run(start, names, prompts, group_size, steps, seed)
    except (OSError, ValueError) as error:
        fail(str(error))
    _print(results)
    if output is not None or png is not None:
        from verl_gsd.lab.page import TITLE, charts_of, sections

        write_outputs(TITLE, sections(results), charts_of(results), output, png)


app.callback(**help_and_examples(lab))(lab)
add_command(app, lab_train.train, no_args_is_help=True)
add_command(app, lab_identity.identity, no_args_is_help=True)


def _reject_options(context: typer.Context) -> None:
    """The options above belong to ``lab`` without a command. Typer would ignore them in front of one."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":  # newer typers have a copy of click, and of its enum
            option = f"--{name.replace('_', '-')}"
            fail(f"{option}: this option is not of lab {context.invoked_subcommand}. Remove it, or the command.")


def _prompts(path: Path | None, options: dict[str, Any]) -> Prompts:
    from verl_gsd.lab.prompts import measured, mixture
    from verl_gsd.run.trust import real_run
    from verl_gsd.solve_rates import read_solve_rates

    if path is None:
        return mixture()
    real_run(path)
    rates = read_solve_rates(path, **options)
    for notice in rates.notices():
        err.print(notice, markup=False, highlight=False, soft_wrap=True)
    return measured(rates)


def _run(start: Prompts, names: list[str], n_prompts: int, group_size: int, steps: int, seed: int) -> Results:
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from verl_gsd.lab.experiment import experiment, n_runs

    torch.set_num_threads(1)  # with such small tensors, several threads only wait for each other
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        bar = bars.add_task("runs", total=n_runs(names))
        return experiment(
            start,
            names,
            n_prompts=n_prompts,
            group_size=group_size,
            steps=steps,
            seed=seed,
            on_run=lambda name: bars.advance(bar),
        )


def _print(results: Results) -> None:
    from verl_gsd.lab import words
    from verl_gsd.lab.outputs import print_lines, print_table

    for title, figures in results.tables.items():
        print_table(f"arXiv 2607.00152, figures {title}", words.FIGURES_HEADER, words.figure_rows(figures))
    print_lines([words.data_remark(results), f"\n{words.setting(results)}"])
    print_table("Runs", words.RUNS_HEADER, words.run_rows(results))
    print_lines([words.legend()])
    print_lines(words.caveats(results), bullet="- ")
