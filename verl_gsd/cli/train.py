"""``verl-gsd train algo=... task=... hardware=...``: compose, check, run, and say what came of it."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.run.compose import Line
    from verl_gsd.rundir import RunDirectory


def train(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="recipe=, or algo= and task=; hardware=, logger=; resume=RUN or RUN/global_step_N; any verl key.",
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train on the real stack, e.g. verl-gsd train algo=grpo task=arithmetic hardware=cpu."""
    from verl_gsd.errors import ConfigError

    try:
        line, config = _compose(words)
        from verl_gsd.run.checks.validate import OF_THIS_ENVIRONMENT, validate
        from verl_gsd.run.checks.with_verl import validate_with_verl

        validate(config, line, leave_out=OF_THIS_ENVIRONMENT if dry_run else ())
        _require_steps_left(config, line)
        _say_what_it_does(config)
        if dry_run:
            for problem in (problem for check in OF_THIS_ENVIRONMENT for problem in check(config, line)):
                err.print(f"warning: {problem}", style="yellow", markup=False, highlight=False)
            with redirect_stdout(sys.stderr):  # verl prints as it validates; standard output is the config alone
                messages = validate_with_verl(config)
            for message in messages:
                style = "yellow" if message.kind == "warning" else None
                err.print(f"{message.kind}: {message.text}", style=style, markup=False, highlight=False)
    except ConfigError as error:
        fail(str(error))
    if dry_run:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="")
        return
    _make_task(config)
    _run(config, line)


def _compose(words: list[str]) -> tuple[Line, DictConfig]:
    from omegaconf import open_dict

    from verl_gsd.errors import ConfigError
    from verl_gsd.run import compose
    from verl_gsd.run.launch import require_unused
    from verl_gsd.run.remote_paths import scheme_of
    from verl_gsd.rundir import RunDirectory

    line = compose.parse_line(words)
    checkpoint = _chosen_checkpoint(line)
    if line.resume is not None:
        line = _resumed(line)
    if line.choices.get("hardware") == "cpu":
        os.environ["VERL_GSD_CPU"] = "1"  # before anything imports verl
    config = compose.compose_config(line)
    with open_dict(config):
        if line.resume is None and "trainer.default_local_dir" not in line.keys:
            chosen = [line.choices[group] for group in ("recipe", "task", "algo") if group in line.choices]
            name = f"{'-'.join(chosen)}-{datetime.now():%Y%m%d-%H%M%S}".replace("/", "-")
            config.trainer.default_local_dir = f"runs/{name}"
        elif line.resume is not None:
            config.trainer.default_local_dir = str(line.resume)
            if checkpoint is not None:
                config.trainer.resume_mode, config.trainer.resume_from_path = "resume_path", str(checkpoint)
        if scheme_of(str(config.trainer.default_local_dir)):
            raise ConfigError(
                f"trainer.default_local_dir={config.trainer.default_local_dir}: a run is written to a folder of this "
                "machine. Set the key to a local folder, or to one on storage that is mounted here."
            )
        place = Path(config.trainer.default_local_dir).expanduser().absolute()
        config.trainer.default_local_dir = str(place)
        if "trainer.project_name" not in line.keys:
            config.trainer.project_name = "verl-gsd"
        if "trainer.experiment_name" not in line.keys:
            config.trainer.experiment_name = place.name
    if line.resume is None:
        require_unused(RunDirectory(place))
    return line, compose.resolve(config)


def _chosen_checkpoint(line: Line) -> Path | None:
    """The checkpoint that resume=RUN/global_step_N names; None for resume=RUN."""
    from verl_gsd.checkpoints import step_of

    place = None if line.resume is None else line.resume.absolute()
    return place if place is not None and step_of(place) is not None else None


