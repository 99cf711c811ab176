"""What GVPO's loss reads about each row, and statistics of a mini-batch over all workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

# Columns that the trainer adds to verl's, one number per row.
#: The numbers of the row's response and group within the mini-batch; -1 in padding rows.
RESPONSE, GROUP = "gvpo_response", "gvpo_group"
#: k, the number of responses in the row's group.
SIZE = "gvpo_size"
#: c_i and A_i.
COEFFICIENT, ADVANTAGE = "gvpo_coefficient", "gvpo_advantage"
#: w_i, a column that a worker adds if it has computed the weights of the current mini-batch.
WEIGHT = "gvpo_weight"


@dataclass(frozen=True)
class GvpoRows:
    """R rows of a mini-batch on one worker: a micro-batch, or all of the worker's rows. Each field has shape (R,)."""

    response: torch.Tensor
    group: torch.Tensor
    size: torch.Tensor
    coefficient: torch.Tensor
    advantage: torch.Tensor

    @classmethod
    def of(cls, rows: Mapping[str, torch.Tensor]) -> GvpoRows:
        return cls(*(rows[name] for name in (RESPONSE, GROUP, SIZE, COEFFICIENT, ADVANTAGE)))

    def local_group(self) -> torch.Tensor:
        """(R,) the groups, renumbered 0, 1, ... among these rows; -1 for padding."""
        is_response = self.group >= 0
        numbers = torch.full_like(self.group, -1)
        numbers[is_response] = torch.unique(self.group[is_response], return_inverse=True)[1]
        return numbers

    def split_group_problem(self, rows_per_group: int | None = None) -> str:
        """An error message if some group's responses are not all among these rows; an empty string otherwise.

        Args:
            rows_per_group: check every block of this many consecutive rows separately. verl forms micro-batches of
                whole groups from such blocks.
        """
        group = self.local_group()
        if rows_per_group is not None:
            block = torch.arange(len(group), device=group.device) // rows_per_group
            group = torch.where(group >= 0, group * len(group) + block, -1)
            is_response = group >= 0
            group[is_response] = torch.unique(group[is_response], return_inverse=True)[1]
        counts = torch.bincount(group[group >= 0], minlength=1)[group.clamp(min=0)]
        incomplete = torch.nonzero((group >= 0) & (counts != self.size))
        if not len(incomplete):
            return ""
        row = int(incomplete[0])
        return (
            f"algorithm.gsd.gvpo.grouping=whole: a micro-batch holds {int(counts[row])} of the {int(self.size[row])} "
            f"responses of group {int(self.group[row])}, but the weights of a group need all of them. Something "
            "rearranged the rows. Set algorithm.gsd.gvpo.grouping=prepass, which works with any order of rows."
        )


@dataclass(frozen=True)
class MiniBatchResponses:
    """The S responses of a mini-batch over all workers. Each field has shape (S,) and float64; ``group`` is int64."""

    log_ratio: torch.Tensor
    log_reference: torch.Tensor
    tokens: torch.Tensor
    advantage: torch.Tensor
    group: torch.Tensor


class MiniBatchStats:
    """Collects statistics of one mini-batch over all workers.

    Args:
        own_rows: all rows of the mini-batch that this worker has.
        dp_group: the data-parallel workers that share the mini-batch; None for one worker.
        device: the device on which the workers' collectives run.
    """

    def __init__(self, own_rows: GvpoRows, dp_group: Any, device: torch.device | str | int) -> None:
        self._dp_group, self._device = dp_group, device
        ends = torch.stack([own_rows.response.amax(), own_rows.group.amax()]) + 1
        n_responses, n_groups = self._reduced(ends, torch.distributed.ReduceOp.MAX).tolist()
        # Per response, summed over rows and workers: s, l', tokens, A, group, and the number of rows.
        self._by_response = torch.zeros(n_responses, 6, dtype=torch.float64, device=device)
        # Per group: the number of micro-batches that hold rows of it.
        self._micro_batches = torch.zeros(n_groups, dtype=torch.int64, device=device)

    def add(self, rows: GvpoRows, log_ratio: torch.Tensor, log_reference: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add rows; each tensor has shape (R,). If a response has several rows, their values are summed."""
        is_response = rows.response >= 0
        columns = (log_ratio, log_reference, tokens, rows.advantage, rows.group, torch.ones_like(log_ratio))
        values = torch.stack([column.to(self._device, torch.float64) for column in columns], dim=1)
        self._by_response.index_add_(
            0, rows.response[is_response].to(self._device), values[is_response.to(self._device)]
        )

    def count_micro_batch(self, rows: GvpoRows) -> None:
        """Count a micro-batch for each group that has rows in it."""
        self._micro_batches[torch.unique(rows.group[rows.group >= 0]).to(self._device)] += 1

    def responses(self) -> MiniBatchResponses:
        """The responses that all workers have added. A collective operation: every worker must call it."""
        total = self._reduced(self._by_response, torch.distributed.ReduceOp.SUM)
        rows = total[:, 5].clamp(min=1)
        return MiniBatchResponses(
            total[:, 0], total[:, 1], total[:, 2], total[:, 3] / rows, (total[:, 4] / rows).round().long()
        )

    def on_any_worker(self, condition: bool) -> bool:
        """Whether ``condition`` holds on any worker. A collective operation: every worker must call it."""
        return bool(self._reduced(torch.tensor(int(condition)), torch.distributed.ReduceOp.MAX))

    def split_groups(self) -> int:
        """The number of groups in more than one micro-batch. A collective operation: every worker must call it."""
        return int((self._reduced(self._micro_batches, torch.distributed.ReduceOp.SUM) > 1).sum())

    def _reduced(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        values = values.to(self._device, copy=True)
        if self._dp_group is not None:
            torch.distributed.all_reduce(values, op=operation, group=self._dp_group)
        return values
