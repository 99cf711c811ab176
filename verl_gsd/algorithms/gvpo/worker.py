"""GVPO in a training worker: the weights of whole groups, which verl spreads over workers and micro-batches.

Three ways to have them, all exact; ``placement.py`` chooses one for each step:

- theta is still pi_old, on the first mini-batch of a step: the log-probabilities are in the batch already;
- ``grouping=prepass``: a pass over the mini-batch without gradients, just before its update;
- ``grouping=whole``: each micro-batch holds whole groups, and the loss makes the weights by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from verl_gsd.algorithms.gvpo import loss, maths
from verl_gsd.algorithms.gvpo.rows import WEIGHT, GvpoRows, MiniBatchFigures, Responses
from verl_gsd.extension import WorkerExtension


class GvpoWorker(WorkerExtension):
    """Makes GVPO's weights for each mini-batch, and reports its figures.

    Attributes:
        figures: of the mini-batch at hand, to which the loss adds what it sees.
    """

    figures: MiniBatchFigures

    def __init__(self, worker: Any, config: Any) -> None:
        super().__init__(worker, config)
        self._settings: loss.GVPOLossConfig = config.policy_loss
        self._theta_is_old = False
        self._seen: Responses | None = None

    def before_update(self, data: TensorDict) -> None:
        self._theta_is_old = tu.get(data, "gvpo_theta_is_old")
        tu.pop(data, "mini_batch_size", default=None)  # in rows; ours are num_mini_batch slices, however many rows

    def before_mini_batch(self, data: TensorDict) -> None:
        part = GvpoRows.of(data)
        self.figures = MiniBatchFigures(part, self.worker.engine.get_data_parallel_group(), get_device_id())
        self._seen = None
        if tu.get(data, "gvpo_route") == "whole":
            split = part.split(run=tu.get(data, "force_group_size"))
            # All workers or none: one that raised by itself would leave the others waiting for it.
            if self.figures.on_any_worker(bool(split)):
                raise RuntimeError(split or "algorithm.gsd.gvpo.grouping=whole: another worker has part of a group")
        log_prob = None
        if self._theta_is_old:
            log_prob = data["old_log_probs"]
        elif tu.get(data, "gvpo_route") == "prepass":
            log_prob = self.worker.log_probs(data)
        if log_prob is not None:
            self.figures.add(part, *self._against_reference(log_prob, data))
            self._seen = self.figures.responses()
            weights = self._weights(self._seen).to(part.response.device, torch.float32)
            data[WEIGHT] = torch.where(part.response >= 0, weights[part.response.clamp(min=0)], 0)

    def after_mini_batch(self, data: TensorDict) -> dict[str, float]:
        found = self._metrics(self._seen or self.figures.responses())
        self._theta_is_old = False
        return found

    def _against_reference(self, log_prob: torch.Tensor, data: TensorDict) -> tuple[torch.Tensor, ...]:
        """(R,) each: s, l' and tokens that count, of the rows' responses; from nested (R, j) log-probabilities."""
        mask = data["response_mask"]
        counts = mask.values().bool()
        reference = data[self._settings.reference_column].values().to(counts.device).float()
        difference = log_prob.values().to(counts.device).float() - reference
        row = torch.repeat_interleave(torch.arange(len(mask), device=counts.device), mask.offsets().diff())

        def of_row(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(mask)).index_add(0, row, values.masked_fill(~counts, 0))

        return of_row(difference), of_row(reference), of_row(counts.to(difference.dtype))

    def _weights(self, seen: Responses) -> torch.Tensor:
        """(S,) float64: the weight of every response of the mini-batch, the same on every worker."""
        settings = self._settings
        tilt = maths.tilt_of(seen.log_ratio, seen.log_reference, var=settings.var, cov=settings.cov)
        return maths.gvpo_weights(seen.advantage, tilt, seen.group, beta=settings.beta)

    def _metrics(self, seen: Responses) -> dict[str, float]:
        found = maths.describe(seen.log_ratio, seen.advantage, seen.group, beta=self._settings.beta, tokens=seen.tokens)
        if self._theta_is_old and self._settings.reference == "old":
            # s is 0 there whatever the policy does, and would only dilute the mean over a step's updates.
            found = {name: found[name] for name in found.keys() & {"gvpo/groups_of_one", "gvpo/mse"}}
        return found | {"gvpo/split_groups": float(self.figures.split_groups())}
