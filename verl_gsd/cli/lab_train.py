"""``verl-gsd lab train``: train a small policy in one process, or one run per seed on all cores."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verl_gsd.cli.report import show_report_command
from verl_gsd.cli.step_display import accuracies
from verl_gsd.cli.train import held_out_prompts, make_task, name_run, print_audit, result_table
from verl_gsd.console import err, fail, out
from verl_gsd.word_completion import complete_words

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.lab.training.processes import LabRun
    from verl_gsd.run.compose import Line
    from verl_gsd.rundir import RunDirectory

#: One thread per process: a step has too little work for more, and seeds use the other cores.
_ENVIRONMENT = {"VERL_GSD_CPU": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def train(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            autocompletion=complete_words,
            help="As for verl-gsd train: recipe=, or algo= and task=; any verl key.",
        ),
    ],
    seeds: Annotated[
        list[str] | None, typer.Option(metavar="1..32", help="One run per seed, on all cores: 1..32, 1,2,5 or 3.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With --seeds: the folder of runs. Default: runs/lab.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="With --seeds: runs are in RUNS/LABEL/seed_N. Default: the algorithm's name.")
    ] = None,
) -> None:
    """Train a small policy without Ray and vLLM, in seconds.

    Examples:
        verl-gsd lab train algo=grpo task=arithmetic
        verl-gsd lab train algo=dr_grpo task=arithmetic --seeds 1..16
    """
    if not seeds and (runs is not None or label is not None):
        fail(f"{'--runs' if runs is not None else '--label'}: only runs of --seeds have it. Set --seeds, or remove it.")
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.launch import signals_interrupt

    os.environ |= _ENVIRONMENT  # before anything imports torch or verl
    try:
        line, composed = _compose(words)
        if not seeds:
            lab_runs = [_single(line, composed)]
        else:
            folder = (runs or Path("runs/lab")).absolute()
            lab_runs = _of_seeds(line, composed, ",".join(seeds), folder, label or _label(line))
        _prepare(composed, line, lab_runs[0].config)
        if seeds:
            _check_sources(lab_runs)
    except ConfigError as error:
        fail(str(error))
    try:
        with signals_interrupt():
            errors = _train_one(lab_runs[0]) if not seeds else _train_seeds(lab_runs)
    except KeyboardInterrupt:
        again = "" if not seeds else ". The same command trains the seeds that have not finished"
        fail(f"interrupted; all processes have ended{again}", code=130)
    if errors:
        raise typer.Exit(1)


def _compose(words: Sequence[str]) -> tuple[Line, DictConfig]:
    """The line with ``hardware=cpu``, and its config with interpolations unresolved.

    Raises:
        ConfigError: the line is wrong, resumes a run, or has other hardware.
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.lab.training.checks import parse_lab_line
    from verl_gsd.run.own_data import compose_here

    line = parse_lab_line(words)
    if line.resume is not None:
        raise ConfigError(
            f"resume={line.resume}: the laboratory saves no checkpoints, because a run takes seconds. Remove it, and "
            "start a new run."
        )
    config, chosen = compose_here(line)
    for text in chosen:
        err.print(text, markup=False, highlight=False)
    return line, config


def _single(line: Line, composed: DictConfig) -> LabRun:
    from verl_gsd.errors import ConfigError
    from verl_gsd.lab.training.processes import LabRun
    from verl_gsd.run.compose import resolve

    config = composed.copy()
    name_run(config, line)
    run = LabRun("the run", resolve(config), line.words)
    if run.directory.is_used():
        raise ConfigError(
            f"trainer.default_local_dir={run.directory.path}: this folder is not empty. Set the key to another folder."
        )
    return run


def _of_seeds(line: Line, composed: DictConfig, seeds: str, runs: Path, label: str) -> list[LabRun]:
    from verl_gsd.lab.training.processes import LabRun
    from verl_gsd.lab.training.seeds import (
        check_line,
        check_same_line,
        config_of_seed,
        parse_seeds,
        words_of_seed,
    )
    from verl_gsd.run.checks.validate import raise_problems

    check_line(line)
    numbers = parse_seeds(seeds)
    raise_problems([] if label and "/" not in label else [f"--label {label}: not a folder name. Use one without /."])
    lab_runs = [
        LabRun(f"seed {seed}", config_of_seed(composed, seed, runs / label / f"seed_{seed}"), words_of_seed(line, seed))
        for seed in numbers
    ]
    for run in lab_runs:
        check_same_line(run.directory, run.words)
    return lab_runs


