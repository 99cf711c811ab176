"""``verl-gsd prepare NAME``: prepares a data set, or makes an embedded task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from verl_gsd.console import err, fail, out
from verl_gsd.preparation.commands import data_folder
from verl_gsd.tasks.catalog import TASKS, EmbeddedTask

if TYPE_CHECKING:
    from verl_gsd.preparation.dataset import PrepareConfig
    from verl_gsd.preparation.manifest import PreparedDataset
    from verl_gsd.preparation.sources import Source


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A data set: gsm8k, math, dapo17k, openr1_math_46k, bigmath, tldr, or a benchmark of `verl-gsd eval`; "
            f"an embedded task: {', '.join(TASKS)}; or a new name for the table given with --input.",
        ),
    ],
    input: Annotated[
        Path | None,
        typer.Option(help="Read this instead of the hub: a downloaded folder, or a .parquet, .jsonl or .csv file."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of prepared data sets. Default: $VERL_GSD_DATA or ~/data, where recipes look."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Which split a file given with --input is: train or test. A table of your own is train by default."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder or hub name. Its chat template is checked, and its tokenizer counts the tokens of prompts."
        ),
    ] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(help="In tokens. Longer training prompts are left out. Needs --model.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Prepared data sets whose test problems are left out of training: comma-separated names, or none. "
            "Default: all prepared data sets."
        ),
    ] = None,
    overlap_words: Annotated[
        int,
        typer.Option(
            help="Length of the word runs by which a training problem is compared with test problems, 2 to 1000."
        ),
    ] = 13,
    skip_unusable: Annotated[
        bool,
        typer.Option("--skip-unusable", help="Leave out rows without a problem or an answer instead of stopping."),
    ] = False,
    problem_column: Annotated[
        str | None,
        typer.Option(
            help="Column of problems: texts, or chats. Of a chat, the last user message is the problem, and earlier "
            "messages are kept. Default: problem."
        ),
    ] = None,
    answer_column: Annotated[
        str | None,
        typer.Option(
            help="Column of answers: answers, solutions with the answer in the last \\boxed{}, or verl's reward_model. "
            "Default: answer."
        ),
    ] = None,
    demonstration_column: Annotated[
        str | None,
        typer.Option(help="Column of expert responses: texts, lists of texts, or chats. Default: no demonstrations."),
    ] = None,
    index_column: Annotated[
        str | None, typer.Option(help="Column of unique integers that identify problems. Default: the row number.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(help="Text added after every problem. Default: a request for the answer in \\boxed{}.")
    ] = None,
    judged_by_model: Annotated[
        bool, typer.Option("--judged-by-model", help="The table has no answers: a reward model judges the responses.")
    ] = False,
) -> None:
    """Write a data set in verl's columns to DATA/NAME, with a manifest that counts what was left out and why.

    An interrupted command resumes when you run it again. The column options are for a table of your own. Prepare its
    test split first, so that test problems are left out of the training split.

    Examples:
        verl-gsd prepare gsm8k --model Qwen/Qwen2.5-0.5B
        verl-gsd prepare mine --input problems.jsonl --answer-column solution
    """
    from verl_gsd.preparation.dataset import PrepareConfig

    column_options = {
        "--problem-column": problem_column,
        "--answer-column": answer_column,
        "--demonstration-column": demonstration_column,
        "--index-column": index_column,
        "--suffix": suffix,
        "--judged-by-model": "" if judged_by_model else None,
    }
    given_options = {option: value for option, value in column_options.items() if value is not None}
    if empty_options := [
        option
        for option, value in {**given_options, "--model": model}.items()
        if value == "" and option not in ("--suffix", "--judged-by-model")
    ]:
        fail(f"{empty_options[0]}: the value is empty. Set a value, or remove the option")
    if not 2 <= overlap_words <= 1000:
        fail(f"--overlap-words {overlap_words}: out of range. Use 2 to 1000; the default is 13")
    if name in TASKS:
        without_effect: dict[str, object] = {
            "--input": input,
            "--split": split,
            "--model": model,
            "--against": against,
            **given_options,
            "--max-prompt-length": max_prompt_length,
            "--skip-unusable": skip_unusable or None,
        }
        if unused := [option for option, value in without_effect.items() if value is not None]:
            fail(f"{unused[0]}: has no effect on {name}, which is generated and not read. Remove the option")
        _make_embedded_task(TASKS[name], data)
        return
    if max_prompt_length is not None and model is None:
        fail(f"--max-prompt-length {max_prompt_length}: tokens cannot be counted without a model. Set --model")
    if max_prompt_length is not None and max_prompt_length < 1:
        fail(f"--max-prompt-length {max_prompt_length}: out of range. Use 1 or more")
    try:
        source = _source(name, input, split, given_options)
        folder = data or data_folder()
        config = PrepareConfig(
            name,
            source,
            folder,
            input,
            model,
            max_prompt_length,
            _evaluation_sets(against, folder, source),
            overlap_words,
            skip_unusable,
        )
        dataset, first_prompt = _prepare_with_progress(config)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--data {data or data_folder()}: the data set cannot be written: {error}")
    except KeyboardInterrupt:
        fail("interrupted. Run the same command again to resume", code=130)
    _print_summary(dataset, first_prompt, config)


def _source(name: str, input: Path | None, split: str | None, given_options: dict[str, str]) -> Source:
    """The named source, or the table that the column options describe."""
    import dataclasses

    from verl_gsd.preparation import sources
    from verl_gsd.preparation.manifest import check_name

    if split not in (None, "train", "test"):
        raise ValueError(f"--split {split}: not a split. Use train or test")
    check_name(name)
    source = sources.SOURCES.get(name)
    if source is None:
        if input is None:
            names = ", ".join([*TASKS, *sources.SOURCES])
            raise ValueError(f"{name}: not a known data set. Use one of {names}, or set --input to a table")
        if "--judged-by-model" in given_options and "--answer-column" in given_options:
            raise ValueError(
                f"--answer-column {given_options['--answer-column']}: has no effect together with --judged-by-model. "
                "Remove one of the two options"
            )
        answer = None if "--judged-by-model" in given_options else given_options.get("--answer-column", "answer")
        return sources.table(
            given_options.get("--problem-column", "problem"),
            answer,
            given_options.get("--demonstration-column"),
            given_options.get("--index-column"),
            suffix=given_options.get("--suffix", sources.BOXED),
            split=split or "train",
        )
    if given_options:
        option, value = next(iter(given_options.items()))
        raise ValueError(f"{option} {value}: {name} has fixed columns. Remove the option, or use another NAME")
    is_file = input is not None and input.is_file()
    if split is not None and not is_file:
        raise ValueError(
            f"--split {split}: only for a file. All splits of the hub or of a folder are prepared. Remove the option"
        )
    if is_file and split is None and len(source.splits) > 1:
        raise ValueError(
            f"--input {input}: the split of this file is not known. Set --split {' or --split '.join(source.splits)}"
        )
    if is_file and split is not None and split not in source.splits:
        raise ValueError(f"--split {split}: {name} has no such split, only {', '.join(source.splits)}")
    return dataclasses.replace(source, splits={split: source.splits[split]}) if split else source


def _evaluation_sets(against: str | None, folder: Path, source: Source) -> list[PreparedDataset] | None:
    """The prepared data sets whose test problems are left out of training; None to leave nothing out."""
    from verl_gsd.preparation.manifest import list_prepared

    if against == "none" or (against is None and source.verifier is None):
        return None
    prepared = list_prepared(folder, _print_skipped)
    available = {dataset.name: dataset for dataset in prepared if dataset.splits.get("test", {}).get("verifier")}
    if against is None:
        return list(available.values())
    names = [name.strip() for name in against.split(",") if name.strip()]
    missing = [name for name in names or [against] if name not in available]
    if missing:
        raise ValueError(
            f"--against {missing[0]}: {folder} has no test split of it. Run verl-gsd prepare {missing[0]} first, or "
            f"use some of: {', '.join(available) or 'none'}"
        )
    return [available[name] for name in dict.fromkeys(names)]


def _print_skipped(message: str) -> None:
    err.print(f"Skipped a data set: {escape(message)}", highlight=False, soft_wrap=True)


def _prepare_with_progress(config: PrepareConfig) -> tuple[PreparedDataset, str | None]:
    from verl_gsd.preparation.dataset import prepare_dataset

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err) as progress:
        bars = {split: progress.add_task(split, total=None, visible=False) for split in config.source.splits}

        def show(split: str, read: int, kept: int) -> None:
            description = f"{config.name} {split}: {read} rows read, {kept} kept"
            progress.update(bars[split], description=description, visible=True)

        return prepare_dataset(config, show)


def _print_summary(dataset: PreparedDataset, first_prompt: str | None, config: PrepareConfig) -> None:
    from verl_gsd.preparation.build import MAX_COMPARISONS

    table = Table("split", "rows", "read", "left out")
    for split in config.source.splits:
        entry = dataset.splits[split]
        reasons = [f"{n} {reason.replace('_', ' ')}" for reason, n in entry["left_out"].items()]
        table.add_row(escape(split), str(entry["rows"]), str(entry["read"]), escape(", ".join(reasons)) or "none")
        if entry["contaminated_by_set"]:
            by_set = ", ".join(f"{name} {n}" for name, n in entry["contaminated_by_set"].items())
            out.print(
                f"{split}: left out because an evaluation set has the problem: {by_set}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        if entry["not_compared"]:
            out.print(
                f"{split}: the verifier did not compare the answers of {entry['not_compared']} of the conflicting "
                f"rows, because it compares {MAX_COMPARISONS:,} pairs at most.",
                highlight=False,
            )
        if split == "train" and not entry["against"]:
            out.print("The training problems were not compared with any evaluation set.", highlight=False)
    out.print(table)
    for split in config.source.splits:
        _print_faulty_references(dataset, split)
    _print_first_rows(dataset, next(iter(config.source.splits)))
    if "test" in config.source.splits and dataset.splits["test"]["verifier"]:
        _print_older_training_sets(dataset, config.data_folder)
    if first_prompt is not None:
        out.print("The first prompt, as the model reads it:")
        out.print(escape(repr(first_prompt)), highlight=False, soft_wrap=True)
    else:
        out.print("The chat template and prompt lengths were not checked. Set --model to check them.", highlight=False)
    out.print(f"{dataset.name} is in [bold]{escape(str(dataset.folder))}[/]", soft_wrap=True)
    _print_next(dataset, config.model)


#: What a reason of ``references.py`` means, for the summary.
_FAULTS = {
    "no_answer": "the reference is a placeholder",
    "several_answers": "the reference answers several parts",
    "proof": "the reference is a proof",
    "sentence": "the reference is a sentence, which only the same words equal",
}
#: Rows that the summary shows, of each reason and of those that were kept.
_EXAMPLES = 3
#: Characters of a question that the summary shows.
_SHOWN_CHARACTERS = 80


def _print_faulty_references(dataset: PreparedDataset, split: str) -> None:
    """Show examples of the rows whose reference is not one answer."""
    from verl_gsd.preparation.manifest import LEFT_OUT

    counts = {reason: n for reason, n in dataset.splits[split]["left_out"].items() if reason in _FAULTS}
    if not counts:
        return
    path = dataset.folder / LEFT_OUT.format(split=split)
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    for reason, n in counts.items():
        first = [row for row in rows if row["reason"] == reason][:_EXAMPLES]
        examples = ", ".join(f"row {row['row']} {_quoted(row['detail'])}" for row in first)
        out.print(
            f"{split}: {n} left out because {_FAULTS[reason]}: {examples}{', ...' if n > len(first) else ''}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    out.print(f"All rows that were left out: {path}", markup=False, highlight=False, soft_wrap=True)


def _print_first_rows(dataset: PreparedDataset, split: str) -> None:
    """Show what is asked and which answer is right, so that a wrong column or form is noticed."""
    import pyarrow.parquet as pq

    batch = next(pq.ParquetFile(dataset.file(split)).iter_batches(_EXAMPLES, columns=["prompt", "reward_model"]), None)
    for number, row in enumerate([] if batch is None else batch.to_pylist()):
        *earlier, last = row["prompt"]
        question = "".join(f"{message['role']}: {message['content']}\n" for message in earlier) + last["content"]
        if number:  # the suffix is the same
            question = question[:_SHOWN_CHARACTERS] + ("..." if len(question) > _SHOWN_CHARACTERS else "")
        answer = (row["reward_model"] or {}).get("ground_truth")
        out.print(
            f"{split} row {number}: {_quoted(question)} -> {_quoted(answer)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _quoted(text: object) -> str:
    """The text in quotes on one line. Unlike ``repr``, this leaves backslashes as the reader knows them from LaTeX."""
    mark = '"' if "'" in str(text) else "'"
    return f"{mark}{text}{mark}".replace("\n", "\\n") if isinstance(text, str) else repr(text)


def _print_next(dataset: PreparedDataset, model: str | None) -> None:
    """Print the command that uses the data set, on a line of its own, so that it can be pasted into a shell."""
    from verl_gsd.preparation.commands import prepare_command, train_command
    from verl_gsd.preparation.sources import SOURCES

    if "train" in dataset.splits:
        text, command = "To train on it:", train_command(dataset, model)
    elif dataset.name in SOURCES:
        text, command = "To evaluate a model:", f"verl-gsd eval --checkpoint MODEL --bench {dataset.name}"
    else:
        text, command = "To train, prepare a training split:", prepare_command(dataset.folder)
    if "test" not in dataset.splits:
        remedy = (
            "This data set has none. Run verl-gsd prepare math500, or another benchmark, and set data.val_files to its "
            "test.parquet."
            if dataset.name in SOURCES
            else f"Run {prepare_command(dataset.folder, 'test')}, or set data.val_files to another Parquet file."
        )
        out.print(f"There is no test split. {remedy}", markup=False, highlight=False, soft_wrap=True)
    out.print(text, highlight=False)
    out.print(command, soft_wrap=True, markup=False, highlight=False)


def _print_older_training_sets(dataset: PreparedDataset, data_folder: Path) -> None:
    """Name the training splits that were not compared with this test split."""
    from verl_gsd.preparation.manifest import list_prepared

    for other in list_prepared(data_folder, lambda _: None):
        train = other.splits.get("train", {})
        if train.get("verifier") and dataset.name not in train["against"]:
            out.print(
                f"{other.name}'s training problems were not compared with the test problems of {dataset.name}. "
                f"Run verl-gsd prepare {other.name} again with the same options.",
                highlight=False,
                soft_wrap=True,
            )


def default_directory(task: EmbeddedTask) -> Path:
    """The folder that ``task=NAME`` uses for an embedded task unless ``task.directory`` is set."""
    from verl_gsd import config

    return Path(config.load_with_defaults("task", task.name).task.directory)


def _make_embedded_task(task: EmbeddedTask, data: Path | None) -> None:
    """Make an embedded task: train and test files and a warm-started model."""
    directory = default_directory(task) if data is None else data / task.name
    out.print(f"{task.name} is in [bold]{escape(str(ensure_with_progress(directory, task)))}[/]")
    if data is None:
        out.print("To train on it:", highlight=False)
        out.print(f"verl-gsd train algo=grpo task={task.name} hardware=cpu", highlight=False, soft_wrap=True)


def ensure_with_progress(directory: Path, task: EmbeddedTask) -> Path:
    """``tasks.embedded.ensure``, with a line and a progress bar if a warm start has to be trained."""
    from safetensors import SafetensorError

    from verl_gsd.tasks.embedded import Specification, ensure, is_ready, packaged_start

    specification = Specification(task)
    try:
        if is_ready(directory, specification):
            return directory
        if packaged_start(specification):
            err.print(f"making task {task.name} in {directory}", markup=False, highlight=False, soft_wrap=True)
            return ensure(directory, specification)
    except (OSError, SafetensorError) as error:  # a full disk, or a folder that is not writable
        fail(f"task.directory={directory}: {error}")
    # Without a terminal, the bar is shown only at the end.
    text = f"making task {task.name} in {directory}; this takes one to two minutes, and only the first time"
    err.print(text, markup=False, highlight=False, soft_wrap=True)
    with Progress(
        TextColumn(f"making task {task.name}: warm start"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.2f}"),
        TimeElapsedColumn(),
        console=err,
    ) as progress:
        bar = progress.add_task("", total=specification.warm_start_steps, loss=float("nan"))
        try:
            return ensure(directory, specification, lambda step, loss: progress.update(bar, completed=step, loss=loss))
        except (OSError, SafetensorError) as error:  # a full disk, or a folder that is not writable
            fail(f"task.directory={directory}: {error}")
