"""Groups: which rows of a batch are responses to the same prompt, and the statistics of their rewards.

All code that groups rows (advantages, anchors, losses, records) uses this module.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

#: One hashable label per row, such as verl's ``uid``. Rows with equal labels are one group, in any order.
Labels: TypeAlias = Sequence[Hashable] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class GroupStats:
    """The groups of N rows, numbered 0, 1, ... by their first row.

    Attributes:
        group: (N,) int64, the number of each row's group; -1 for a row of no group.
        size: (n_groups,) int64, number of rows in each group.
        mean: (n_groups,), mean reward mu.
        std: (n_groups,), population standard deviation sigma = sqrt(mean((R - mu)^2)); exactly 0 if the group is
            unanimous.
        unanimous: (n_groups,) bool, whether all rewards are equal. Computed as max == min, because the float standard
            deviation of seven rewards of 0.7 is 6e-8.
    """

    group: torch.Tensor
    size: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    unanimous: torch.Tensor

    def per_row(self, values: torch.Tensor, elsewhere: float | bool = 0) -> torch.Tensor:
        """Expand ``values`` (n_groups,) to one value per row (N,). Rows of no group get ``elsewhere``."""
        return values[self.group.clamp(min=0)].masked_fill(self.group < 0, elsewhere)


@dataclass(frozen=True, eq=False)
class Group:
    """The k responses to one prompt, after all sessions of the visit have ended: one per session that gave a response.

    The k responses do not include demonstrations, even if a demonstration replaces a response in the batch.

    Attributes:
        uid: verl's name of this visit to the prompt.
        data_source, index: the prompt's key, which is the same at every visit.
        rewards: (k,) float64.
        accuracies: (k,) float64, the verifier's ``acc``. NaN if that is not a number, and for a response of an earlier
            visit. If a verifier returns only a reward, verl sets ``acc`` to it, so ``acc`` can lie outside [0, 1].
        tokens: (k,) int64, tokens generated for each session's responses.
        keys: k keys, each of the row in the batch that represents the response.
        scores: (k,) float64, a judge's scores; NaN if the judge failed. None if the group was not judged.
        demonstrations: number of demonstrations in the group.
        rollouts_requested: rollouts that a budget requested; None if every prompt has the same number.
        unverified: number of responses that the verifier could not verify and counted as wrong; None if the verifier
            does not report this.
        doubtful: number of responses that count as wrong although the verifier was not sure; None if the verifier does
            not report this.
        failed_rewards: number of responses whose reward failed. They are not among the k responses and are not trained
            on.
        distinct_answers: number of different final answers, as texts that the verifier returned. Responses without an
            answer and responses of an earlier visit do not count. None if the verifier does not return answers.
        answers: these answers as digests with their counts, from ``answer_counts.pack_answers``.
        earlier: number of the k responses that an earlier visit generated. They have a reward, but neither tokens nor
            an accuracy, because the earlier visit counted them.
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
    rollouts_requested: int | None = None
    unverified: int | None = None
    doubtful: int | None = None
    failed_rewards: int = 0
    distinct_answers: int | None = None
    answers: bytes | None = None
    earlier: int = 0


def first_invalid_accuracy(group: Group) -> float | None:
    """The first accuracy of a group that is outside [0, 1], or NaN if one is missing; None if all are valid.

    Responses of earlier visits do not count. They have neither tokens nor an accuracy.
    """
    accuracies = group.accuracies[group.tokens > 0]
    outside = accuracies[(accuracies < 0) | (accuracies > 1)]
    if len(outside):
        return float(outside[0])
    return float("nan") if np.isnan(accuracies).any() else None


@dataclass(frozen=True, eq=False)
class Member:
    """The group of a row of a batch, and the response that the row is.

    Attributes:
        response_index: position of the response in ``group``; None if the row is a demonstration.
    """

    group: Group
    response_index: int | None


