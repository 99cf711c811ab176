"""Tables of responses on disk: Parquet, JSON lines or CSV, read with errors that name the row, written whole.

Rows are numbered from 0. A file is written back in the format it was read in, so that what it had is kept as it was.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.writing import atomic_write

SUFFIXES = (".parquet", ".jsonl", ".csv")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RowTable:
    """A file's rows.

    Attributes:
        path: the file.
        names: its columns, in order; of JSON lines, every key that occurs.
        rows: a table, of Parquet; of JSON lines and CSV one dict a row.
    """

    path: Path
    names: list[str]
    rows: pa.Table | list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, read: Callable[[Any], T]) -> list[T]:
        """A column, each value as ``read`` has it; None stands for a null and for a key that a row lacks.

        Raises:
            ValueError: there is no such column, or ``read`` refuses a value by raising a ValueError; the message names
                file, column and row.
        """
        if self.names.count(name) != 1:
            found = "there twice" if name in self.names else "not there"
            raise ValueError(f"{self.path}: column {name} is {found}. Columns are {', '.join(self.names) or 'none'}")
        rows = self.rows
        values = [row.get(name) for row in rows] if isinstance(rows, list) else rows.column(name).to_pylist()
        cells = []
        for row, value in enumerate(values):
            try:
                cells.append(read(value))
            except ValueError as error:
                raise ValueError(f"{self.path}, row {row} (the first is 0), column {name}: {error}") from error
        return cells

    def write(self, path: Path, name: str, numbers: Sequence[float]) -> None:
        """Write all rows with a further column ``name``, null where a number is NaN; whole or not at all.

        Raises:
            ValueError: there is a column of that name, or ``path`` does not end as the file that was read.
            OSError: there is no room, or no right to write.
        """
        self.require_writable(path, name)
        values = [None if math.isnan(number) else float(number) for number in numbers]
        with atomic_write(path) as building:
            if not isinstance(self.rows, list):
                table = self.rows.append_column(name, pa.array(values, pa.float64()))
                pq.write_table(table, building, compression="zstd")
            elif path.suffix == ".jsonl":
                _write_lines(building, self.rows, name, values)
            else:
                _write_csv(building, self.names, self.rows, name, values)

    def require_writable(self, path: Path, name: str) -> None:
        """Raise the ValueError that ``write`` would raise: before the work, not after it."""
        if name in self.names:
            raise ValueError(f"{self.path}: has a column {name} already; drop it, or read the file it was made from")
        if path.suffix != self.path.suffix:
            raise ValueError(f"{path}: write a name that ends in {self.path.suffix}, as {self.path.name} does")


def read_row_table(path: Path) -> RowTable:
    """Read a Parquet, JSON lines or CSV file (UTF-8; CSV with a header).

    Raises:
        ValueError: it is not readable as what its name ends in; the message names the file and, where it can, the line.
    """
    with _naming(path):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            return RowTable(path, table.column_names, table)
    rows = list(stream_rows(path))
    if path.suffix == ".csv":
        with _open_text(path) as lines:
            return RowTable(path, _header(lines), rows)
    return RowTable(path, list(dict.fromkeys(key for row in rows for key in row)), rows)


def stream_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of such a file one by one, for files that memory does not hold.

    Raises:
        ValueError: as ``read_row_table``, when the row is reached.
    """
    with _naming(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                _require_once(path, file.schema_arrow.names)
                for batch in file.iter_batches(1024):
                    yield from batch.to_pylist()
            return
        with _open_text(path) as lines:
            yield from _lines(path, lines) if path.suffix == ".jsonl" else _csv_rows(path, lines)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What a reader raises, as a ValueError that names the file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: write the name of a file that ends in {', '.join(SUFFIXES)}")
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not readable: {error}") from error


def _open_text(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", newline="")


def _lines(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} (the first is 1): not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number} (the first is 1): write an object, {{"column": value, ...}}')
        yield row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that is there twice one value would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _require_once(path: Path, names: Sequence[str]) -> None:
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: column {repeated[0]} is there twice. Rename one")


def _header(lines: Iterable[str]) -> list[str]:
    return list(csv.DictReader(lines, strict=True).fieldnames or ())


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a response may be longer than the 128 KiB the module allows
    reader = csv.DictReader(lines, strict=True)
    names = list(reader.fieldnames or ())
    _require_once(path, names)
    for number, row in enumerate(reader):
        if None in row or None in row.values():
            raise ValueError(f"{path}, row {number} (the first is 0): write {len(names)} fields, as the header does")
        yield row


def _write_lines(path: Path, rows: list[dict[str, Any]], name: str, values: Sequence[float | None]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row, value in zip(rows, values, strict=True):
            # In ASCII, which has a way to write every string that was read, lone surrogates included.
            lines.write(json.dumps(row | {name: value}) + "\n")


def _write_csv(
    path: Path, names: list[str], rows: list[dict[str, Any]], name: str, values: Sequence[float | None]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [*names, name])
        writer.writeheader()
        writer.writerows(row | {name: value} for row, value in zip(rows, values, strict=True))
