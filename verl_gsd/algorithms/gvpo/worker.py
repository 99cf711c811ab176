"""GVPO's worker extension: computes the weights of groups that verl spreads over workers and micro-batches.

There are three ways to compute the weights, all exact. ``placement.py`` chooses between the last two for each step.

- In the first mini-batch of a step, theta still equals pi_old, and the batch already has its log-probabilities.
- ``grouping=prepass``: a forward pass over the mini-batch without gradients, just before its update.
- ``grouping=whole``: each micro-batch holds whole groups, and the loss computes the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from verl_gsd.algorithms.gvpo import loss, maths
from verl_gsd.algorithms.gvpo.rows import WEIGHT, GvpoRows, MiniBatchResponses, MiniBatchStats
from verl_gsd.extension import WorkerExtension


class GvpoWorker(WorkerExtension):
    """Computes GVPO's weights for each mini-batch, and its metrics.

    Attributes:
        stats: statistics of the current mini-batch. The loss adds its rows to them.
    """

    stats: MiniBatchStats

    def __init__(self, worker: Any, config: Any) -> None:
        super().__init__(worker, config)
        self._settings: loss.GVPOLossConfig = config.policy_loss
        self._theta_is_old = False
        self._responses: MiniBatchResponses | None = None  # of the current mini-batch

    def before_update(self, data: TensorDict) -> None:
        self._theta_is_old = tu.get(data, "gvpo_theta_is_old")
        # verl would cut mini-batches of this many rows. Ours are num_mini_batch slices of any number of rows.
        tu.pop(data, "mini_batch_size", default=None)

    def before_mini_batch(self, data: TensorDict) -> None:
        own_rows = GvpoRows.of(data)
        self.stats = MiniBatchStats(own_rows, self.worker.engine.get_data_parallel_group(), get_device_id())
        self._responses = None
        if tu.get(data, "gvpo_route") == "whole":
            problem = own_rows.split_group_problem(rows_per_group=tu.get(data, "force_group_size"))
            # If only one worker raised, the others would wait for it. So all of them raise.
            if self.stats.on_any_worker(bool(problem)):
                raise RuntimeError(
                    problem
                    or "algorithm.gsd.gvpo.grouping=whole: a group is split on another worker, whose error says more."
                )
        log_prob = None
        if self._theta_is_old:
            log_prob = data["old_log_probs"]
        elif tu.get(data, "gvpo_route") == "prepass":
            log_prob = self.worker.log_probs(data)
        if log_prob is not None:
            self.stats.add(own_rows, *self._against_reference(log_prob, data))
            self._responses = self.stats.responses()
            weights = self._weights(self._responses).to(own_rows.response.device, torch.float32)
            data[WEIGHT] = torch.where(own_rows.response >= 0, weights[own_rows.response.clamp(min=0)], 0)

    def after_mini_batch(self, data: TensorDict) -> dict[str, float]:
        metrics = self._metrics(self._responses or self.stats.responses())
        self._theta_is_old = False
        return metrics

    def _against_reference(self, log_prob: torch.Tensor, data: TensorDict) -> tuple[torch.Tensor, ...]:
        """For each row, from nested (R, j) log-probabilities: s, l' and the number of tokens that count, (R,) each."""
        mask = data["response_mask"]
        counts = mask.values().bool()
        reference = data[self._settings.reference_column].values().to(counts.device).float()
        difference = log_prob.values().to(counts.device).float() - reference
        row = torch.repeat_interleave(torch.arange(len(mask), device=counts.device), mask.offsets().diff())

        def sum_per_row(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(mask)).index_add(0, row, values.masked_fill(~counts, 0))

        return sum_per_row(difference), sum_per_row(reference), sum_per_row(counts.to(difference.dtype))

    def _weights(self, responses: MiniBatchResponses) -> torch.Tensor:
        """(S,) float64: the weight of every response of the mini-batch. All workers compute the same weights."""
        settings = self._settings
        term = maths.log_ratio_term(responses.log_ratio, responses.log_reference, var=settings.var, cov=settings.cov)
        return maths.gvpo_weights(responses.advantage, term, responses.group, beta=settings.beta)

    def _metrics(self, responses: MiniBatchResponses) -> dict[str, float]:
        metrics = maths.gvpo_metrics(
            responses.log_ratio,
            responses.advantage,
            responses.group,
            beta=self._settings.beta,
            tokens=responses.tokens,
        )
        if self._theta_is_old and self._settings.reference == "old":
            # s is always 0 in this case, so the other metrics would only dilute the mean over a step's updates.
            metrics = {name: metrics[name] for name in metrics.keys() & {"gvpo/groups_of_one", "gvpo/mse"}}
        return metrics | {"gvpo/split_groups": float(self.stats.split_groups())}
