"""Solve rates in a table, a row a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.row_table import RowTable, read_row_table
from verl_gsd.solve_rates.joining import keys_by_index
from verl_gsd.solve_rates.rates import SolveRates

#: How far a rate times its samples may be from a whole number: rates are often written with few digits.
_TOLERANCE = 0.01
_MISSING = {"", "nan", "null", "none", "na", "n/a"}


@dataclass(frozen=True)
class Columns:
    """Which column holds what; ``read_solve_rates`` has their meaning."""

    column: str | None = None
    samples: int | None = None
    correct_column: str | None = None
    total_column: str | None = None

    def require_none_but(self, allowed: str, because: str) -> None:
        """Raise a ValueError that names an option which says nothing of such a source."""
        for option in (field.name for field in fields(self)):
            if option != allowed and getattr(self, option) is not None:
                raise ValueError(f"{option}={getattr(self, option)}: has no meaning, since {because}. Leave it out.")

    def require_table(self, sheet: RowTable) -> None:
        """Raise a ValueError where they do not say what to read of a table."""
        names = ", ".join(sheet.names) or "none"
        if self.column is None and self.correct_column is None:
            raise ValueError(
                f"{sheet.path}: say which column holds the rate (--column), or how many responses were right "
                f"(--correct-column). Columns are {names}"
            )
        if self.column is not None and self.correct_column is not None:
            raise ValueError(f"column={self.column} and correct_column={self.correct_column}: write one of them")
        if self.samples is not None and self.total_column is not None:
            raise ValueError(f"samples={self.samples} and total_column={self.total_column}: write one of them")
        if self.correct_column is not None and self.samples is None and self.total_column is None:
            raise ValueError(f"correct_column={self.correct_column}: of how many? Write samples or total_column")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples={self.samples}: write how many responses are behind each rate, 1 or more")


def read_table(path: Path, options: Columns) -> SolveRates:
    """``read_solve_rates`` of a Parquet, JSON lines or CSV file."""
    sheet = read_row_table(path)
    if not len(sheet):
        raise ValueError(f"{path}: no rows")
    options.require_table(sheet)
    name = options.column or options.correct_column
    assert name is not None
    values = np.array(sheet.column(name, _rate if options.column else _count), dtype=float)
    left_out = {f"no value (null or NaN) in column {name}": np.isnan(values)}
    total = None
    if options.samples is not None:
        total = np.full(len(values), float(options.samples))
    elif options.total_column is not None:
        total = np.array(sheet.column(options.total_column, _count), dtype=float)
        left_out[f"no responses (null, NaN or 0) in column {options.total_column}"] = np.isnan(total) | (total == 0)
    kept = ~np.any(list(left_out.values()), axis=0)
    skipped = tuple(
        f"{int(rows.sum())} of {len(values)} rows have {what}; the first is row {int(np.flatnonzero(rows)[0])}"
        for what, rows in left_out.items()
        if rows.any()
    )
    if not kept.any():
        raise ValueError(f"{path}: no row has a solve rate: {'; '.join(skipped)}")
    row = np.flatnonzero(kept)
    values = values[kept]
    keys = keys_by_index(sheet)
    kept_keys = None if keys is None else [keys[place] for place in row.tolist()]
    if total is None:
        return SolveRates(path, values, None, None, kept_keys, skipped, row, len(sheet))
    total = total[kept]
    correct = (values * total).round() if options.column else values
    bad = (correct > total) | (np.abs(correct - values * total) > _TOLERANCE if options.column else False)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{path}, row {row[first]} (the first is 0), column {name}: "
            + _contradiction(values[first], total[first], is_rate=options.column is not None)
        )
    solved: np.ndarray = correct.astype(np.int64)
    return SolveRates(path, correct / total, solved, total.astype(np.int64), kept_keys, skipped, row, len(sheet))


def _contradiction(value: float, total: float, *, is_rate: bool) -> str:
    if not is_rate:
        return f"{value:.0f} right of {total:.0f} responses"
    return (
        f"{value:g} of {total:.0f} responses are {value * total:.3f} right ones, no whole number. Write how many "
        "responses the rates are from, or leave that out."
    )


def as_number(value: Any) -> float:
    """A cell as a number, NaN where it is missing; true and false are 1 and 0.

    Raises:
        ValueError: it is neither.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{_shown(value)} is no number") from None


def _checked(allowed: Callable[[float], bool], wanted: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = as_number(value)
        if not math.isnan(number) and not allowed(number):
            raise ValueError(f"{_shown(value)} is no {wanted}")
        return number

    return read


_RATE = "rate, 0 to 1. Write a count of right responses as --correct-column, and percents as shares"
_rate = _checked(lambda value: 0 <= value <= 1, _RATE)
_count = _checked(lambda value: 0 <= value < 2**31 and value == int(value), "count, a whole number from 0 to 2^31 - 1")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
