"""Reads data files as verl's dataset does, and reports files that cannot be read.

pyarrow reads local Parquet files, which needs no copy. ``datasets`` loads all other files, as in verl. It keeps a copy
on disk, which verl then uses as well.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig

from verl_gsd.run.checks.data_files import (
    FIRST_ROWS,
    NO_ROWS,
    check_columns,
    check_rows,
    files_of,
    is_plain,
    prompt_column,
)
from verl_gsd.run.checks.data_sources import check_sources, is_chosen_by_source
from verl_gsd.run.messages import Message
from verl_gsd.run.remote_paths import scheme_of

#: Rows read at a time.
_BATCH = FIRST_ROWS


@dataclass
class DataReport:
    """The result of checking the data.

    Attributes:
        problems: errors, with which the run cannot start.
        messages: notes and warnings for the user.
    """

    problems: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.messages.append(Message("note", text))

    def warn(self, text: str) -> None:
        self.messages.append(Message("warning", text))


@dataclass(frozen=True)
class DataFile:
    """An open data file.

    Attributes:
        key: the config key that names it.
        name: its path, as in the config.
        features: the types of its columns, as in ``datasets``.
        count: its number of rows.
        rows: reads the given columns, a thousand rows at a time.
    """

    key: str
    name: str
    columns: tuple[str, ...]
    features: Any
    count: int
    rows: Callable[[Sequence[str]], Iterator[list[dict[str, Any]]]]

    def is_null(self, column: str) -> bool:
        """Whether all values of a column are null."""
        return getattr(self.features[column], "dtype", None) == "null"

    def __str__(self) -> str:
        return f"{self.key}={self.name}"


def open_files(key: str, config: DictConfig, remote: bool | None, report: DataReport) -> Iterator[DataFile]:
    """Open the files of ``key``. Files that cannot be read lead to problems or messages in ``report``.

    Args:
        remote: False skips remote files with a note, True skips local files, and None opens all files.
    """
    for name in files_of(config, key):
        is_remote = scheme_of(name) is not None
        if is_remote and remote is False:
            report.note(f"{key}={name}: this is a remote file, so its prompts are counted when the trainer starts")
        elif not is_remote and remote is True:
            continue
        elif not is_remote and not Path(name).is_file():
            report.note(
                f"{key}={name}: the file does not exist yet, so its prompts are counted when the run has created it"
            )
        else:
            try:
                file = _open(key, name, config)
                problems = _check_columns_and_first_rows(file, config)
            except Exception as error:  # the readers of datasets can raise any error
                problems = [_why_unreadable(name, error)]
            if problems:
                report.problems += [f"{key}={name}: {problem}" for problem in problems]
            else:
                yield file


def _open(key: str, name: str, config: DictConfig) -> DataFile:
    import datasets

    from verl_gsd.media_cells import without_opened_files

    if name.endswith(".parquet") and scheme_of(name) is None:
        schema = pq.read_schema(name)
        if is_plain(schema):
            features = datasets.Features.from_arrow_schema(schema)
            read = functools.partial(_parquet_rows, name)
            return DataFile(key, name, tuple(schema.names), features, pq.read_metadata(name).num_rows, read)
    table = _loaded(name, config)
    read = functools.partial(_loaded_rows, without_opened_files(table))
    return DataFile(key, name, tuple(table.column_names), table.features, len(table), read)


def _parquet_rows(name: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    with pq.ParquetFile(name) as file:
        for batch in file.iter_batches(_BATCH, columns=list(columns)):
            yield batch.to_pylist()


def _loaded_rows(table: Any, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for batch in table.select_columns(list(columns)).iter(_BATCH):
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _loaded(name: str, config: DictConfig) -> Any:
    """Load the file as verl's dataset does. ``datasets`` keeps a copy on disk, which verl then uses as well."""
    import datasets

    local = name
    if scheme_of(name) is None and not name.endswith(".parquet"):
        with Path(name).open(encoding="utf-8") as lines:  # raises for text that is not UTF-8, earlier than datasets
            for _ in lines:
                pass
    if scheme_of(name) == "hdfs":
        from verl.utils.fs import copy_to_local

        cache = str(Path(config.data.get("cache_dir") or "~/.cache/verl/rlhf").expanduser())
        local = copy_to_local(src=name, cache_dir=cache, use_shm=config.data.get("use_shm", False))
    return datasets.load_dataset("parquet" if name.endswith(".parquet") else "json", data_files=local)["train"]


def _check_columns_and_first_rows(file: DataFile, config: DictConfig) -> list[str]:
    if not file.count:
        return [NO_ROWS]
    if missing := list(check_columns(file.columns, config)):
        return missing
    wanted = {"reward_model", "extra_info", prompt_column(config)} & set(file.columns)
    problems = list(check_rows(next(file.rows(sorted(wanted))), config))
    if not problems and "data_source" in file.columns and is_chosen_by_source(config):
        sources = (row["data_source"] for batch in file.rows(["data_source"]) for row in batch)
        problems = list(check_sources(sources, config))
    return problems


def _why_unreadable(name: str, error: Exception) -> str:
    """Why ``datasets`` cannot read the file, with the line if one is not valid JSON."""
    if isinstance(error, StopIteration):
        return NO_ROWS
    if name.endswith((".json", ".jsonl")) and Path(name).is_file() and (line := _bad_line(Path(name))):
        return f"{line}. Correct or remove that line."
    cause = error.__cause__ or error
    reason = (str(cause) or type(cause).__name__).splitlines()[0]
    return f"verl cannot read the file ({reason}). Convert it, for example with `verl-gsd prepare`."


def _bad_line(path: Path) -> str | None:
    """The first line that is not a JSON object, and why; None if all lines are."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")) if line.strip() else {}
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 (byte {error.start + 1} of the line)"
            except ValueError as error:
                if number == 1 and line.strip() in (b"{", b"["):
                    return None  # a single value that spans many lines
                return f"line {number} is not JSON ({error})"
            if not isinstance(value, dict) and not (number == 1 and isinstance(value, list)):
                return f"line {number} is not a JSON object"
    return None


def check_same_types(files: list[DataFile], report: DataReport) -> None:
    """Report files of one key that ``datasets`` cannot concatenate, because a column has different types in them."""
    import datasets

    joined = None
    for file in files if len(files) > 1 else ():
        row = datasets.Dataset.from_dict({name: [None] for name in file.columns}, features=file.features)
        try:
            joined = row if joined is None else datasets.concatenate_datasets([joined, row])
        except ValueError as error:
            types = re.search(
                r"the key (\S+) of features .* unexpected type - (.*) \(expected either (.*) or", str(error)
            )
            reason = f"column {types[1]} is {types[2]} here and {types[3]} there" if types else str(error)
            report.problems.append(
                f"{file}: verl cannot concatenate this file with the previous files of {file.key}: {reason}. Convert "
                "one of the files, so that all have the same types."
            )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of ``datasets``."""
    import datasets

    were_enabled = datasets.utils.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_enabled:
            datasets.enable_progress_bars()