def _resumed(line: Line) -> Line:
    """The stored line of the run to go on with, and the new words over it."""
    import yaml

    from verl_gsd.errors import ConfigError
    from verl_gsd.run.compose import parse_line
    from verl_gsd.rundir import RunDirectory

    assert line.resume is not None
    chosen = _chosen_checkpoint(line)
    run = RunDirectory(chosen.parent if chosen else line.resume.absolute())
    if chosen and not chosen.is_dir():
        raise ConfigError(f"resume={line.resume}: is not there. Set resume= to a run's folder or a checkpoint in it.")
    if not run.overrides.is_file():
        raise ConfigError(f"resume={line.resume}: no run there (no {run.overrides.name}). Write a run's folder.")
    newest = run.latest_checkpoint()
    if newest is not None and run.marker_is_damaged() and not chosen:
        err.print(
            f"warning: {run.marker}: no step in it (was the disk full?). Resuming from global_step_{newest}, the "
            "newest whole checkpoint.",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if newest is None and not chosen:
        raise ConfigError(
            f"resume={line.resume}: the run saved no checkpoint. Start anew, with trainer.save_freq=N above 0 and not "
            "above the step it stopped at."
        )
    stored = yaml.safe_load(run.overrides.read_text(encoding="utf-8"))
    # Asked for once, at an earlier start: where that began, and with what memory, is not where this one does.
    once = re.compile(r"\+*(algorithm\.gsd\.state|trainer\.resume_\w+)=")
    stored = [word for word in stored if not once.match(word)]
    for key in line.keys:
        if key.startswith("trainer.resume_"):
            raise ConfigError(f"{key}: resume= says where to resume. Leave it out, or set resume=RUN/global_step_N.")
    return parse_line([*stored, *line.words_given, f"resume={run.path}"])


def _say_what_it_does(config: DictConfig) -> None:
    """The audit and the estimate of memory, to standard error: standard output is the config under --dry-run."""
    from verl_gsd.audit import audit
    from verl_gsd.run.checks.memory import estimate
    from verl_gsd.run.checks.parallelism import attention_reason
    from verl_gsd.run.checks.sizes_in_data import planned_sizes

    for text in (*audit(config).lines(), *attention_reason(config), *planned_sizes(config), *estimate(config)):
        err.print(text, style="yellow" if text.startswith("warning") else None, markup=False, highlight=False)


def _require_steps_left(config: DictConfig, line: Line) -> None:
    from verl_gsd.checkpoints import step_of
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.checks.gsd_section import checkpoint_to_resume

    checkpoint = checkpoint_to_resume(config)
    if line.resume is None or checkpoint is None:
        return
    done, total = step_of(checkpoint), config.trainer.total_training_steps
    if done is not None and total is not None and done >= total:
        raise ConfigError(
            f"trainer.total_training_steps={total}: the run has made {done} steps. Write a number above that."
        )


def _make_task(config: DictConfig) -> None:
    """The embedded task is made on first use; every other task is expected to be there."""
    if config.get("task", {}).get("name") != "arithmetic":
        return
    from verl_gsd.cli.prepare import ensure_with_progress

    ensure_with_progress(Path(config.task.directory))


def _run(config: DictConfig, line: Line) -> None:
    from verl_gsd.errors import ConfigError
    from verl_gsd.run import launch
    from verl_gsd.run.messages import RunStoppedError
    from verl_gsd.rundir import RunDirectory, read_metrics

    held_out = held_out_prompts(config)
    total = config.trainer.total_training_steps
    run = RunDirectory(Path(config.trainer.default_local_dir))
    try:
        with launch.attempt_in(config, line.words, resuming=line.resume is not None) as (run, attempt):
            out.print(f"run directory [bold]{run.path}[/]", soft_wrap=True)
            out.print(f"Ray, verl and vLLM print to {run.log(attempt).relative_to(run.path)} in it")
            out.print("starting Ray, the trainer and vLLM: a minute or two on few cores")
            with out.status("starting") as status:
                launch.train(
                    run,
                    attempt,
                    on_step=lambda step, data: _show(step, total, data, status),
                    on_wait=lambda text: out.print(text, markup=False, highlight=False),
                    on_message=_show_message,
                )
    except KeyboardInterrupt:
        _show_how_to_resume(run)
        fail("interrupted; no process of this run is left", code=130)
    except ConfigError as error:
        fail(str(error))
    except (RunStoppedError, launch.RunFailedError) as error:
        _show_how_to_resume(run)
        ended = "was stopped" if isinstance(error, RunStoppedError) else "failed"
        fail(f"the run {ended}: {error}\nthe whole log is {run.log(attempt)}", code=1)
    out.print(_table(list(read_metrics(run.metrics(attempt))), held_out))
    out.print(f"run directory [bold]{run.path}[/]", soft_wrap=True)
    if "wandb" in config.trainer.logger and launch.wandb_is_offline():
        out.print(f"wandb was offline: wandb sync {run.path}/wandb/offline-run-*", soft_wrap=True)


def _show(step: int, total: int | None, data: dict[str, float], status) -> None:
    parts = []
    if "critic/score/mean" in data:
        parts.append(f"reward {data['critic/score/mean']:.3f}")
    if "timing_s/step" in data:
        parts.append(f"{data['timing_s/step']:.1f} s")
    parts += [f"held-out {name.split('/')[1]} {value:.3f}" for name, value in data.items() if _is_accuracy(name)]
    out.print(f"step {step:>4}/{total or '?'}  " + "  ".join(parts), highlight=False)
    status.update("training")


def _show_message(kind: str, text: str) -> None:
    """A note or a warning of the trainer's."""
    shown, style = (f"warning: {text}", "yellow") if kind == "warning" else (text, None)
    out.print(shown, style=style, markup=False, highlight=False, soft_wrap=True)


def _is_accuracy(name: str) -> bool:
    return name.startswith("val-core/") and "/acc/mean@" in name


def held_out_prompts(config: DictConfig) -> Counter[str]:
    """Held-out prompts of each data source, as verl will use them; empty where that cannot be told from the config."""
    import pyarrow.parquet as pq
    from omegaconf import ListConfig

    from verl_gsd.run.checks.data_files import has_own_dataset
    from verl_gsd.run.dataset import files_with
    from verl_gsd.run.remote_paths import scheme_of

    data = config.data
    names = data.val_files if isinstance(data.val_files, ListConfig) else [data.val_files]
    if any(scheme_of(name) for name in names) or has_own_dataset(config):
        return Counter()
    if len(files_with("data_source", names)) < len(names):  # a reward model needs no such column
        return Counter()
    files = [Path(name).expanduser() for name in names]
    # verl leaves rows out by their length in tokens or by number, or reads files of another kind.
    if data.filter_overlong_prompts or (data.val_max_samples or -1) > 0 or any(f.suffix != ".parquet" for f in files):
        return Counter()
    return Counter(
        source for file in files for source in pq.read_table(file, columns=["data_source"])["data_source"].to_pylist()
    )


def _table(metrics: list, prompts: Counter[str]) -> Table:
    from verl_gsd.evaluation.summary import summarise

    summary = summarise(metrics, prompts)
    table = Table(show_header=False, title="result", title_justify="left")
    for held_out in summary.held_out:
        size = f" ({prompts[held_out.source]} prompts)" if held_out.source in prompts else ""
        table.add_row(f"held-out accuracy, {held_out.source}{size}", " -> ".join(map(str, held_out.accuracies)))
    if summary.held_out:
        table.add_row("intervals", "95%, Wilson" if prompts else "none: how many prompts verl used is not known")
    table.add_row("steps of this attempt", str(summary.steps))
    if summary.seconds_per_step is not None:
        table.add_row("seconds a step (median)", f"{summary.seconds_per_step:.2f}")
    return table


def _show_how_to_resume(run: RunDirectory) -> None:
    """The command is one line by itself, however narrow the terminal: it is meant to be pasted into a shell."""
    from verl_gsd.run.checks.gsd_section import resume_command

    step = run.latest_checkpoint()
    if step is None:
        out.print("no checkpoint was saved yet")
        return
    out.print(f"last checkpoint: step {step}. To resume from it, run:", highlight=False)
    out.print(resume_command(run.path), soft_wrap=True, markup=False, highlight=False)
