"""Places the rows of a batch so that every group lies inside one optimiser mini-batch.

verl gives each of D data-parallel workers a contiguous share of the batch. The j-th mini-batch consists of the j-th
slice of every worker's share, so the rows of a mini-batch are spread over the batch. All slices have the same number of
rows: the mini-batch with the most rows determines how much padding the others get.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Stands for a row of verl's padding in a layout.
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
    """Place N rows, and as much padding as necessary.

    The numbers of groups in any two mini-batches differ by at most one. The same holds for the groups of at least two
    responses, so a loss that is the mean over such groups gives all groups of a step nearly the same weight.

    Args:
        group: (N,) number of each row's group, 0, 1, ...
        response: (N,) number of the response that each row belongs to.
        workload: (N,) cost of each row for a worker. It is balanced over mini-batches and workers.
        mini_batches: number of mini-batches, at most one per group.
        group_size: keep each group on one worker, in consecutive rows, padded to this size. None: the rows of a group
            may go to any worker.
        slice_multiple: the number of rows of a worker's slice of a mini-batch is a multiple of this, which is the size
            of a fixed micro-batch.

    Returns:
        The row number, or ``PADDING``, at each place of the batch. Places are ordered by worker, then by mini-batch.

    Raises:
        ValueError: there are more mini-batches than groups, or a group is larger than ``group_size``.
    """
    members: list[list[int]] = [[] for _ in range(max(group, default=-1) + 1)]
    for row, number in enumerate(group):
        members[number].append(row)
    if len(members) < mini_batches:
        raise ValueError(f"{len(members)} groups cannot fill {mini_batches} mini-batches. Use fewer mini-batches.")
    largest = max(map(len, members))
    if group_size and largest > group_size:
        raise ValueError(
            f"a group of {largest} rows is larger than group_size={group_size}. Set group_size to at least {largest}."
        )
    work = np.asarray(workload, dtype=float)
    work_by_group = [float(work[rows].sum()) for rows in members]
    has_several_responses = [len({response[row] for row in rows}) > 1 for rows in members]
    groups_by_mini_batch = _deal([len(rows) for rows in members], work_by_group, has_several_responses, mini_batches)
    # Workers get pieces: whole padded groups, or single rows.
    pieces_by_mini_batch = [
        [members[g] + [PADDING] * (group_size - len(members[g])) for g in groups]
        if group_size
        else [[row] for g in groups for row in members[g]]
        for groups in groups_by_mini_batch
    ]
    piece_rows = group_size or 1
    unit = math.lcm(piece_rows, slice_multiple)
    fullest = max(math.ceil(len(pieces) / workers) for pieces in pieces_by_mini_batch) * piece_rows
    slice_rows = math.ceil(fullest / unit) * unit
    places = np.full((workers, mini_batches, slice_rows), PADDING)
    for j, pieces in enumerate(pieces_by_mini_batch):
        work_by_piece = [sum(work[row] for row in piece if row != PADDING) for piece in pieces]
        for worker, share in enumerate(_share(work_by_piece, workers, slice_rows // piece_rows)):
            rows = [row for number in share for row in pieces[number]]
            places[worker, j, : len(rows)] = rows
    return places.flatten().tolist()


def mini_batch_of(n_rows: int, *, mini_batches: int, workers: int) -> np.ndarray:
    """(n_rows,) number of the mini-batch to which each place of a batch belongs in verl."""
    share = n_rows // workers
    return np.arange(n_rows) % share // (share // mini_batches)


def _deal(
    rows: Sequence[int], work: Sequence[float], has_several_responses: Sequence[bool], bins: int
) -> list[list[int]]:
    """The groups of each bin, in ascending order.

    Every bin gets one group per round. Groups of one response come last, so that both kinds are spread evenly. Within a
    round, the largest group goes to the bin with the fewest rows; ties go to the bin with the least work.
    """
    order = sorted(range(len(rows)), key=lambda g: (not has_several_responses[g], -rows[g], -work[g]))
    groups_by_bin: list[list[int]] = [[] for _ in range(bins)]
    rows_in, work_in = np.zeros(bins), np.zeros(bins)
    for start in range(0, len(order), bins):
        for g, chosen in zip(order[start : start + bins], np.lexsort((work_in, rows_in)).tolist(), strict=False):
            groups_by_bin[chosen].append(g)
            rows_in[chosen] += rows[g]
            work_in[chosen] += work[g]
    return [sorted(groups) for groups in groups_by_bin]


def _share(work: Sequence[float], workers: int, capacity: int) -> list[list[int]]:
    """The items of each worker, in ascending order.

    Items with more work are placed first. Each goes to the worker with the least work that has capacity left.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = np.zeros(workers)
    for item in sorted(range(len(work)), key=lambda item: -work[item]):
        chosen = int(load.argmin())
        shares[chosen].append(item)
        load[chosen] += work[item]
        if len(shares[chosen]) == capacity:
            load[chosen] = np.inf
    return [sorted(share) for share in shares]
