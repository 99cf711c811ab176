"""``verl-gsd prepare NAME``: make what a run reads before it asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from verl_gsd.console import fail, out

if TYPE_CHECKING:
    from verl_gsd.preparation.prepare import Wish
    from verl_gsd.preparation.prepared import Prepared
    from verl_gsd.preparation.sources import Source

EMBEDDED = "arithmetic"


def data_folder() -> Path:
    """Where prepared data sets lie, and recipes look for them."""
    return Path(os.environ.get("VERL_GSD_DATA") or Path.home() / "data")


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="arithmetic, gsm8k, math, dapo17k, openr1_math_46k, bigmath, tldr, a benchmark of `verl-gsd eval`; or "
            "a name of your own for the table --input.",
        ),
    ],
    input: Annotated[
        Path | None,
        typer.Option(help="In the hub's place: a downloaded folder, or a .parquet, .jsonl or .csv file."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Below it, in NAME; $VERL_GSD_DATA or ~/data, where recipes look.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="What a file has: train or test.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Whose chat template is checked and lengths are counted by: a folder or a hub name."),
    ] = None,
    max_prompt_length: Annotated[int | None, typer.Option(help="Tokens; longer training prompts are left out.")] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Data sets whose test problems are left out of training: names with commas, or none. By default all "
            "that are prepared."
        ),
    ] = None,
    overlap_words: Annotated[
        int, typer.Option(help="How many words in a row make a training problem one of them.")
    ] = 13,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Count rows without a problem or an answer instead of stopping.")
    ] = False,
    problem_column: Annotated[
        str | None, typer.Option(help="Texts, or chats, whose last user's message is it; problem.")
    ] = None,
    answer_column: Annotated[
        str | None,
        typer.Option(help="Answers, or solutions whose last \\boxed{} is one, or verl's reward_model; answer."),
    ] = None,
    demonstration_column: Annotated[
        str | None, typer.Option(help="Texts, lists of them, or lists of messages: an expert's responses.")
    ] = None,
    index_column: Annotated[
        str | None, typer.Option(help="Whole numbers, each once; by default a row's number.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(help="Written after every problem; by default what asks for \\boxed{}.")
    ] = None,
    judged_by_model: Annotated[
        bool, typer.Option("--judged-by-model", help="No answers: the reward is a model's.")
    ] = False,
) -> None:
    """Problems, answers and demonstrations as verl reads them, in DATA/NAME, with a manifest of what was left out.

    Stopped half-way, the same line goes on from there. The columns are for a table of your own; its test split comes
    first, so that training problems can be held against it.
    """
    from verl_gsd.preparation.prepare import Wish

    columns = {
        "--problem-column": problem_column,
        "--answer-column": answer_column,
        "--demonstration-column": demonstration_column,
        "--index-column": index_column,
        "--suffix": suffix,
        "--judged-by-model": "" if judged_by_model else None,
    }
    given = {option: value for option, value in columns.items() if value is not None}
    if empty := [
        option
        for option, value in {**given, "--model": model}.items()
        if value == "" and option not in ("--suffix", "--judged-by-model")
    ]:
        fail(f"{empty[0]}: is empty. Write a value, or leave it out")
    if not 2 <= overlap_words <= 1000:
        fail(f"--overlap-words {overlap_words}: write 2 to 1000; 13 by default")
    if name == EMBEDDED:
        others: dict[str, object] = {
            "--input": input,
            "--split": split,
            "--model": model,
            "--against": against,
            **given,
        }
        others |= {"--max-prompt-length": max_prompt_length, "--skip-unusable": skip_unusable or None}
        if without := [option for option, value in others.items() if value is not None]:
            fail(f"{without[0]}: has no effect on {name}, which is made and not read")
        _embedded(data)
        return
    if max_prompt_length is not None and (model is None or max_prompt_length < 1):
        fail(f"--max-prompt-length {max_prompt_length}: needs --model, whose tokens are counted, and 1 or more")
    try:
        source = _source(name, input, split, given)
        folder = data or data_folder()
        wish = Wish(
            name,
            source,
            folder,
            input,
            model,
            max_prompt_length,
            _against(against, folder, source),
            overlap_words,
            skip_unusable,
        )
        made, shown = _prepare(wish)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--data {data or data_folder()}: not written: {error}")
    except KeyboardInterrupt:
        fail("stopped. The same line goes on from here", code=130)
    _say(made, shown, wish)


def _source(name: str, input: Path | None, split: str | None, given: dict[str, str]) -> Source:
    """The named source, or the table that the columns describe."""
    import dataclasses

    from verl_gsd.preparation import sources
    from verl_gsd.preparation.prepared import require_name

    if split not in (None, "train", "test"):
        raise ValueError(f"--split {split}: write train or test")
    require_name(name)
    known = sources.SOURCES.get(name)
    if known is None:
        if input is None:
            raise ValueError(f"{name}: write one of {', '.join([EMBEDDED, *sources.SOURCES])}, or --input with a table")
        if "--judged-by-model" in given and "--answer-column" in given:
            raise ValueError(f"--answer-column {given['--answer-column']}: has no effect beside --judged-by-model")
        answer = None if "--judged-by-model" in given else given.get("--answer-column", "answer")
        return sources.table(
            given.get("--problem-column", "problem"),
            answer,
            given.get("--demonstration-column"),
            given.get("--index-column"),
            suffix=given.get("--suffix", sources.BOXED),
            split=split or "train",
        )
    if given:
        option, value = next(iter(given.items()))
        raise ValueError(f"{option} {value}: {name} has columns of its own. Write another NAME for a table of yours")
    is_file = input is not None and input.is_file()
    if split is not None and not is_file:
        raise ValueError(f"--split {split}: is for a file; of the hub and of a folder every split is prepared")
    if is_file and split is None and len(known.splits) > 1:
        raise ValueError(f"--input {input}: which split is it? Write --split {' or --split '.join(known.splits)}")
    if is_file and split is not None and split not in known.splits:
        raise ValueError(f"--split {split}: {name} has only {', '.join(known.splits)}")
    return dataclasses.replace(known, splits={split: known.splits[split]}) if split else known


def _against(words: str | None, folder: Path, source: Source) -> list[Prepared] | None:
    """The prepared data sets whose test problems are kept out of training, or None for no such thing."""
    from verl_gsd.preparation.prepared import all_of

    if words == "none" or (words is None and source.verifier is None):
        return None
    there = {made.name: made for made in all_of(folder, _notice) if made.splits.get("test", {}).get("verifier")}
    if words is None:
        return list(there.values())
    names = [name.strip() for name in words.split(",") if name.strip()]
    missing = [name for name in names or [words] if name not in there]
    if missing:
        raise ValueError(
            f"--against {missing[0]}: no test split of it below {folder}. Run verl-gsd prepare {missing[0]} first, or "
            f"write some of {', '.join(there) or 'none'}"
        )
    return [there[name] for name in dict.fromkeys(names)]


def _notice(text: str) -> None:
    out.print(f"Not looked at: {escape(text)}", highlight=False, soft_wrap=True)


def _prepare(wish: Wish) -> tuple[Prepared, str | None]:
    from verl_gsd.preparation.prepare import prepare

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress:
        bars = {split: progress.add_task(split, total=None, visible=False) for split in wish.source.splits}

        def show(split: str, read: int, kept: int) -> None:
            said = f"{wish.name} {split}: {read} rows read, {kept} kept"
            progress.update(bars[split], description=said, visible=True)

        return prepare(wish, show)


def _say(made: Prepared, shown: str | None, wish: Wish) -> None:
    table = Table("split", "rows", "read", "left out")
    for split in wish.source.splits:
        of = made.splits[split]
        reasons = [f"{n} {reason.replace('_', ' ')}" for reason, n in of["left_out"].items()]
        table.add_row(split, str(of["rows"]), str(of["read"]), ", ".join(reasons) or "none")
        if of["contaminated_by_set"]:
            found = ", ".join(f"{name} {n}" for name, n in of["contaminated_by_set"].items())
            out.print(f"{split}: problems that an evaluation set has: {found}", highlight=False, soft_wrap=True)
        if split == "train" and not of["against"]:
            out.print("No evaluation set is prepared: training problems were held against none.", highlight=False)
    out.print(table)
    if "test" in wish.source.splits and made.splits["test"]["verifier"]:
        _say_what_has_not_met(made, wish.data)
    if shown is not None:
        out.print("The first prompt, as the model reads it:")
        out.print(escape(repr(shown)), highlight=False, soft_wrap=True)
    else:
        out.print("Without --model neither chat template nor lengths were checked.", highlight=False)
    out.print(f"{made.name} is in [bold]{escape(str(made.folder))}[/]", soft_wrap=True)


def _say_what_has_not_met(made: Prepared, data: Path) -> None:
    """Training splits that were prepared before this test split."""
    from verl_gsd.preparation.prepared import all_of

    for other in all_of(data, lambda _: None):
        train = other.splits.get("train", {})
        if train.get("verifier") and made.name not in train["against"]:
            out.print(
                f"{other.name}'s training problems were not held against these: run its line again.",
                highlight=False,
                soft_wrap=True,
            )


def _embedded(data: Path | None) -> None:
    """The embedded task: train and test files and a warm-started model (about a minute on two cores)."""
    if data is None:
        from verl_gsd import config

        directory = Path(config.load("task", EMBEDDED).task.directory)
    else:
        directory = data / EMBEDDED
    made = ensure_with_progress(directory)
    out.print(f"arithmetic is in [bold]{made}[/]")


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
