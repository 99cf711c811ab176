"""Tables in Parquet, JSON lines or CSV files, read with errors that name the row and written atomically.

Rows are numbered from 0. A table is written back in the format it was read in, so that its columns stay unchanged.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.regular_files import open_regular
from verl_gsd.writing import atomic_write

SUFFIXES = (".parquet", ".jsonl", ".csv")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RowTable:
    """The rows of a file.

    Attributes:
        path: the file.
        names: the names of its columns, in order; for JSON lines, every key that occurs.
        rows: a ``pa.Table`` for Parquet; one dict per row for JSON lines and CSV.
    """

    path: Path
    names: list[str]
    rows: pa.Table | list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str, read: Callable[[Any], T]) -> list[T]:
        """The values of a column, each converted by ``read``. A null, or a key missing from a row, is passed as None.

        Raises:
            ValueError: the column does not exist, or ``read`` rejects a value with a ValueError. The message names the
                file, the column and the row.
        """
        if self.names.count(name) != 1:
            problem = "occurs twice" if name in self.names else "does not exist"
            raise ValueError(f"{self.path}: column {name} {problem}. Columns: {', '.join(self.names) or 'none'}.")
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
        """Write all rows with an additional column ``name`` atomically. NaN is written as null.

        Raises:
            ValueError: the column already exists, or ``path`` has another suffix than the file that was read.
            OSError: the disk is full, or the process may not write there.
        """
        self.check_writable(path, name)
        values = [None if math.isnan(number) else float(number) for number in numbers]
        with atomic_write(path) as temporary:
            if not isinstance(self.rows, list):
                table = self.rows.append_column(name, pa.array(values, pa.float64()))
                pq.write_table(table, temporary, compression="zstd")
            elif path.suffix == ".jsonl":
                _write_lines(temporary, self.rows, name, values)
            else:
                _write_csv(temporary, self.names, self.rows, name, values)

    def check_writable(self, path: Path, name: str) -> None:
        """Raise the ValueError that ``write`` would raise, so that a caller can check before a long computation."""
        if name in self.names:
            raise ValueError(f"{self.path}: column {name} already exists. Remove it, or use the original file.")
        if path.suffix != self.path.suffix:
            raise ValueError(
                f"{path}: wrong file type. Use a name that ends in {self.path.suffix}, like {self.path.name}."
            )


def read_row_table(path: Path) -> RowTable:
    """Read a Parquet, JSON lines or CSV file (UTF-8; CSV with a header).

    Raises:
        ValueError: the content does not match the file's suffix. The message names the file, and the line if possible.
    """
    with _errors_name(path):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            return RowTable(path, table.column_names, table)
    rows = list(stream_rows(path))
    if path.suffix == ".csv":
        with path.open("rb") as content, _as_text(content) as lines:
            return RowTable(path, _header(lines), rows)
    return RowTable(path, list(dict.fromkeys(key for row in rows for key in row)), rows)


def stream_rows(path: Path, *, within: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of such a file one by one, for files that do not fit into memory.

    Args:
        within: as for ``open_regular``.

    Raises:
        ValueError: as ``read_row_table``, when the invalid row is reached; or a link leads out of ``within``.
    """
    with _errors_name(path), _open(path, within) as content:
        if path.suffix == ".parquet":
            with pq.ParquetFile(content) as file:
                _check_unique(path, file.schema_arrow.names)
                for batch in file.iter_batches(1024):
                    yield from batch.to_pylist()
            return
        with _as_text(content) as lines:
            yield from _lines(path, lines) if path.suffix == ".jsonl" else _csv_rows(path, lines)


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Turn the errors of a reader into ValueErrors that name the file."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown file type. Use a file that ends in {', '.join(SUFFIXES)}.")
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _open(path: Path, within: Path | None) -> BinaryIO:
    return path.open("rb") if within is None else open_regular(path, within=within)


def _as_text(content: BinaryIO) -> TextIO:
    return TextIOWrapper(content, encoding="utf-8-sig", newline="")


def _lines(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} (the first is 1): not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} (the first is 1): not a JSON object. Use one object per line, like "
                '{"column": value}.'
            )
        yield row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Repeated keys are an error, because ``json`` would silently drop a value."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return row


def _check_unique(path: Path, names: Sequence[str]) -> None:
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path}: column {repeated[0]} occurs twice. Rename one of them.")


def _header(lines: Iterable[str]) -> list[str]:
    return list(csv.DictReader(lines, strict=True).fieldnames or ())


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a response may be longer than the default limit of 128 KiB
    reader = csv.DictReader(lines, strict=True)
    names = list(reader.fieldnames or ())
    _check_unique(path, names)
    for number, row in enumerate(reader):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}, row {number} (the first is 0): not {len(names)} fields, as in the header. Add or remove some."
            )
        yield row


def _write_lines(path: Path, rows: list[dict[str, Any]], name: str, values: Sequence[float | None]) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for row, value in zip(rows, values, strict=True):
            # ASCII escapes represent every string that was read, including lone surrogates.
            lines.write(json.dumps(row | {name: value}) + "\n")


def _write_csv(
    path: Path, names: list[str], rows: list[dict[str, Any]], name: str, values: Sequence[float | None]
) -> None:
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [*names, name])
        writer.writeheader()
        writer.writerows(row | {name: value} for row, value in zip(rows, values, strict=True))
