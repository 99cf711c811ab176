"""The trainer extension: marks the rows of silent groups for the workers, and what each row counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verl_gsd.algorithms.silent_groups.denominator import in_silent_group, response_weights
from verl_gsd.extension import Batch, Extension, Services
from verl_gsd.groups import Group
from verl_gsd.records import Fate
from verl_gsd.trainer.rows import is_padding, uid_of

#: Column (bool) that is true for rows of silent groups.
IN_SILENT_GROUP = "in_silent_group"
#: Column (float64) with what each row counts in the denominator.
RESPONSE_WEIGHT = "response_weight"


class SilentGroups(Extension):
    """Its part in the trainer's process. ``worker.SilentGroupsWorker`` is its part in the workers."""

    def __init__(self, settings: Any, services: Services | None = None) -> None:
        super().__init__(settings, services)
        self._requested: dict[str, int | None] = {}  # uid -> rollouts that a budget requested, for the step's groups

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        self._requested[group.uid] = group.rollouts_requested
        return group

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        belongs = torch.tensor([not is_padding(key) for key in batch.keys])
        rollouts = [None if is_padding(key) else self._requested[uid_of(key)] for key in batch.keys]
        return {
            IN_SILENT_GROUP: in_silent_group(advantages, [uid_of(key) for key in batch.keys], belongs),
            RESPONSE_WEIGHT: response_weights(rollouts),
        }

    def end_step(self, left: Sequence[Group]) -> Mapping[str, float]:
        for group in left:
            self._requested.pop(group.uid, None)
        return {}
