"""``verl-gsd plan --allocate``: a training set with a group size for each prompt, and what that is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verl_gsd.row_table import RowTable, read_row_table
from verl_gsd.solve_rates import SolveRates
from verl_gsd.solve_rates.allocating import COLUMN, Allocation, allocate_rows, require_allocatable


def share_out(
    path: Path,
    rates: SolveRates,
    data: Path,
    group_size: int,
    *,
    objective: str,
    minimum: int,
    maximum: int | None,
    batch_size: int | None,
) -> tuple[RowTable, Allocation]:
    """The training set ``data`` and group sizes for its rows; nothing is written to ``path`` yet.

    Raises:
        ValueError: the training set cannot be written there, or its rows be matched or shared out.
    """
    if data.is_dir() or data.suffix == ".json":
        raise ValueError(f"{data}: holds no training set. Write --data FILE.parquet")
    sheet = read_row_table(data)
    require_allocatable(sheet, path)
    found = allocate_rows(
        rates,
        sheet,
        group_size,
        objective=objective,  # type: ignore[arg-type]  # it checks the name
        minimum=minimum,
        maximum=maximum,
        batch_size=batch_size,
    )
    return sheet, found


def sentences(
    path: Path, found: Allocation, group_size: int, objective: str | None, batch_size: int | None
) -> list[str]:
    """What was written, what it is expected to be worth, and how to train on it."""
    sizes = found.sizes
    unknown = int((~found.known).sum())
    said = [
        f"{path}: {len(sizes)} rows, column {COLUMN} of {sizes.min()} to {sizes.max()} rollouts (median "
        f"{np.median(sizes):g}), which add up to {sizes.sum()} = {group_size} x {len(sizes)}."
    ]
    if unknown:
        said.append(f"{unknown} rows have no solve rate and get {group_size} each.")
    (before, after), (mixed_before, mixed_after) = found.gain, found.mixed
    by = "posterior of each prompt's counts, any rate equally likely before" if found.from_counts else "solve rates"
    change = f" ({after / before - 1:+.1%})" if before > 0 else ""
    said.append(
        f"Expected beside groups of {group_size} everywhere, by the {by}: mean gain {before:.4f} -> {after:.4f}"
        f"{change}, mixed groups {mixed_before:.1%} -> {mixed_after:.1%}."
    )
    if not found.from_counts:
        said.append(
            "Rates were taken as exact. If few responses are behind them, that promises too much, and equal groups can "
            "be better: say how many there were, with --samples or --total-column."
        )
    if objective == "fidelity":
        said.append("Objective fidelity makes estimates equally faithful; it is not meant to raise either figure.")
    said.append("It holds for the policy the rates are of, and less and less for one that has learned from them.")
    said.append(
        f"Train with data.train_files={path} actor_rollout_ref.rollout.n={group_size} in trainer mode gsd_sync (or "
        "verl's sync) without algorithm.filter_groups: others take whichever groups finish first."
    )
    said.append(
        "A prompt then weighs in the update by its rows, more where it has more of them; budget=adaptive, which does "
        "this during a run, weighs prompts alike."
    )
    if batch_size is None:
        said.append(
            f"A shuffled batch's rows add up to {group_size} each on average only, and verl fills up with padding to "
            "whole mini-batches, which can cost an optimiser step. With --batch-size B (your data.train_batch_size) "
            "and data.shuffle=false every batch is exact."
        )
    else:
        said.append(
            f"Each {batch_size} rows add up to {group_size} x {batch_size}: keep data.train_batch_size={batch_size}, "
            "data.shuffle=false and the rows' order, and leave out no row by its length."
        )
    return said
