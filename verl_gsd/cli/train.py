"""``verl-gsd train algo=... task=... hardware=...``: compose the config, check it, train, and print the results."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.console import err, fail, out
from verl_gsd.word_completion import complete_words

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.run.compose import Line
    from verl_gsd.run.messages import Kind
    from verl_gsd.rundir import RunDirectory


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            autocompletion=complete_words,
            help="recipe=, or algo= and task=, or algo=, data=FOLDER of verl-gsd prepare and model=FOLDER_OR_HUB_NAME; "
            "hardware=, logger=; resume=RUN or RUN/global_step_N; trust=RUN to resume a run that somebody else made, "
            "or to use a folder where others can write; "
            "any verl key.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="Try the config on this CPU: three steps of a tiny model."),
    ] = False,
    seeds: Annotated[str | None, typer.Option("--seeds", hidden=True)] = None,
) -> None:
    """Train with verl and vLLM, and print the results.

    Examples:
        verl-gsd train algo=grpo task=arithmetic hardware=cpu
        verl-gsd train recipe=start/gsm8k_qwen2.5_0.5b hardware=gpu
        verl-gsd train resume=RUN
    """
    from verl_gsd.errors import ConfigError

    if seeds is not None:
        _reject_seeds(seeds)
    if not words:
        _say_what_to_type()
    if rehearse:
        _rehearse(words, dry_run)
        return
    try:
        line, config = _compose(words)
        from verl_gsd.run.checks.validate import OF_THIS_ENVIRONMENT, validate
        from verl_gsd.run.checks.with_verl import validate_with_verl

        warnings = _warn_of_damaged_marker(line, config)
        validate(config, line, leave_out=OF_THIS_ENVIRONMENT if dry_run else ())
        warnings += print_audit(config)
        if dry_run:
            for problem in (problem for check in OF_THIS_ENVIRONMENT for problem in check(config, line)):
                err.print(f"warning: {problem}", style="yellow", markup=False, highlight=False)
                warnings += 1
            with redirect_stdout(sys.stderr):  # verl prints while it validates; standard output must be only the config
                messages = validate_with_verl(config)
            for message in messages:
                style = "yellow" if message.kind == "warning" else None
                err.print(f"{message.kind}: {message.text}", style=style, markup=False, highlight=False)
                warnings += message.kind == "warning"
    except ConfigError as error:
        fail(str(error))
    if dry_run:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config), end="", flush=True)
        from verl_gsd.run.checks.steps_left import planned_steps

        _print_verdict(warnings, planned_steps(config))
        return
    make_task(config)
    _run(config, line)


def _say_what_to_type() -> NoReturn:
    """End with the words to start from, for a line that has none."""
    fail(
        "there is nothing to train yet. A first run takes a few minutes on any CPU:\n"
        "    verl-gsd train algo=grpo task=arithmetic hardware=cpu\n"
        "On a GPU, with Qwen2.5 0.5B and GSM8K:\n"
        "    verl-gsd prepare gsm8k\n"
        "    verl-gsd train recipe=start/gsm8k_qwen2.5_0.5b hardware=gpu\n"
        "For all algorithms, run `verl-gsd algos`. For all words and options, run `verl-gsd train --help`."
    )


def _reject_seeds(seeds: str) -> NoReturn:
    """Say how to train several seeds: other commands have this option."""
    from verl_gsd.jobs.submission import SEED_KEYS

    first = re.split(r"\D", seeds)[0] or "1"
    fail(
        f"--seeds {seeds}: verl-gsd train makes one run with one seed. Start one run per seed, for example with "
        f"{' '.join(f'{key}={first}' for key in SEED_KEYS)}. Or use `verl-gsd submit --seeds 1,2,3`, which starts one "
        "job per seed on a Ray cluster, or `verl-gsd lab train --seeds 1..3`, which trains small models in the "
        "laboratory (docs/lab.md)."
    )


def _print_verdict(warnings: int, steps: int | None) -> None:
    """Print what the checks of a dry run found, after the config, which is longer than a screen.

    Args:
        steps: the number of steps that the run takes at most; None if it is not known.
    """
    counted = (
        f"{warnings} warning{'s' if warnings > 1 else ''}, printed before the config" if warnings else "no warnings"
    )
    planned = "" if steps is None else f" Steps: at most {steps:,}."
    unchecked = "what the warnings name, " if warnings else ""
    err.print(
        f"Config valid, {counted}.{planned} Not checked: {unchecked}the model's weights, real memory and speed, and "
        "training itself. To try the config on this CPU, use --rehearse instead of --dry-run.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _rehearse(words: list[str], dry_run: bool) -> None:
    from verl_gsd.cli.rehearse import rehearse
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.compose import resolve

    if dry_run:
        fail("--dry-run and --rehearse: a dry run starts nothing. Remove one of the two options.")
    try:
        line, composed = _compose_unresolved(words)
        if line.resume is not None:
            fail(f"resume={line.resume} and --rehearse: a rehearsal resumes a run of its own. Remove resume=.")
        config = resolve(composed)
    except ConfigError as error:
        fail(str(error))
    rehearse(line, composed, config)


def _compose(words: list[str]) -> tuple[Line, DictConfig]:
    """Return the parsed command line and the resolved config, with a run directory and names set."""
    from verl_gsd.run.compose import resolve

    line, composed = _compose_unresolved(words)
    return line, resolve(composed)


def _compose_unresolved(words: list[str]) -> tuple[Line, DictConfig]:
    """As ``_compose``, with interpolations unresolved."""
    from omegaconf import open_dict

    from verl_gsd.errors import ConfigError
    from verl_gsd.run import compose, own_data
    from verl_gsd.run.checks.gsd_section import checkpoint_to_resume
    from verl_gsd.run.code_paths import fix_code_paths
    from verl_gsd.run.launch import require_unused
    from verl_gsd.run.sizing import apply_sizing
    from verl_gsd.run.trust import check_checkpoint, check_folder
    from verl_gsd.run.written_folders import fix_written_folders
    from verl_gsd.rundir import RunDirectory

    line = given = compose.parse_line(words)
    checkpoint = _chosen_checkpoint(line)
    if line.resume is not None:
        line = _line_to_resume(line)
    if line.choices.get("hardware") == "cpu":
        os.environ["VERL_GSD_CPU"] = "1"  # before anything imports verl
    config, chosen = own_data.compose_here(line)
    line = fix_code_paths(config, line, given)
    for text in chosen:
        err.print(text, markup=False, highlight=False)
    apply_sizing(config, line)
    with open_dict(config):
        if line.resume is not None:
            config.trainer.default_local_dir = str(line.resume)
            if checkpoint is not None:
                config.trainer.resume_mode, config.trainer.resume_from_path = "resume_path", str(checkpoint)
    name_run(config, line)
    folder = Path(config.trainer.default_local_dir)
    # Checked paths are used without symbolic links from here on: others may change a link after the check.
    real = check_folder(folder) if line.trust is None else folder.resolve()
    if line.trust is not None and not real.is_relative_to(line.trust.resolve()):
        raise ConfigError(f"trust={line.trust}: the run's folder {folder} is not in it. Set trust={folder}.")
    with open_dict(config):
        config.trainer.default_local_dir = str(real)
        fix_written_folders(config, real, line.trust)
        if line.resume is None:
            require_unused(RunDirectory(real))
            if (named := checkpoint_to_resume(config)) is not None:
                config.trainer.resume_from_path = str(check_checkpoint(named))
    return line, config


def name_run(config: DictConfig, line: Line) -> None:
    """Set the run's folder, where the line has none, and its names for loggers.

    Raises:
        ConfigError: the folder is not local.
    """
    from omegaconf import open_dict

    from verl_gsd.errors import ConfigError
    from verl_gsd.run.remote_paths import scheme_of

    with open_dict(config):
        if line.resume is None and "trainer.default_local_dir" not in line.keys:
            name = f"{line.title}-{datetime.now():%Y%m%d-%H%M%S}".replace("/", "-")
            config.trainer.default_local_dir = f"runs/{name}"
        if scheme_of(str(config.trainer.default_local_dir)):
            raise ConfigError(
                f"trainer.default_local_dir={config.trainer.default_local_dir}: a run directory must be a local path. "
                "Set the key to a local folder, or to one on storage that is mounted here."
            )
        run_path = Path(config.trainer.default_local_dir).expanduser().absolute()
        config.trainer.default_local_dir = str(run_path)
        if "trainer.project_name" not in line.keys:
            config.trainer.project_name = "verl-gsd"
        if "trainer.experiment_name" not in line.keys:
            config.trainer.experiment_name = run_path.name


def _chosen_checkpoint(line: Line) -> Path | None:
    """Return the checkpoint that resume=RUN/global_step_N names, or None for resume=RUN.

    RUN is without symbolic links. The checkpoint itself may be a link to another disk.

    Raises:
        ConfigError: as for ``trust.real_run``.
    """
    from verl_gsd.checkpoints import step_of
    from verl_gsd.run.trust import real_run

    if line.resume is None or step_of(line.resume) is None:
        return None
    return real_run(line.resume.parent) / line.resume.name


def _line_to_resume(line: Line) -> Line:
    """Return the stored command line of the run to resume, with the new words as further overrides."""
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.code_paths import check_stored_model
    from verl_gsd.run.compose import parse_line
    from verl_gsd.run.kept_settings import settings_of_state
    from verl_gsd.run.own_data import sizes_of_run
    from verl_gsd.run.trust import real_run, stored_words
    from verl_gsd.run.void_words import void_words
    from verl_gsd.rundir import RunDirectory

    assert line.resume is not None
    checkpoint = _chosen_checkpoint(line)
    run = RunDirectory(checkpoint.parent if checkpoint else real_run(line.resume))
    if checkpoint and not checkpoint.is_dir():
        raise ConfigError(f"resume={line.resume}: does not exist. Set resume= to a run's folder or a checkpoint in it.")
    if not run.overrides.is_file():
        raise ConfigError(
            f"resume={line.resume}: not a run's folder (it has no {run.overrides.name}). Set resume= to a run's folder."
        )
    newest = run.latest_checkpoint()
    if newest is None and not checkpoint:
        raise ConfigError(
            f"resume={line.resume}: the run saved no checkpoint. Start a new run in another folder, with "
            "trainer.save_freq above 0 and not above the step at which this run stopped."
        )
    if line.trust is not None and line.trust.resolve() != run.path.resolve():
        raise ConfigError(f"trust={line.trust}: this is not the folder that resume= names. Set trust={run.path}.")
    loaded = checkpoint or (None if newest is None else run.checkpoint(newest))
    stored = stored_words(run, loaded, trusted=line.trust is not None)
    # These overrides applied only to the start at which they were given: its checkpoint, its algorithm state, and
    # whether it trained at all.
    one_time = re.compile(r"\+*(algorithm\.gsd\.state|trainer\.resume_\w+|trainer\.val_only)=")
    stored = [word for word in stored if not one_time.match(word)]
    with _naming(run.overrides):
        check_stored_model(stored, line)
        started = parse_line([*stored, f"resume={run.path}"])
    if run.config.is_file():
        content = _stored_config(run)
        with _naming(run.config):
            stored += sizes_of_run(started, content)
    for key in line.keys:
        if key.startswith("trainer.resume_"):
            raise ConfigError(f"{key}: conflicts with resume=. Remove it, or set resume=RUN/global_step_N.")
    for word in (void := void_words(stored, line)):
        text = f"note: {word} of the run to resume is left out: with the words of this line, it has no effect"
        err.print(text, markup=False, highlight=False, soft_wrap=True)
    stored = [word for word in stored if word not in void]
    resumed = parse_line([*stored, *line.words_given, f"resume={run.path}"])
    kept = settings_of_state(resumed, loaded) if loaded is not None and not _starts_fresh(line) else []
    if kept:
        resumed = parse_line([*stored, *kept, *line.words_given, f"resume={run.path}"])
    return dataclasses.replace(resumed, trust=line.trust)  # a run cannot trust itself


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin the message of a ConfigError with the file that causes it."""
    from verl_gsd.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _starts_fresh(line: Line) -> bool:
    """Whether the words of a resume ignore the saved state."""
    return any(re.fullmatch(r"\+*algorithm\.gsd\.state=fresh", word) for word in line.words_given)


