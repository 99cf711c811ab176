"""What an algorithm adds to a trainer that sees whole groups: a part, told of every group at each turn of its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from verl_gsd.groups import Group, Member
from verl_gsd.prompts import PromptKey

#: A row's tag in verl's queue, by the row's key.
Tags = Mapping[str, Mapping[str, Any]]


class Part:
    """Every method may be left as it is. All calls come from the trainer's own thread, in the order they stand here."""

    def plan(self, uids: Sequence[str], keys: Sequence[PromptKey], batch: TensorDict) -> None:
        """``batch`` is about to be generated, a row a prompt; its columns may be changed."""

    def take_up(self, uids: Sequence[str], keys: Sequence[PromptKey], prompts: TensorDict) -> None:
        """``prompts`` were submitted before a restart, with the columns they had then."""

    def complete(
        self, uids: Sequence[str], rows: Tags, key_of: Callable[[str], PromptKey]
    ) -> dict[str, dict[str, Any]]:
        """The sessions of these groups have ended, and nobody has read them: further responses go into the queue.

        Returns:
            key -> tag of the rows that were put.
        """
        return {}

    def amend(self, groups: Sequence[Group], rows: Tags) -> dict[str, dict[str, Any] | None]:
        """These groups are whole, by their uids; what replaces some of their rows goes into the queue here.

        Returns:
            key -> tag of rows that were put, key -> None of rows that were removed.
        """
        return {}

    def is_ready(self, group: Group) -> bool:
        """Whether ``group`` may be sampled or evicted; asked at every look until it is."""
        return True

    def leave(self, group: Group) -> Group:
        """``group`` left the buffer; returns what the run is to see of it."""
        return group

    def known(self, rows: Sequence[Member | None]) -> dict[str, torch.Tensor]:
        """Columns (N,) for the stages of the chain, of a batch whose rows are these (None: of no group)."""
        return {}

    def columns(self, batch: Any, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        """``batch``, a ``KVBatchMeta``, has its advantages (N,); returns further columns (N,) for its update."""
        return {}

    def instructions(self, step: int) -> dict[str, Any]:
        """What the workers are told beside the batch of ``step``."""
        return {}

    def remember(
        self, keys: Sequence[str], tags: Sequence[Mapping[str, Any]], key_of: Mapping[str, PromptKey], step: int
    ) -> dict[str, float]:
        """The end of a step: ``keys``, padding included, were trained on and are in the queue yet; returns metrics."""
        return {}

    def record(self, group: Group) -> dict[str, float | None]:
        """Further columns of the record of ``group``, which left in the step that ends; asked once, before metrics."""
        return {}

    def timing(self) -> dict[str, float]:
        """Seconds of the step at hand, by what they went to; read once a step."""
        return {}

    def close(self) -> None:
        """Training ends."""