def group_stats(rewards: torch.Tensor, index: Labels, mask: torch.Tensor | None = None) -> GroupStats:
    """Group rows by label and describe each group's rewards.

    Sums are computed in float64, so the order of rows changes the results by float64 rounding at most.

    Args:
        rewards: (N,), one per response.
        index: N hashable labels.
        mask: (N,) bool. A row with False belongs to no group and is ignored.

    Returns:
        Groups, with ``mean`` and ``std`` in the dtype of the rewards, or in float32 if that is wider.

    Raises:
        ValueError: the batch is empty, lengths differ, the mask removes every row, or a reward of a row in a group is
            NaN or infinite. The message names the row.
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
    low, high = group_extremes(value, member, n_groups)
    unanimous = low == high
    std = variance.sqrt().masked_fill(unanimous, 0)
    return GroupStats(group, size, mean.to(rewards.dtype), std.to(rewards.dtype), unanimous)


def group_extremes(values: torch.Tensor, member: torch.Tensor, n_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest value of each group, (n_groups,) each, in the dtype of ``values``.

    Args:
        values: (n,).
        member: (n,) int64, the number of each value's group. Every group has a value.
    """
    low, high = (
        values.new_zeros(n_groups).scatter_reduce_(0, member, values, extreme, include_self=False)
        for extreme in ("amin", "amax")
    )
    return low, high


def group_numbers(index: Labels, n_rows: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Number the groups of ``index`` by their first row: (n_rows,) int64, -1 where ``mask`` is False.

    Raises:
        ValueError: no rows, lengths differ, a label is not hashable, or the mask removes every row.
    """
    if n_rows == 0:
        raise ValueError("the batch is empty: 0 rows")
    if isinstance(index, np.ndarray | torch.Tensor):
        if index.ndim != 1:
            raise ValueError(f"index has shape {tuple(index.shape)}. Use one label per row, shape ({n_rows},).")
        index = index.tolist()
    if len(index) != n_rows:
        raise ValueError(f"index has {len(index)} labels for {n_rows} rows. Use one label per row.")
    if mask is not None and not bool_rows(mask, n_rows, "mask").any():
        raise ValueError(f"the mask removes every row: all {n_rows} entries are False. Set at least one to True.")
    counted = index if mask is None else itertools.compress(index, mask.tolist())
    # A new label gets the number of distinct labels before it. ``map`` loops over the rows in C.
    numbers: defaultdict[Hashable, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    try:
        group = torch.from_numpy(np.fromiter(map(numbers.__getitem__, counted), dtype=np.int64))
    except TypeError:
        group = None
    # A dict finds a tensor only by identity, and a NaN is not equal to itself: each such row would be its own group.
    if group is None or any(isinstance(label, torch.Tensor) or label != label for label in numbers):
        kept = range(n_rows) if mask is None else itertools.compress(range(n_rows), mask.tolist())
        row = next(row for row in kept if not _is_label(index[row]))
        raise ValueError(
            f"index[{row}] is {index[row]!r} of type {type(index[row]).__name__}, which cannot be a label. Use "
            "hashable labels that are equal within a group, for example strings or integers."
        )
    if mask is None:
        return group
    return torch.full((n_rows,), -1).masked_scatter(mask.cpu(), group)


def _is_label(label: object) -> bool:
    try:
        hash(label)
    except TypeError:
        return False
    return not isinstance(label, torch.Tensor) and label == label


def float_rows(values: torch.Tensor, name: str) -> torch.Tensor:
    """``values`` (N,) as floats, in their own dtype if that is float32 or wider, and in float32 otherwise.

    Raises:
        ValueError: ``values`` is not one-dimensional.
    """
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(values.shape)}. Use one number per row, shape (N,).")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def bool_rows(values: torch.Tensor, n_rows: int, name: str) -> torch.Tensor:
    """Return ``values`` if it is a bool tensor of shape (n_rows,).

    Raises:
        ValueError: ``values`` has another dtype or shape.
    """
    if values.dtype != torch.bool or values.shape != (n_rows,):
        raise ValueError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)}. Use torch.bool of shape ({n_rows},)."
        )
    return values


def require_rows(n_rows: int, **columns: torch.Tensor) -> None:
    """Raise a ValueError that names the first of ``columns`` whose shape is not (n_rows,)."""
    for name, column in columns.items():
        if column.shape != (n_rows,):
            raise ValueError(f"{name} has shape {tuple(column.shape)}. Use one number per row, shape ({n_rows},).")


def require_finite(values: torch.Tensor, name: str, where: torch.Tensor) -> None:
    """Raise a ValueError that names the first row at which ``where`` is true and ``values`` is NaN or infinite."""
    bad = torch.nonzero(where & ~values.isfinite())
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"{name}[{row}] is {values[row].item()}. Use finite numbers, or mask the row out.")
