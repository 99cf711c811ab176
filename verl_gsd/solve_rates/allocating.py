"""A training set that says how many rollouts each of its prompts gets.

verl takes as many rollouts of a row as its column ``__rollout_n__`` says, in place of ``rollout.n``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """Group sizes of a training set's rows, and what they are worth beside equal ones.

    Attributes:
        sizes: (n_rows,) int64, which sum to ``group_size`` a row exactly.
        known: (n_rows,) bool, rows that have a solve rate; the others have ``group_size``.
        from_counts: whether rates are posteriors of their counts, and not taken for certain.
        gain, mixed: over the known rows, the mean E[sigma_hat] and P(mixed) in equal groups and in these; expectations
            for the policy that the rates are of.
    """

    sizes: np.ndarray
    known: np.ndarray
    from_counts: bool
    gain: tuple[float, float]
    mixed: tuple[float, float]


def allocate_rows(
    rates: SolveRates,
    sheet: RowTable,
    group_size: int,
    *,
    objective: Objective = "expected_std",
    minimum: int = 2,
    maximum: int | None = None,
    batch_size: int | None = None,
) -> Allocation:
    """Share ``group_size`` rollouts a row out over the rows of a training set.

    By the posterior of each prompt's counts where they are known, by its rate otherwise; a row without a rate keeps
    ``group_size``.

    Args:
        batch_size: rows that are shared out among themselves, ``batch_size`` after ``batch_size``; all where None.

    Raises:
        ValueError: rates and rows cannot be matched, or bounds contradict each other or ``group_size``.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: write a number of rows, 1 or more")
    if batch_size is not None and batch_size > len(sheet):
        raise ValueError(f"batch_size={batch_size}: {sheet.path} has {len(sheet)} rows; write that or less")
    entries = join(rates, sheet)
    known = entries >= 0
    # What is known of a prompt, and what is made of that: by its counts' posterior, or by its rate.
    given: tuple[np.ndarray, ...] = (rates.rate[entries[known]],)
    allocate: Callable[..., np.ndarray] = planning.allocate
    expected_std: Callable[..., np.ndarray | float] = planning.expected_std
    silent: Callable[..., np.ndarray | float] = planning.silent_rate
    if rates.correct is not None and rates.total is not None:
        given = (rates.correct[entries[known]], rates.total[entries[known]])
        allocate = planning.allocate_from_counts
        expected_std, silent = planning.posterior_expected_std, planning.posterior_silent_rate
    shared: np.ndarray = np.empty(int(known.sum()), dtype=np.int64)
    batch = np.flatnonzero(known) // (batch_size or len(known))
    for one in np.unique(batch):
        rows = batch == one
        shared[rows] = allocate(
            *(values[rows] for values in given),
            group_size * int(rows.sum()),
            objective=objective,
            minimum=minimum,
            maximum=maximum,
        )
    sizes: np.ndarray = np.full(len(known), group_size, dtype=np.int64)
    sizes[known] = shared
    both = (np.full(len(shared), group_size), shared)
    equal_gain, gain = (float(np.mean(expected_std(*given, one))) for one in both)
    equal_mixed, mixed = (1 - float(np.mean(silent(*given, one))) for one in both)
    return Allocation(sizes, known, rates.correct is not None, (equal_gain, gain), (equal_mixed, mixed))


def write_allocation(sheet: RowTable, sizes: np.ndarray, path: Path) -> None:
    """Write a Parquet training set with a further column ``__rollout_n__``; whole or not at all.

    Raises:
        ValueError: as ``require_allocatable``.
        OSError: there is no room, or no right to write.
    """
    table = require_allocatable(sheet, path)
    with atomic_write(path) as building:
        pq.write_table(table.append_column(COLUMN, pa.array(sizes, pa.int64())), building, compression="zstd")


def require_allocatable(sheet: RowTable, path: Path) -> pa.Table:
    """The training set's table, or a ValueError where it cannot be written to ``path`` with a column more."""
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: write a name that ends in .parquet")
    if path.exists():
        raise ValueError(f"{path}: is there already; write another name, or remove it")
    if isinstance(sheet.rows, list):
        raise ValueError(f"{sheet.path}: is no Parquet file, which a training set has to be to get a column more")
    if COLUMN in sheet.names:
        raise ValueError(f"{sheet.path}: has a column {COLUMN} already; write the file that it was made from")
    return sheet.rows