def _check_sources(lab_runs: Sequence[LabRun]) -> None:
    from verl_gsd.lab.training.sources import check_same_sources, sources_of

    sources = sources_of(lab_runs[0].config)
    for run in lab_runs:
        check_same_sources(run.directory, sources)


def _label(line: Line) -> str:
    return (line.choices.get("algo") or line.choices["recipe"]).replace("/", "-")


def _prepare(composed: DictConfig, line: Line, config: DictConfig) -> None:
    """Check the config, create the embedded task if it is missing, import verl, and print the audit.

    Args:
        config: the resolved config of the first run.

    Raises:
        ConfigError: the config is rejected.
    """
    from verl_gsd.lab.training.checks import check_lab
    from verl_gsd.lab.training.quiet import quiet
    from verl_gsd.run.checks.with_verl import validate_with_verl

    check_lab(composed, line)
    make_task(config)
    import torch

    torch.set_num_threads(1)
    with err.status("importing verl"), quiet():
        messages = validate_with_verl(config)
        import verl_gsd.lab.training.trainer  # noqa: F401 -- before the forks, which then need not import it
    for message in messages:
        style = "yellow" if message.kind == "warning" else None
        err.print(f"{message.kind}: {message.text}", style=style, markup=False, highlight=False, soft_wrap=True)
    print_audit(config)


def _train_one(run: LabRun) -> dict[str, str]:
    """Train one run, and print its validations and results. Returns the errors by name."""
    from verl_gsd.rundir import read_metrics

    directory, total = run.directory, functools.cache(_total_steps)
    err.print(f"run directory [bold]{escape(str(directory.path))}[/]", soft_wrap=True)
    with _bars() as bars:
        bar = bars.add_task("steps", total=None)

        def show(run: LabRun, step: int, metrics: Mapping[str, float]) -> None:
            bars.update(bar, completed=step, total=total(run))
            if parts := accuracies(metrics):
                bars.console.print(f"step {step:>4}/{total(run)}  {'  '.join(parts)}", highlight=False)

        errors = _train_all([run], show, lambda run, error: None)
    for error in errors.values():
        fail(_failure(run, error), code=1)
    metrics = list(read_metrics(directory.metrics(1)))
    out.print(result_table(metrics, held_out_prompts(run.config)))
    _warn_of_skipped_updates([directory])
    out.print(f"run directory [bold]{escape(str(directory.path))}[/]", soft_wrap=True)
    show_report_command(directory.path)
    return errors


def _total_steps(run: LabRun) -> int:
    """The number of steps of a run that has started. The trainer computes it from the data if the line has none."""
    from verl_gsd.lab.training.seeds import total_steps

    total = total_steps(run.directory)
    assert total is not None  # the run's process writes it before its first step
    return total