def _warn_of_damaged_marker(line: Line, config: DictConfig) -> int:
    """Warn if a resume must choose its checkpoint, because verl's marker contains no step.

    Returns:
        The number of warnings.
    """
    from verl_gsd.rundir import RunDirectory

    run = RunDirectory(Path(config.trainer.default_local_dir))
    is_chosen = config.trainer.resume_mode == "resume_path"
    if line.resume is None or is_chosen or not run.marker_is_damaged():
        return 0
    err.print(
        f"warning: {run.marker}: contains no step (was the disk full?). Resuming from "
        f"global_step_{run.latest_checkpoint()}, the newest complete checkpoint.",
        style="yellow",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 1


def _stored_config(run: RunDirectory) -> dict[str, Any]:
    """The config of the run to resume.

    Raises:
        ConfigError: the file is damaged.
    """
    from verl_gsd.errors import ConfigError

    try:
        content = run.read_yaml(run.config)
    except ValueError as error:
        raise ConfigError(f"{error}. Repair the file, or start a new run.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{run.config}: not a config. Repair the file, or start a new run.")
    return content


def print_audit(config: DictConfig) -> int:
    """Print the audit, the chosen sizes and the memory estimate to standard error.

    With --dry-run, standard output is the config.

    Returns:
        The number of warnings among them.
    """
    from verl_gsd.audit import audit
    from verl_gsd.run.checks.lora import lora_warnings
    from verl_gsd.run.checks.memory import estimate
    from verl_gsd.run.checks.parallelism import attention_reason
    from verl_gsd.run.checks.sizes_in_data import dataset_group_sizes
    from verl_gsd.run.sizing import sizing_lines

    sizes = (*sizing_lines(config), *estimate(config), *lora_warnings(config))
    texts = [*audit(config).lines(), *attention_reason(config), *dataset_group_sizes(config), *sizes]
    for text in texts:
        err.print(text, style="yellow" if text.startswith("warning") else None, markup=False, highlight=False)
    return sum(text.startswith("warning") for text in texts)


def make_task(config: DictConfig) -> None:
    """Create the data and the model of an embedded task on first use. All other tasks must exist."""
    from verl_gsd.cli.prepare import ensure_with_progress
    from verl_gsd.tasks.catalog import TASKS

    task = TASKS.get(config.get("task", {}).get("name"))
    if task is not None:
        ensure_with_progress(Path(config.task.directory), task)


def _run(config: DictConfig, line: Line) -> None:
    from verl_gsd.cli.export import show_export_command
    from verl_gsd.cli.report import show_report_command
    from verl_gsd.errors import ConfigError
    from verl_gsd.run import launch, trust
    from verl_gsd.run.messages import RunStoppedError
    from verl_gsd.rundir import MetricsReader, RunDirectory

    held_out = held_out_prompts(config)
    if reason := trust.why_unsigned():
        err.print(
            f"warning: this run will not be signed, so that a resume of it needs trust=RUN (docs/resume.md). {reason}.",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    run = RunDirectory(Path(config.trainer.default_local_dir))
    try:
        is_resume, is_trusted = line.resume is not None, line.trust is not None
        with launch.new_attempt(config, line.words, is_resume, trusted=is_trusted) as (run, attempt):
            err.print(f"run directory [bold]{escape(str(run.path))}[/]", soft_wrap=True)
            err.print(f"output of Ray, verl and vLLM: {run.log(attempt).relative_to(run.path)} in the run directory")
            err.print("starting Ray, the trainer and vLLM; with few CPU cores this takes one to two minutes")
            train_attempt(run, attempt, config)
    except KeyboardInterrupt:
        _show_how_to_resume(run)
        fail("interrupted; all processes of this run have ended", code=130)
    except ConfigError as error:
        fail(str(error))
    except (RunStoppedError, launch.RunFailedError) as error:
        _show_how_to_resume(run)
        outcome = "was stopped" if isinstance(error, RunStoppedError) else "failed"
        fail(f"the run {outcome}: {error}\nfull log: {run.log(attempt)}", code=1)
    metrics = list(MetricsReader(run.metrics(attempt), skip_damaged=True).new())
    out.print(result_table(metrics, held_out))
    show_export_command(run)
    out.print(f"run directory [bold]{escape(str(run.path))}[/]", soft_wrap=True)
    if "wandb" in config.trainer.logger and launch.wandb_is_offline():
        command = f"wandb sync {run.path}/wandb/offline-run-*"
        out.print(f"wandb was offline. To upload the run: {command}", soft_wrap=True, markup=False)
    show_report_command(run.path)


def train_attempt(run: RunDirectory, attempt: int, config: DictConfig, score_note: str = "") -> None:
    """Train an attempt of a run, and print its steps and messages.

    Args:
        config: of the run, as ``launch.new_attempt`` left it.
        score_note: printed after each reward and accuracy, for scores that are not those of the reward function.
    """
    from verl_gsd.cli.step_display import StepDisplay
    from verl_gsd.run import launch

    with StepDisplay(config.trainer.total_training_steps, err, score_note) as display:

        def show_message(kind: Kind, text: str) -> None:
            if kind != "steps":
                _show_message(kind, text)
            elif text.isdecimal():
                display.set_total(int(text))

        launch.train(
            run,
            attempt,
            config,
            on_step=display.show,
            on_wait=lambda text: err.print(text, markup=False, highlight=False),
            on_message=show_message,
        )


def _show_message(kind: str, text: str) -> None:
    """Print a note or a warning of the trainer."""
    line, style = (f"warning: {text}", "yellow") if kind == "warning" else (text, None)
    err.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def held_out_prompts(config: DictConfig) -> Counter[str]:
    """Return ``prompts.independent_prompts`` of verl's held-out prompts per data source.

    It is empty if the config does not determine the prompts.
    """
    import pyarrow.parquet as pq
    from omegaconf import ListConfig

    from verl_gsd.prompts import independent_prompts, question_labels
    from verl_gsd.run.checks.data_files import has_own_dataset
    from verl_gsd.run.dataset import files_with
    from verl_gsd.run.remote_paths import scheme_of

    data = config.data
    names = data.val_files if isinstance(data.val_files, ListConfig) else [data.val_files]
    if any(scheme_of(name) for name in names) or has_own_dataset(config):
        return Counter()
    if len(files_with("data_source", names)) < len(names):  # the column is optional if a reward model scores
        return Counter()
    files = [Path(name).expanduser() for name in names]
    # verl filters rows by token length or limits their number, or the files are not Parquet.
    if (
        data.filter_overlong_prompts
        or (data.val_max_samples or -1) > 0
        or any(file.suffix != ".parquet" for file in files)
    ):
        return Counter()
    asked = [data.get(key) for key in ("prompt_key", "image_key", "video_key", "audio_key")]
    labels: dict[str, list[int]] = {}
    for file in files:
        has = set(pq.read_schema(file).names)
        parts = [name for name in dict.fromkeys(asked) if name in has]
        table = pq.read_table(file, columns=sorted({"data_source", *parts, *({"reward_model"} & has)}))
        columns = {name: table[name].to_pylist() for name in table.column_names}
        columns["raw_prompt"] = list(zip(*(columns[name] for name in parts), strict=True)) or [*range(len(table))]
        for source, label in zip(columns["data_source"], question_labels(columns), strict=True):
            labels.setdefault(source, []).append(label)
    return Counter({source: independent_prompts(of_source) for source, of_source in labels.items()})


def result_table(metrics: list, prompts: Counter[str]) -> Table:
    """Held-out accuracy before and after, sampled and exact, steps and seconds per step, from (step, metrics)."""
    from verl_gsd.evaluation.summary import summarise, why_without_intervals
    from verl_gsd.rundir import EXACT

    summary = summarise(metrics, prompts)
    table = Table(show_header=False, title="result", title_justify="left")
    for held_out in summary.held_out:
        size = f" ({held_out.prompts} prompts)" if held_out.prompts else ""
        if held_out.prompts != held_out.rows:
            size = f" ({held_out.rows} rows, which repeat prompts and count as {held_out.prompts})"
        figure = held_out.not_accuracy or "accuracy"
        table.add_row(escape(f"held-out {figure}, {held_out.source}{size}"), " -> ".join(map(str, held_out.accuracies)))
    exact = [(step, data[EXACT], data["exact/slack"]) for step, data in metrics if EXACT in data]
    if exact:
        ends = dict.fromkeys((exact[0], exact[-1]))
        values = " -> ".join(f"{value:.3f} to {value + slack:.3f} at step {step}" for step, value, slack in ends)
        table.add_row("the same without sampling, bounds", values)
    if summary.held_out:
        reason = why_without_intervals(summary.held_out)
        table.add_row("intervals", f"none: {reason}" if reason else "95%, over prompts")
    table.add_row("steps of this attempt", str(summary.steps))
    if summary.seconds_per_step is not None:
        table.add_row("seconds per step (median)", f"{summary.seconds_per_step:.2f}")
    return table


def _show_how_to_resume(run: RunDirectory) -> None:
    """Print the command on a line of its own without wrapping, so that it can be pasted into a shell."""
    from verl_gsd.run.checks.gsd_section import resume_command

    step = run.latest_checkpoint()
    if step is None:
        err.print("no checkpoint was saved yet")
        return
    err.print(f"last checkpoint: step {step}. To resume from it, run:", highlight=False)
    err.print(resume_command(run.path), soft_wrap=True, markup=False, highlight=False)
