"""Who belongs together: the responses to one prompt, and what their rewards amount to.

The only place that groups rows; everything else (advantages, anchors, losses, records) asks here.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

#: One hashable label a row, such as verl's ``uid``: rows with equal labels are one group, wherever they stand.
Labels: TypeAlias = Sequence[Hashable] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class GroupStats:
    """The groups of N rows, numbered 0, 1, ... by their first row.

    Attributes:
        group: (N,) int64, the number of each row's group; -1 for a row of no group.
        size: (n_groups,) int64, rows in each group.
        mean: (n_groups,), mean reward mu.
        std: (n_groups,), population standard deviation sigma = sqrt(mean((R - mu)^2)); exactly 0 where unanimous.
        unanimous: (n_groups,) bool, all rewards equal. Decided by max == min, because the float standard deviation of
            seven rewards of 0.7 is 6e-8.
    """

    group: torch.Tensor
    size: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    unanimous: torch.Tensor

    def per_row(self, values: torch.Tensor, elsewhere: float | bool = 0) -> torch.Tensor:
        """A figure per group, (n_groups,), as one per row, (N,); ``elsewhere`` in rows of no group."""
        return values[self.group.clamp(min=0)].masked_fill(self.group < 0, elsewhere)


@dataclass(frozen=True, eq=False)
class Group:
    """The responses to one prompt, all of whose sessions have ended: k rows, one a session that gave a response.

    Demonstrations that stand in the group, in the place of a response or beside it, are none of the k rows.

    Attributes:
        uid: verl's name of this visit to the prompt.
        data_source, index: the prompt's key, which is the same at every visit.
        rewards: (k,) float64.
        accuracies: (k,) float64, what the verifier called ``acc``; NaN where that is no number, and for a response of
            an earlier visit. verl fills it with the reward where a verifier returns nothing else, so that it need not
            lie in [0, 1].
        tokens: (k,) int64, tokens generated for each session's responses.
        keys: k names, each of the row in the batch that speaks for the response.
        scores: (k,) float64, a judge's; NaN where it failed. None where nobody was asked.
        demonstrations: how many stand in the group.
        asked: rollouts that a budget asked for; None where every prompt has as many.
        unverified: responses that the verifier could not verify, and took for wrong; None where it says no such thing.
        failed_rewards: responses whose reward failed. They are none of the k rows, and nothing is trained on them.
    """

    uid: str
    data_source: str
    index: int
    rewards: np.ndarray
    accuracies: np.ndarray
    tokens: np.ndarray
    keys: tuple[str, ...] = ()
    scores: np.ndarray | None = None
    demonstrations: int = 0
    asked: int | None = None
    unverified: int | None = None
    failed_rewards: int = 0


@dataclass(frozen=True, eq=False)
class Member:
    """What a row of a batch is: response number ``place`` of ``group``, or, with None, one of its demonstrations."""

    group: Group
    place: int | None


def group_stats(rewards: torch.Tensor, index: Labels, mask: torch.Tensor | None = None) -> GroupStats:
    """Group rows by label and describe each group's rewards.

    Sums run in float64: where a group's rows stand in the batch changes its figures by float64 rounding at most.

    Args:
        rewards: (N,), one a response.
        index: N hashable labels.
        mask: (N,) bool; False is a row of no group, which counts nowhere.

    Returns:
        Groups, with ``mean`` and ``std`` in the rewards' dtype, float32 at least.

    Raises:
        ValueError: the batch is empty, lengths differ, the mask removes every row, or a reward that counts is NaN or
            infinite; the message names the row.
    """
    rewards = float_rows(rewards, "rewards")
    group = group_numbers(index, len(rewards), mask).to(rewards.device)
    require_finite(rewards, "rewards", where=group >= 0)
    counted = group >= 0
    member, value = group[counted], rewards[counted].double()
    size = torch.bincount(member)
    n_groups = len(size)

    def total(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(n_groups).index_add_(0, member, values)

    mean = total(value) / size
    variance = total((value - mean[member]).square()) / size
    low, high = (
        value.new_zeros(n_groups).scatter_reduce_(0, member, value, extreme, include_self=False)
        for extreme in ("amin", "amax")
    )
    unanimous = low == high
    std = variance.sqrt().masked_fill(unanimous, 0)
    return GroupStats(group, size, mean.to(rewards.dtype), std.to(rewards.dtype), unanimous)


def group_numbers(index: Labels, n_rows: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Number the groups of ``index`` by their first row: (n_rows,) int64, -1 where ``mask`` is False.

    Raises:
        ValueError: no rows, lengths differ, a label is not hashable, or the mask removes every row.
    """
    if n_rows == 0:
        raise ValueError("the batch is empty: 0 rows")
    if isinstance(index, np.ndarray | torch.Tensor):
        if index.ndim != 1:
            raise ValueError(f"index has shape {tuple(index.shape)}; write one label a row, shape ({n_rows},)")
        index = index.tolist()
    if len(index) != n_rows:
        raise ValueError(f"index has {len(index)} labels for {n_rows} rows")
    if mask is not None and not bool_rows(mask, n_rows, "mask").any():
        raise ValueError(f"the mask removes every row: all {n_rows} are False")
    counted = index if mask is None else itertools.compress(index, mask.tolist())
    # A label met for the first time gets the number of labels met before it; the loop over rows is map's, in C.
    numbers: defaultdict[Hashable, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    try:
        found = torch.from_numpy(np.fromiter(map(numbers.__getitem__, counted), dtype=np.int64))
    except TypeError:
        found = None
    # A tensor is equal to no other, and a NaN not to itself: each such row would be a group of its own, in silence.
    if found is None or any(isinstance(label, torch.Tensor) or label != label for label in numbers):
        kept = range(n_rows) if mask is None else itertools.compress(range(n_rows), mask.tolist())
        row = next(row for row in kept if not _is_label(index[row]))
        raise ValueError(
            f"index[{row}] is {index[row]!r}, of type {type(index[row]).__name__}: write hashable labels, equal "
            "within a group"
        )
    if mask is None:
        return found
    return torch.full((n_rows,), -1).masked_scatter(mask.cpu(), found)


def _is_label(label: object) -> bool:
    try:
        hash(label)
    except TypeError:
        return False
    return not isinstance(label, torch.Tensor) and label == label


def float_rows(values: torch.Tensor, name: str) -> torch.Tensor:
    """``values`` as a float tensor (N,): its own dtype if that is float32 or wider, float32 otherwise.

    Raises:
        ValueError: it is not one-dimensional.
    """
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; write one number a row, shape (N,)")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def bool_rows(values: torch.Tensor, n_rows: int, name: str) -> torch.Tensor:
    """``values``, checked to be bool of shape (n_rows,).

    Raises:
        ValueError: it is not.
    """
    if values.dtype != torch.bool or values.shape != (n_rows,):
        raise ValueError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)}; write torch.bool of shape ({n_rows},)"
        )
    return values


def require_rows(n_rows: int, **columns: torch.Tensor) -> None:
    """Raise a ValueError naming the first of ``columns`` whose shape is not (n_rows,)."""
    for name, column in columns.items():
        if column.shape != (n_rows,):
            raise ValueError(f"{name} has shape {tuple(column.shape)}; write one number a row, shape ({n_rows},)")


def require_finite(values: torch.Tensor, name: str, where: torch.Tensor) -> None:
    """Raise a ValueError naming the first row ``where`` holds and ``values`` is NaN or infinite."""
    bad = torch.nonzero(where & ~values.isfinite())
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"{name}[{row}] is {values[row].item()}; every row that counts needs a finite number")
