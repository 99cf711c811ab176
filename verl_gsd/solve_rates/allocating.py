"""Training sets with a number of rollouts for each prompt.

If a row has a value in column ``__rollout_n__``, verl samples that many rollouts for it instead of ``rollout.n``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd import planning
from verl_gsd.extension import ROLLOUTS
from verl_gsd.planning.allocation import Objective
from verl_gsd.row_table import RowTable
from verl_gsd.solve_rates.joining import join
from verl_gsd.solve_rates.rates import SolveRates
from verl_gsd.writing import atomic_write

COLUMN = ROLLOUTS


@dataclass(frozen=True, eq=False)
class Allocation:
    """Group sizes of a training set's rows, and their expected effect compared with equal group sizes.

    Attributes:
        sizes: (n_rows,) int64; the sum is exactly ``group_size`` times n_rows.
        known: (n_rows,) bool, whether a row has a solve rate. Rows without one get ``group_size``.
        from_counts: whether the posterior of each prompt's verdicts was used. If not, rates were treated as exact.
        graded: whether verdicts are fractions. The posterior then takes partial credit by its spread.
        can_set_counts: whether the rates are of a table, for which the user can say how many responses there were.
        gain, mixed: the mean E[sigma_hat] and the mean P(mixed) over the known rows, each for equal group sizes and
            for ``sizes``. They are expectations for the policy that the solve rates were measured on.
    """

    sizes: np.ndarray
    known: np.ndarray
    from_counts: bool
    gain: tuple[float, float]
    mixed: tuple[float, float]
    graded: bool = False
    can_set_counts: bool = False


def allocate_rows(
    rates: SolveRates,
    table: RowTable,
    group_size: int,
    *,
    objective: Objective = "expected_std",
    minimum: int = 2,
    maximum: int | None = None,
    batch_size: int | None = None,
) -> Allocation:
    """Allocate ``group_size`` rollouts per row, on average, to the rows of a training set.

    If the counts behind the solve rates are known, their posterior is used, otherwise the rates. Fractional verdicts
    count by their spread, as in the adaptive budget: a prompt whose responses all get 0.5 is a silent one. A row
    without a solve rate gets ``group_size``.

    Args:
        batch_size: each ``batch_size`` consecutive rows get ``group_size`` rollouts per row in total; None for the
            total over all rows only.

    Raises:
        ValueError: the rates are from dumps or cannot be matched with the rows, or the bounds contradict each other or
            ``group_size``.
    """
    if rates.from_dumps:
        evicted = " They also lack the groups that dynamic sampling evicted." if rates.mixed_groups else ""
        raise ValueError(
            f"{rates.path}: verl's dumps do not say which row of the training set a prompt is.{evicted} Set "
            "--solve-rates to the folder of the verl-gsd run, whose records have all groups with their rows, or to a "
            "table with a solve rate for each row."
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is too small. Set it to 1 or more rows.")
    if batch_size is not None and batch_size > len(table):
        raise ValueError(f"batch_size={batch_size}: {table.path} has {len(table)} rows. Set it to that or less.")
    entries = join(rates, table)
    known = entries >= 0
    arguments: tuple[np.ndarray, ...] = (rates.rate[entries[known]],)  # (rate,) or (correct, total, partial)
    allocate: Callable[..., np.ndarray] = planning.allocate
    expected_std: Callable[..., np.ndarray | float] = planning.expected_std
    silent: Callable[..., np.ndarray | float] = planning.silent_rate
    if rates.evidence is not None:
        arguments = tuple(values[entries[known]] for values in rates.evidence)
        allocate, expected_std, silent = _allocate, _expected_std, _silent
    known_sizes: np.ndarray = np.empty(int(known.sum()), dtype=np.int64)
    batch_of_row = np.flatnonzero(known) // (batch_size or len(known))
    for batch in np.unique(batch_of_row):
        rows = batch_of_row == batch
        known_sizes[rows] = allocate(
            *(values[rows] for values in arguments),
            group_size * int(rows.sum()),
            objective=objective,
            minimum=minimum,
            maximum=maximum,
        )
    sizes: np.ndarray = np.full(len(known), group_size, dtype=np.int64)
    sizes[known] = known_sizes
    compared = (np.full(len(known_sizes), group_size), known_sizes)
    equal_gain, gain = (float(np.mean(expected_std(*arguments, each))) for each in compared)
    equal_mixed, mixed = (1 - float(np.mean(silent(*arguments, each))) for each in compared)
    return Allocation(
        sizes,
        known,
        rates.evidence is not None,
        (equal_gain, gain),
        (equal_mixed, mixed),
        graded=rates.graded > 0,
        can_set_counts=rates.row is not None and rates.total is None,
    )


def _allocate(correct: np.ndarray, total: np.ndarray, partial: np.ndarray, rollouts: int, **bounds: Any) -> np.ndarray:
    return planning.allocate_from_counts(correct, total, rollouts, partial=partial, **bounds)


def _expected_std(
    correct: np.ndarray, total: np.ndarray, partial: np.ndarray, group_size: np.ndarray
) -> np.ndarray | float:
    return planning.posterior_expected_std(correct, total, group_size, partial=partial)


def _silent(correct: np.ndarray, total: np.ndarray, partial: np.ndarray, group_size: np.ndarray) -> np.ndarray | float:
    return planning.posterior_silent_rate(correct, total, group_size, partial=partial)


def write_allocation(table: RowTable, sizes: np.ndarray, path: Path) -> None:
    """Write a Parquet training set with the additional column ``__rollout_n__``, atomically.

    Raises:
        ValueError: as ``check_training_set``.
        OSError: the disk is full, or the process may not write there.
    """
    rows = check_training_set(table, path)
    with atomic_write(path) as temporary:
        pq.write_table(rows.append_column(COLUMN, pa.array(sizes, pa.int64())), temporary, compression="zstd")


def check_training_set(table: RowTable, path: Path) -> pa.Table:
    """The rows of a training set that can be written to ``path`` with one more column.

    Raises:
        ValueError: it is not a Parquet file or already has the column, or ``path`` exists or is not named .parquet.
    """
    if path.suffix != ".parquet":
        raise ValueError(f"{path} is not a Parquet file. Use a name that ends in .parquet.")
    if path.exists():
        raise ValueError(f"{path} already exists. Use another name, or remove the file.")
    if isinstance(table.rows, list):
        raise ValueError(f"{table.path} is not a Parquet file. Use a training set in Parquet format.")
    if COLUMN in table.names:
        raise ValueError(f"{table.path} already has a column {COLUMN}. Use the file that it was made from.")
    return table.rows