def _train_seeds(lab_runs: Sequence[LabRun]) -> dict[str, str]:
    """Train the seeds that have not finished, and print means over all that have. Returns the errors by name.

    Each seed that finishes is a line, because bars are not shown without a terminal.
    """
    from verl_gsd.lab.training.seeds import is_finished, mean_accuracies

    waiting = [run for run in lab_runs if not is_finished(run.directory)]
    folder = lab_runs[0].directory.path.parent
    skipped = f"; {len(lab_runs) - len(waiting)} have finished before" if len(waiting) < len(lab_runs) else ""
    count = "1 seed" if len(waiting) == 1 else f"{len(waiting)} seeds"
    err.print(f"{count} to train{skipped}: [bold]{escape(str(folder))}[/]", soft_wrap=True)
    total = functools.cache(_total_steps)
    latest: dict[str, tuple[int, Mapping[str, float]]] = {}  # step and metrics, by the name of the run
    done = {run.name for run in lab_runs} - {run.name for run in waiting}
    with _bars() as bars:
        steps, ended = bars.add_task("steps", total=None), bars.add_task("seeds", total=len(waiting))

        def show(run: LabRun, step: int, metrics: Mapping[str, float]) -> None:
            latest[run.name] = step, metrics
            bars.update(steps, completed=sum(step for step, _ in latest.values()), total=len(waiting) * total(run))

        def show_end(run: LabRun, error: str | None) -> None:
            bars.advance(ended)
            if error is not None:
                err.print(_failure(run, error), style="red", markup=False, highlight=False, soft_wrap=True)
                return
            done.add(run.name)
            _, metrics = latest.get(run.name, (0, {}))  # none if another command has trained it meanwhile
            line = "  ".join([f"{run.name} finished, {len(done)} of {len(lab_runs)}", *accuracies(metrics)])
            bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

        errors = _train_all(waiting, show, show_end)
    finished = [run.directory for run in lab_runs if run.name not in errors]
    means = mean_accuracies(finished) if finished else {}
    for source, (first, last) in means.items():
        count = "1 seed" if last.n == 1 else f"{last.n} seeds"
        ends = " -> ".join(map(str, (first, last)))
        line = f"held-out accuracy, {source}, mean of {count}: {ends}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    _warn_of_skipped_updates(finished)
    if finished:
        out.print("Intervals: 95%, over seeds. To compare with another label, run:")
        out.print(_compare_command(folder, exact="exact" in means), markup=False, highlight=False, soft_wrap=True)
        show_report_command(_short(finished[0].path))
    if errors:
        line = f"{len(errors)} of {len(lab_runs)} seeds failed: {', '.join(errors)}."
        err.print(line, style="red", markup=False, highlight=False)
    return errors


def _train_all(
    lab_runs: Sequence[LabRun],
    show: Callable[[LabRun, int, Mapping[str, float]], None],
    show_end: Callable[[LabRun, str | None], None],
) -> dict[str, str]:
    """Train all runs, and print their warnings. Returns the errors by name."""
    from verl_gsd.lab.training.processes import cores, train_runs
    from verl_gsd.run.messages import MessageReader

    errors: dict[str, str] = {}
    messages = {run.name: MessageReader(run.directory.messages(1)) for run in lab_runs}

    def show_messages(run: LabRun) -> None:
        for message in messages[run.name].new():
            if message.kind != "stop":  # the error of the run
                text = f"{message.kind}: {run.name}: {message.text}"
                err.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def step(run: LabRun, number: int, metrics: Mapping[str, float]) -> None:
        show_messages(run)
        show(run, number, metrics)

    def end(run: LabRun, error: str | None) -> None:
        show_messages(run)
        if error is not None:
            errors[run.name] = error
        show_end(run, error)

    train_runs(lab_runs, processes=cores(), on_step=step, on_end=end)
    return errors


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True)


def _failure(run: LabRun, error: str) -> str:
    log = run.directory.log(1)
    return f"{run.name} failed: {error}" + (f"\nfull log: {log}" if log.is_file() else "")


def _warn_of_skipped_updates(directories: Sequence[RunDirectory]) -> None:
    from verl_gsd.rundir import read_metrics

    metrics = (data for directory in directories for _, data in read_metrics(directory.metrics(1)))
    skipped = sum(data.get("actor/skipped_updates", 0) for data in metrics)
    if skipped:
        err.print(
            f"warning: {skipped:.0f} updates were skipped, because their gradient was not finite. Set a smaller "
            "actor_rollout_ref.actor.optim.lr.",
            style="yellow",
            soft_wrap=True,
            highlight=False,
        )


def _compare_command(folder: Path, *, exact: bool) -> str:
    """The command that compares the label in ``folder`` with another one of the same runs."""
    others = sorted(path for path in folder.parent.iterdir() if any(path.glob("seed_*")) and path != folder)
    baseline = next((path for path in others if path.name == "grpo"), others[0] if others else folder.parent / "OTHER")
    command = "verl-gsd compare --exact" if exact else "verl-gsd compare"
    return " ".join([command, *(f"{shlex.quote(str(_short(path)))}/seed_*" for path in (baseline, folder))])


def _short(path: Path) -> Path:
    """The path relative to the current folder, if it is below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
