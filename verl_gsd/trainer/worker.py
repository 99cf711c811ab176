"""Workers of ours under verl's: what a policy loss needs before and after each mini-batch.

GVPO's weights are made of whole groups, which verl spreads over workers and micro-batches. Three ways to have them, all
exact, and the first that is possible is taken:

- theta is still pi_old, on the first mini-batch of a step: the log-probabilities are in the batch already;
- ``grouping=prepass``: a pass over the mini-batch without gradients, just before its update;
- ``grouping=whole``: each micro-batch holds whole groups, and the loss makes the weights by itself.
"""

from __future__ import annotations

from functools import partial

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import response_from_nested

from verl_gsd.algorithms import gvpo
from verl_gsd.audit import is_gvpo
from verl_gsd.trainer import losses
from verl_gsd.trainer.dagrpo_worker import DagrpoActorWorker, DagrpoDetachActorWorker
from verl_gsd.trainer.gvpo_rows import WEIGHT, Figures, Part, Responses


class GVPOTrainingWorker(TrainingWorker):
    """verl's training worker, with GVPO's weights made for each mini-batch and its figures among the metrics."""

    def set_loss_fn(self, loss_fn: partial) -> None:
        self._settings: losses.GVPOLossConfig = loss_fn.keywords["config"].policy_loss  # of verl's partial
        super().set_loss_fn(partial(losses.with_rows, loss_fn))

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        self._theta_is_old = tu.get(data, "gvpo_theta_is_old")
        tu.pop(data, "mini_batch_size", default=None)  # in rows; ours are num_mini_batch slices, however many rows
        return super().train_mini_batch(data=data)

    def train_batch(self, data: TensorDict) -> TensorDict:
        part = Part.of(data)
        figures = Figures(part, self.engine.get_data_parallel_group(), get_device_id())
        if tu.get(data, "gvpo_route") == "whole":
            split = part.split(run=tu.get(data, "force_group_size"))
            # All workers or none: one that raised by itself would leave the others waiting for it.
            if figures.anywhere(bool(split)):
                raise RuntimeError(split or "algorithm.gsd.gvpo.grouping=whole: another worker has part of a group")
        log_prob, seen = None, None
        if self._theta_is_old:
            log_prob = data["old_log_probs"]
        elif tu.get(data, "gvpo_route") == "prepass":
            log_prob = self._log_prob_now(data)
        if log_prob is not None:
            figures.add(part, *self._against_reference(log_prob, data))
            seen = figures.responses()
            weights = self._weights(seen).to(part.response.device, torch.float32)
            data[WEIGHT] = torch.where(part.response >= 0, weights[part.response.clamp(min=0)], 0)
        with losses.collecting(figures):
            output = super().train_batch(data)
        found = self._metrics(figures, seen or figures.responses())
        self._theta_is_old = False
        if output is not None:
            tu.assign_non_tensor(output, metrics=tu.get(output, "metrics") | found)
        return output

    def _log_prob_now(self, data: TensorDict) -> torch.Tensor | None:
        """Log-probabilities of the responses' tokens under theta, without gradients: nested (R, j).

        None on a pipeline stage that has none, and computes no loss either.
        """
        rows = data.copy()
        config = self.engine_config
        tu.assign_non_tensor(
            rows,
            calculate_entropy=False,
            compute_loss=False,
            use_remove_padding=self.model_config.get("use_remove_padding", False),
            use_fused_kernels=config.use_fused_kernels,
            use_dynamic_bsz=config.use_dynamic_bsz,
            max_token_len_per_gpu=config.infer_max_token_len_per_gpu,
            # The one for inference need not divide a mini-batch.
            micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
        )
        with self.engine.eval_mode(disable_auto_offload=True):
            output = self.engine.infer_batch(rows, loss_function=None).get("model_output", {})
        return response_from_nested(output["log_probs"], data["response_mask"]) if "log_probs" in output else None

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
        tilt = gvpo.tilt_of(seen.log_ratio, seen.log_reference, var=settings.var, cov=settings.cov)
        return gvpo.gvpo_weights(seen.advantage, tilt, seen.group, beta=settings.beta)

    def _metrics(self, figures: Figures, seen: Responses) -> dict[str, float]:
        found = gvpo.describe(seen.log_ratio, seen.advantage, seen.group, beta=self._settings.beta, tokens=seen.tokens)
        if self._theta_is_old and self._settings.reference == "old":
            # s is 0 there whatever the policy does, and would only dilute the mean over a step's updates.
            found = {name: found[name] for name in found.keys() & {"gvpo/groups_of_one", "gvpo/mse"}}
        return found | {"gvpo/split_groups": float(figures.split_groups())}


class GVPOActorWorker(ActorRolloutRefWorker):
    """The worker of verl's ``sync`` and ``colocate_async`` trainers, with GVPO's actor."""

    actor_worker_cls = GVPOTrainingWorker


class GVPODetachActorWorker(DetachActorWorker):
    """The worker of verl's ``separate_async`` trainer, with GVPO's actor."""

    actor_worker_cls = GVPOTrainingWorker


def actor_worker(config: DictConfig, *, separate: bool) -> type | None:
    """The worker that the policy loss of ``config`` needs; None: verl's own.

    Args:
        separate: for verl's ``separate_async`` trainer.
    """
    if is_gvpo(config):
        return GVPODetachActorWorker if separate else GVPOActorWorker
    if OmegaConf.select(config, "algorithm.gsd.dagrpo") is not None:
        return DagrpoDetachActorWorker if separate else DagrpoActorWorker
    return None
