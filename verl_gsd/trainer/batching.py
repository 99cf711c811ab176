"""Where each row of a batch stands, so that every group lies inside one optimiser mini-batch.

verl gives each of D data-parallel workers a contiguous share of the batch, and the j-th mini-batch is the j-th slice of
every worker's share. Rows that must be updated together therefore stand far apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: In a layout: a row of verl's padding.
PADDING = -1


def layout(
    group: Sequence[int],
    workload: Sequence[float],
    *,
    mini_rows: int,
    workers: int,
    group_size: int | None = None,
    multiple: int | None = None,
) -> list[int]:
    """Place N rows and as much padding as it takes.

    Args:
        group: (N,) number of each row's group, 0, 1, ...
        workload: (N,) what a row costs a worker; evened out over mini-batches and workers.
        mini_rows: rows of a mini-batch over all workers, a multiple of ``workers``.
        group_size: keep each group on one worker, in consecutive rows, filled with padding to this size. None: its rows
            may go to any worker.
        multiple: of rows that the whole must be, itself a multiple of ``mini_rows``; that many by default.

    Returns:
        Row numbers, or ``PADDING``, by place in the batch: worker by worker, for each its slices of the mini-batches.

    Raises:
        ValueError: a group is larger than ``group_size`` or than a mini-batch, or a mini-batch cannot be shared by the
            workers evenly, in groups of ``group_size`` where that is given.
    """
    members: list[list[int]] = [[] for _ in range(max(group, default=-1) + 1)]
    for row, number in enumerate(group):
        members[number].append(row)
    largest = max(map(len, members), default=0)
    if largest > (group_size or mini_rows):
        what = f"groups of {group_size}" if group_size else f"a mini-batch of {mini_rows} rows"
        raise ValueError(f"a group of {largest} rows does not fit {what}")
    slice_rows = mini_rows // workers
    if group_size and slice_rows % group_size:
        raise ValueError(
            f"a worker's {slice_rows} rows of a mini-batch ({mini_rows} over {workers} workers) are no whole number of "
            f"groups of {group_size}"
        )
    if mini_rows % workers:
        raise ValueError(f"a mini-batch of {mini_rows} rows cannot be shared by {workers} workers evenly")
    work = np.asarray(workload, dtype=float)
    of_group = [float(work[rows].sum()) for rows in members]
    room = [group_size or len(rows) for rows in members]
    step = (multiple or mini_rows) // mini_rows
    n_mini = step * max(1, math.ceil(sum(room) / mini_rows / step))
    # Mini-batches with as many groups each: one with fewer would weigh every group of its own more.
    while (mini_batches := _deal(of_group, room, n_mini, mini_rows, evenly=True)) is None:
        n_mini += step
    places = np.full((workers, n_mini, slice_rows), PADDING)
    for j, groups in enumerate(mini_batches):
        if group_size:
            shares = _deal([of_group[g] for g in groups], [group_size] * len(groups), workers, slice_rows)
            chunks = [[_filled(members[groups[g]], group_size) for g in share] for share in shares or []]
        else:
            rows = [row for g in groups for row in members[g]]
            shares = _deal(work[rows].tolist(), [1] * len(rows), workers, slice_rows)
            chunks = [[[rows[row]] for row in share] for share in shares or []]
        for worker, chunk in enumerate(chunks):
            standing = [row for part in chunk for row in part]
            places[worker, j, : len(standing)] = standing
    return places.flatten().tolist()


def mini_batch_of(n_rows: int, *, mini_rows: int, workers: int) -> np.ndarray:
    """(n_rows,) the number of the mini-batch in which verl updates each place of a batch."""
    share, slice_rows = n_rows // workers, mini_rows // workers
    return np.arange(n_rows) % share // slice_rows


def _filled(rows: list[int], size: int) -> list[int]:
    return rows + [PADDING] * (size - len(rows))


def _deal(
    work: Sequence[float], room: Sequence[int], bins: int, capacity: int, *, evenly: bool = False
) -> list[list[int]] | None:
    """Give every item to a bin with room for it, large ones first and each to the bin with the least work so far.

    Args:
        evenly: rather to the bin with the fewest items.

    Returns:
        The items of each bin, in ascending order, or None where one found no room.
    """
    items: list[list[int]] = [[] for _ in range(bins)]
    load = np.zeros(bins)
    used: np.ndarray = np.zeros(bins, dtype=int)
    for item in sorted(range(len(work)), key=lambda item: (-room[item], -work[item])):
        free = used + room[item] <= capacity
        if not free.any():
            return None
        items_so_far = [len(found) if evenly else 0 for found in items]
        chosen = int(np.lexsort((load, items_so_far, ~free))[0])
        items[chosen].append(item)
        load[chosen] += work[item]
        used[chosen] += room[item]
    return [sorted(found) for found in items]
