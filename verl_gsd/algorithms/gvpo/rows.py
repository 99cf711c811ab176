"""What GVPO's loss knows of each row, and of each response of a mini-batch over all workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Columns that the trainer puts beside verl's, one number a row; -1 in rows of verl's padding.
RESPONSE, GROUP = "gvpo_response", "gvpo_group"  # numbers within the mini-batch
SIZE = "gvpo_size"  # k, the responses of the row's group that are there
COEFFICIENT, ADVANTAGE = "gvpo_coefficient", "gvpo_advantage"  # c_i and A_i
#: w_i, put by a worker that made the weights of the mini-batch at hand.
WEIGHT = "gvpo_weight"


@dataclass(frozen=True)
class GvpoRows:
    """Rows of a mini-batch on one worker, (R,) each: a micro-batch, or all that the worker has of it."""

    response: torch.Tensor
    group: torch.Tensor
    size: torch.Tensor
    coefficient: torch.Tensor
    advantage: torch.Tensor

    @classmethod
    def of(cls, rows: Mapping[str, torch.Tensor]) -> GvpoRows:
        return cls(*(rows[name] for name in (RESPONSE, GROUP, SIZE, COEFFICIENT, ADVANTAGE)))

    def group_here(self) -> torch.Tensor:
        """(R,) the groups numbered 0, 1, ... among these rows; -1 for padding."""
        found = self.group >= 0
        numbers = torch.full_like(self.group, -1)
        numbers[found] = torch.unique(self.group[found], return_inverse=True)[1]
        return numbers

    def split(self, run: int | None = None) -> str:
        """What is wrong where a group's responses are not all among these rows; empty where they are.

        Args:
            run: look at each so many consecutive rows by themselves, which is how verl forms micro-batches of groups.
        """
        group = self.group_here()
        if run is not None:
            share = torch.arange(len(group), device=group.device) // run
            group = torch.where(group >= 0, group * len(group) + share, -1)
            found = group >= 0
            group[found] = torch.unique(group[found], return_inverse=True)[1]
        counts = torch.bincount(group[group >= 0], minlength=1)[group.clamp(min=0)]
        parts = torch.nonzero((group >= 0) & (counts != self.size))
        if not len(parts):
            return ""
        row = int(parts[0])
        return (
            f"algorithm.gsd.gvpo.grouping=whole: a micro-batch holds {int(counts[row])} of the {int(self.size[row])} "
            f"responses of group {int(self.group[row])}, and their weights need them all. Something rearranged the "
            "rows; write algorithm.gsd.gvpo.grouping=prepass, which does not mind."
        )


@dataclass(frozen=True)
class Responses:
    """The S responses of a mini-batch over all workers, (S,) float64 each; ``group`` int64."""

    log_ratio: torch.Tensor
    log_reference: torch.Tensor
    tokens: torch.Tensor
    advantage: torch.Tensor
    group: torch.Tensor


class MiniBatchFigures:
    """Gathers figures of one mini-batch from rows wherever they are.

    Args:
        part: all rows this worker has of the mini-batch.
        dp_group: the data-parallel workers among which the mini-batch is spread; None for one worker.
        device: where the workers' collectives run.
    """

    def __init__(self, part: GvpoRows, dp_group: Any, device: torch.device | str | int) -> None:
        self._dp_group, self._device = dp_group, device
        ends = torch.stack([part.response.amax(), part.group.amax()]) + 1
        n_responses, n_groups = self._reduced(ends, torch.distributed.ReduceOp.MAX).tolist()
        # By response: s, l', tokens, A, group and how many rows it has; summed over rows and workers.
        self._by_response = torch.zeros(n_responses, 6, dtype=torch.float64, device=device)
        self._micro_batches = torch.zeros(n_groups, dtype=torch.int64, device=device)  # that hold rows of the group

    def add(self, part: GvpoRows, log_ratio: torch.Tensor, log_reference: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add rows, (R,) each; a response of several rows has the sum of theirs."""
        found = part.response >= 0
        columns = (log_ratio, log_reference, tokens, part.advantage, part.group, torch.ones_like(log_ratio))
        values = torch.stack([column.to(self._device, torch.float64) for column in columns], dim=1)
        self._by_response.index_add_(0, part.response[found].to(self._device), values[found.to(self._device)])

    def count_micro_batch(self, part: GvpoRows) -> None:
        """Note the groups of which a micro-batch holds rows."""
        self._micro_batches[torch.unique(part.group[part.group >= 0]).to(self._device)] += 1

    def responses(self) -> Responses:
        """All that was added, by any worker. A collective: every worker calls it."""
        total = self._reduced(self._by_response, torch.distributed.ReduceOp.SUM)
        rows = total[:, 5].clamp(min=1)
        return Responses(total[:, 0], total[:, 1], total[:, 2], total[:, 3] / rows, (total[:, 4] / rows).round().long())

    def on_any_worker(self, here: bool) -> bool:
        """Whether it holds on any worker. A collective: every worker calls it."""
        return bool(self._reduced(torch.tensor(int(here)), torch.distributed.ReduceOp.MAX))

    def split_groups(self) -> int:
        """How many groups lie in more than one micro-batch. A collective: every worker calls it."""
        return int((self._reduced(self._micro_batches, torch.distributed.ReduceOp.SUM) > 1).sum())

    def _reduced(self, values: torch.Tensor, operation: Any) -> torch.Tensor:
        values = values.to(self._device, copy=True)
        if self._dp_group is not None:
            torch.distributed.all_reduce(values, op=operation, group=self._dp_group)
        return values
