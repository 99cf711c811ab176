"""``verl-gsd plan --allocate``: a training set with a group size for each prompt, and the expected effect."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from verl_gsd.row_table import RowTable, read_row_table
from verl_gsd.solve_rates import SolveRates
from verl_gsd.solve_rates.allocating import COLUMN, Allocation, allocate_rows, check_training_set


def allocate_training_set(
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
    """The training set in ``data`` and group sizes for its rows. Nothing is written to ``path`` yet.

    Raises:
        ValueError: the training set cannot be written to ``path``, its rows do not match the solve rates, or the
            bounds contradict each other.
    """
    if data.is_dir() or data.suffix == ".json":
        raise ValueError(f"{data} is not a training set. Set --data to a .parquet file.")
    table = read_row_table(data)
    check_training_set(table, path)
    allocation = allocate_rows(
        rates,
        table,
        group_size,
        objective=objective,  # type: ignore[arg-type]  # allocate_rows checks the name
        minimum=minimum,
        maximum=maximum,
        batch_size=batch_size,
    )
    return table, allocation


def sentences(
    path: Path, allocation: Allocation, group_size: int, objective: str | None, batch_size: int | None
) -> list[str]:
    """What was written, the expected effect, and how to train with it."""
    sizes = allocation.sizes
    n_unknown = int((~allocation.known).sum())
    messages = [
        f"{path}: {len(sizes)} rows. Column {COLUMN} has {sizes.min()} to {sizes.max()} rollouts per prompt (median "
        f"{np.median(sizes):g}), in total {sizes.sum()} = {group_size} x {len(sizes)}."
    ]
    if n_unknown:
        messages.append(f"{n_unknown} rows have no solve rate and get {group_size} each.")
    (gain_before, gain), (mixed_before, mixed) = allocation.gain, allocation.mixed
    source = "the solve rates"
    if allocation.from_counts:
        source = "the posterior of each prompt's counts under a uniform prior"
        source += ", where partial credit counts by its spread" if allocation.graded else ""
    change = f" ({gain / gain_before - 1:+.1%})" if gain_before > 0 else ""
    messages.append(
        f"Expected change from equal groups of {group_size}, according to {source}: mean gain {gain_before:.4f} -> "
        f"{gain:.4f}{change}, mixed groups {mixed_before:.1%} -> {mixed:.1%}."
    )
    if not allocation.from_counts:
        advice = " Use --samples or --total-column to say how many responses there were."
        messages.append(
            "The solve rates were treated as exact. If they come from few responses, this estimate is too high and "
            f"equal groups can be better.{advice if allocation.can_set_counts else ''}"
        )
    if objective == "fidelity":
        messages.append("The objective fidelity makes estimates equally faithful. It does not raise these figures.")
    messages.append(
        "The estimate holds for the policy that the solve rates were measured on. It becomes less accurate as training "
        "changes the policy."
    )
    messages.append(
        f"Train with {shlex.quote(f'data.train_files={path}')} actor_rollout_ref.rollout.n={group_size} in trainer "
        "mode gsd_sync (or verl's sync) without algorithm.filter_groups. In other modes the batch consists of the "
        "groups that finish first."
    )
    messages.append(
        "A prompt with more rollouts has a larger weight in the update. budget=adaptive, which allocates rollouts "
        "during a run, gives all prompts the same weight."
    )
    if batch_size is None:
        messages.append(
            f"The rows of a shuffled batch have {group_size} rollouts only on average, and verl pads the batch to "
            "whole mini-batches, which can cost an optimizer step. With --batch-size B (your data.train_batch_size) "
            "and data.shuffle=false every batch has the exact total."
        )
    else:
        messages.append(
            f"Each {batch_size} rows have {group_size} x {batch_size} rollouts in total. Keep "
            f"data.train_batch_size={batch_size}, data.shuffle=false and the order of the rows, and do not filter rows "
            "by length."
        )
    return messages
