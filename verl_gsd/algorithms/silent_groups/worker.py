"""The worker extension: leaves silent groups out of the denominator of each mini-batch's policy loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils.device import get_device_id

from verl_gsd.algorithms.silent_groups.denominator import scale, unit_counts
from verl_gsd.algorithms.silent_groups.extension import IN_SILENT_GROUP, RESPONSE_WEIGHT
from verl_gsd.denominators import UNITS, divided_by
from verl_gsd.extension import WorkerExtension


class SilentGroupsWorker(WorkerExtension):
    """Multiplies the advantages of each mini-batch by D / (D - D_s) (``denominator.py``).

    Raises:
        ValueError: the loss is divided by no count. The checks before a run report this, too.
    """

    def __init__(self, worker: Any, config: Any) -> None:
        super().__init__(worker, config)
        unit = divided_by(config.policy_loss.get("loss_mode", "vanilla"), config.loss_agg_mode)
        if unit is None:
            raise ValueError(
                f"actor_rollout_ref.actor.loss_agg_mode={config.loss_agg_mode} divides by no count. Set another mode, "
                "or silent_groups=counted."
            )
        self._unit = unit
        self._metrics: Mapping[str, float] = {}

    def before_mini_batch(self, data: TensorDict) -> None:
        tokens = torch.stack([mask.sum() for mask in data["loss_mask"].unbind()])
        silent, weight = (data[name].to(tokens.device) for name in (IN_SILENT_GROUP, RESPONSE_WEIGHT))
        counts = unit_counts(silent, tokens, weight).to(get_device_id())
        dp_group = self.worker.engine.get_data_parallel_group()
        if dp_group is not None:
            torch.distributed.all_reduce(counts, group=dp_group)
        factor = scale(counts, self._unit)
        data["advantages"] = data["advantages"] * factor
        shares = (counts[1] / counts[0].clamp(min=1)).tolist()
        self._metrics = {
            **{f"silent_groups/share_of_{unit}": share for unit, share in zip(UNITS, shares, strict=True)},
            "silent_groups/scale": factor,
        }

    def after_mini_batch(self, data: TensorDict) -> Mapping[str, float]:
        return self._metrics
