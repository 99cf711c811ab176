"""Where each row of a batch stands, so that every group lies inside one optimiser mini-batch.

verl gives each of D data-parallel workers a contiguous share of the batch, and the j-th mini-batch is the j-th slice of
every worker's share. Rows that must be updated together therefore stand far apart. All slices have the same number of
rows: the mini-batch with the most rows decides how much padding the others get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: In a layout: a row of verl's padding.
PADDING = -1


def layout(
    group: Sequence[int],
    response: Sequence[int],
    workload: Sequence[float],
    *,
    mini_batches: int,
    workers: int,
    group_size: int | None = None,
    slice_multiple: int = 1,
) -> list[int]:
    """Place N rows and as much padding as it takes.

    The numbers of groups in two mini-batches differ by one at most, and so do the numbers of groups of two responses or
    more: a loss that is the mean over such groups weighs the groups of a step alike.

    Args:
        group: (N,) number of each row's group, 0, 1, ...
        response: (N,) number of the response that the row is (a part of).
        workload: (N,) what a row costs a worker; evened out over mini-batches and workers.
        mini_batches: how many, at most one per group.
        group_size: keep each group on one worker, in consecutive rows, filled with padding to this size. None: its rows
            may go to any worker.
        slice_multiple: a worker's slice of a mini-batch has a multiple of this many rows, the size of a fixed
            micro-batch.

    Returns:
        Row numbers, or ``PADDING``, by place in the batch: worker by worker, for each its slices of the mini-batches.

    Raises:
        ValueError: there are more mini-batches than groups, or a group is larger than ``group_size``.
    """
    members: list[list[int]] = [[] for _ in range(max(group, default=-1) + 1)]
    for row, number in enumerate(group):
        members[number].append(row)
    if len(members) < mini_batches:
        raise ValueError(f"{len(members)} groups do not fill {mini_batches} mini-batches")
    largest = max(map(len, members))
    if group_size and largest > group_size:
        raise ValueError(f"a group of {largest} rows does not fit groups of {group_size}")
    work = np.asarray(workload, dtype=float)
    of_group = [float(work[rows].sum()) for rows in members]
    several = [len({response[row] for row in rows}) > 1 for rows in members]
    dealt = _deal([len(rows) for rows in members], of_group, several, mini_batches)
    # A worker's share is counted in pieces: groups filled up, or single rows.
    pieces_of = [
        [members[g] + [PADDING] * (group_size - len(members[g])) for g in groups]
        if group_size
        else [[row] for g in groups for row in members[g]]
        for groups in dealt
    ]
    piece_rows = group_size or 1
    unit = math.lcm(piece_rows, slice_multiple)
    fullest = max(math.ceil(len(pieces) / workers) for pieces in pieces_of) * piece_rows
    slice_rows = math.ceil(fullest / unit) * unit
    places = np.full((workers, mini_batches, slice_rows), PADDING)
    for j, pieces in enumerate(pieces_of):
        work_of = [sum(work[row] for row in piece if row != PADDING) for piece in pieces]
        for worker, share in enumerate(_share(work_of, workers, slice_rows // piece_rows)):
            standing = [row for number in share for row in pieces[number]]
            places[worker, j, : len(standing)] = standing
    return places.flatten().tolist()


def mini_batch_of(n_rows: int, *, mini_batches: int, workers: int) -> np.ndarray:
    """(n_rows,) the number of the mini-batch in which verl updates each place of a batch."""
    share = n_rows // workers
    return np.arange(n_rows) % share // (share // mini_batches)


def _deal(rows: Sequence[int], work: Sequence[float], several: Sequence[bool], bins: int) -> list[list[int]]:
    """The groups of each bin, in ascending order.

    Every bin gets one group per turn. Groups of one response come last, so that both kinds are spread evenly. Within a
    turn the largest group goes to the bin with the fewest rows, then the least work.
    """
    order = sorted(range(len(rows)), key=lambda g: (not several[g], -rows[g], -work[g]))
    dealt: list[list[int]] = [[] for _ in range(bins)]
    rows_in, work_in = np.zeros(bins), np.zeros(bins)
    for start in range(0, len(order), bins):
        for g, chosen in zip(order[start : start + bins], np.lexsort((work_in, rows_in)).tolist(), strict=False):
            dealt[chosen].append(g)
            rows_in[chosen] += rows[g]
            work_in[chosen] += work[g]
    return [sorted(groups) for groups in dealt]


def _share(work: Sequence[float], workers: int, capacity: int) -> list[list[int]]:
    """The items of each worker, in ascending order: each goes, dear ones first, to the one with room and least work."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = np.zeros(workers)
    for item in sorted(range(len(work)), key=lambda item: -work[item]):
        chosen = int(load.argmin())
        shares[chosen].append(item)
        load[chosen] += work[item]
        if len(shares[chosen]) == capacity:
            load[chosen] = np.inf
    return [sorted(share) for share in shares]
