"""Solve rates from a table with one row per prompt."""

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

#: How far a rate times its samples may be from an integer, because of floats with few digits.
_TOLERANCE = 0.01
_MISSING = {"", "nan", "null", "none", "na", "n/a"}


@dataclass(frozen=True)
class RateColumns:
    """The options that say where a table has its solve rates; ``read_solve_rates`` explains them."""

    column: str | None = None
    samples: int | None = None
    correct_column: str | None = None
    total_column: str | None = None

    def check_only(self, allowed: str, reason: str) -> None:
        """Raise a ValueError if an option other than ``allowed`` is set, which would have no effect."""
        for option in (field.name for field in fields(self)):
            if option != allowed and getattr(self, option) is not None:
                raise ValueError(f"{option}={getattr(self, option)}: has no effect, because {reason}. Remove it.")

    def check_for_table(self, table: RowTable) -> None:
        """Raise a ValueError if the options do not say what to read from ``table``, or contradict each other."""
        names = ", ".join(table.names) or "none"
        if self.column is None and self.correct_column is None:
            raise ValueError(
                f"{table.path}: the column with the solve rates is not set. Set --column to it, or set "
                f"--correct-column to the column with the number of correct responses. Columns: {names}."
            )
        if self.column is not None and self.correct_column is not None:
            raise ValueError(
                f"column={self.column} and correct_column={self.correct_column} are both set. Set only one."
            )
        if self.samples is not None and self.total_column is not None:
            raise ValueError(f"samples={self.samples} and total_column={self.total_column} are both set. Set only one.")
        if self.correct_column is not None and self.samples is None and self.total_column is None:
            raise ValueError(
                f"correct_column={self.correct_column}: the number of responses is missing. Set samples or "
                "total_column."
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(
                f"samples={self.samples} is too small. Set it to the number of responses per prompt, 1 or more."
            )


def read_table(path: Path, options: RateColumns) -> SolveRates:
    """``read_solve_rates`` for a Parquet, JSON lines or CSV file."""
    table = read_row_table(path)
    if not len(table):
        raise ValueError(f"{path}: no rows.")
    options.check_for_table(table)
    name = options.column or options.correct_column
    assert name is not None
    values = np.array(table.column(name, _rate if options.column else _count), dtype=float)
    reasons = {f"no value (null or NaN) in column {name}": np.isnan(values)}
    total = None
    if options.samples is not None:
        total = np.full(len(values), float(options.samples))
    elif options.total_column is not None:
        total = np.array(table.column(options.total_column, _count), dtype=float)
        reasons[f"no responses (null, NaN or 0) in column {options.total_column}"] = np.isnan(total) | (total == 0)
    kept = ~np.any(list(reasons.values()), axis=0)
    skipped = tuple(
        f"{int(rows.sum())} of {len(values)} rows have {reason}; the first is row {int(np.flatnonzero(rows)[0])}"
        for reason, rows in reasons.items()
        if rows.any()
    )
    if not kept.any():
        raise ValueError(f"{path}: no row has a solve rate: {'; '.join(skipped)}.")
    row = np.flatnonzero(kept)
    values = values[kept]
    keys = keys_by_index(table)
    kept_keys = None if keys is None else [keys[position] for position in row.tolist()]
    if total is None:
        return SolveRates(path, values, None, None, kept_keys, skipped, row, len(table))
    total = total[kept]
    correct = (values * total).round() if options.column else values
    inexact = np.abs(correct - values * total) > np.maximum(_TOLERANCE, _rounding(values, total))
    invalid = (correct > total) | (inexact if options.column else False)
    if invalid.any():
        first = int(np.flatnonzero(invalid)[0])
        raise ValueError(
            f"{path}, row {row[first]} (the first is 0), column {name}: "
            + _contradiction(values[first], total[first], is_rate=options.column is not None)
        )
    solved: np.ndarray = correct.astype(np.int64)
    return SolveRates(path, correct / total, solved, total.astype(np.int64), kept_keys, skipped, row, len(table))


def _rounding(rates: np.ndarray, total: np.ndarray) -> np.ndarray:
    """(N,) how far a rate times its samples is from an integer, at most, because a file has rates with d decimals.

    0 for d = 1, and where several integers are as near.
    """
    decimals = max(len(np.format_float_positional(rate, trim="-").partition(".")[2]) for rate in np.unique(rates))
    spread = total * 10.0**-decimals
    # 1e-6: a rate that ends in 5 can be rounded up or down, and floats are not exact.
    return np.where((spread < 1) & (decimals > 1), spread / 2 + 1e-6, 0.0)


def _contradiction(value: float, total: float, *, is_rate: bool) -> str:
    if not is_rate:
        return f"{value:.0f} correct of {total:.0f} responses is impossible. Use the columns that belong together."
    return (
        f"a rate of {value:g} of {total:.0f} responses gives {value * total:.3f} correct responses, which is not an "
        "integer. Set the number of responses that the rates come from, or remove it."
    )


def as_number(value: Any) -> float:
    """A cell as a number: NaN if it is missing, and 1 and 0 for true and false.

    Raises:
        ValueError: the cell is not a number.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{_abbreviated(value)} is not a number") from None


def _checked_reader(is_valid: Callable[[float], bool], expected: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        number = as_number(value)
        if not math.isnan(number) and not is_valid(number):
            raise ValueError(f"{_abbreviated(value)} is not {expected}")
        return number

    return read


_RATE = "a rate from 0 to 1. Use --correct-column for numbers of correct responses, and divide percentages by 100"
_rate = _checked_reader(lambda value: 0 <= value <= 1, _RATE)
_count = _checked_reader(
    lambda value: 0 <= value < 2**31 and value == int(value), "a count, which is an integer from 0 to 2^31 - 1"
)


def _abbreviated(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
