"""The trainer extension: marks the rows of silent groups for the workers."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from verl_gsd.algorithms.silent_groups.denominator import in_silent_group
from verl_gsd.extension import Batch, Extension
from verl_gsd.trainer.rows import is_padding, uid_of

#: Column (bool) that is true for rows of silent groups.
IN_SILENT_GROUP = "in_silent_group"


class SilentGroups(Extension):
    """Its part in the trainer's process. ``worker.SilentGroupsWorker`` is its part in the workers."""

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        belongs = torch.tensor([not is_padding(key) for key in batch.keys])
        return {IN_SILENT_GROUP: in_silent_group(advantages, [uid_of(key) for key in batch.keys], belongs)}
