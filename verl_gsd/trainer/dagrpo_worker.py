"""DaGRPO's actor: demonstrations known to the loss, and on request the cosine between two halves of the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from verl_gsd.trainer import losses

#: What the workers are told where a step's gradients are to be probed.
PROBE = "dagrpo_probe"


class DagrpoTrainingWorker(TrainingWorker):
    """verl's training worker, with a micro-batch's columns at hand for the loss, and the probe."""

    def set_loss_fn(self, loss_fn: partial) -> None:
        self._policy_loss_alone = _without_other_terms(loss_fn)
        super().set_loss_fn(partial(losses.with_rows, loss_fn))

    def train_batch(self, data: TensorDict) -> TensorDict:
        found = self._probe(data) if tu.get(data, PROBE, default=False) else {}
        output = super().train_batch(data)
        if output is not None and found:
            tu.assign_non_tensor(output, metrics=tu.get(output, "metrics") | found)
        return output

    def _probe(self, data: TensorDict) -> dict[str, float]:
        """Of the mini-batch's policy loss: the cosine between the gradients that its rows of positive and of negative
        advantage give, and both norms. Two more passes; FSDP engines, whose gradients are shards."""
        positive = self._gradient(data, torch.relu)
        negative = self._gradient(data, lambda advantages: -torch.relu(-advantages))
        products = torch.zeros(3, dtype=torch.float64, device=get_device_id())
        for of_positive, of_negative in zip(positive, negative, strict=True):  # in float64 one parameter at a time
            p, n = of_positive.flatten().double(), of_negative.flatten().double()
            products += torch.stack([p @ n, p @ p, n @ n]).to(products.device)
        torch.distributed.all_reduce(products, group=self.engine.get_data_parallel_group())
        product, of_positive, of_negative = products.tolist()
        norms = {"norm_positive": of_positive**0.5, "norm_negative": of_negative**0.5}
        if of_positive and of_negative:
            norms["cosine"] = product / (of_positive * of_negative) ** 0.5
        return {f"dagrpo/probe/{name}": value for name, value in norms.items()}

    def _gradient(self, data: TensorDict, half: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """This worker's shards of the policy loss's gradient, with ``half`` of the advantages."""
        rows = data.copy()
        advantages = data["advantages"]
        rows["advantages"] = torch.nested.nested_tensor_from_jagged(half(advantages.values()), advantages.offsets())
        config = self.engine_config
        tu.assign_non_tensor(
            rows,
            use_remove_padding=self.model_config.get("use_remove_padding", False),
            use_dynamic_bsz=config.use_dynamic_bsz,
            max_token_len_per_gpu=config.max_token_len_per_gpu,
            micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
            use_fused_kernels=config.use_fused_kernels,
        )
        self.engine.optimizer_zero_grad()
        self.engine.forward_backward_batch(rows, partial(losses.with_rows, self._policy_loss_alone), forward_only=False)
        shards = [parameter.grad for parameter in self.engine.module.parameters() if parameter.grad is not None]
        gradient = [getattr(shard, "_local_tensor", shard) for shard in shards]
        self.engine.optimizer_zero_grad()  # forgets them, and leaves the tensors to us
        return gradient


def _without_other_terms(loss_fn: partial) -> partial:
    """verl's loss function without its entropy and KL terms."""
    config = copy.copy(loss_fn.keywords["config"])
    for name, value in (("entropy_coeff", 0.0), ("use_kl_loss", False), ("global_batch_info", {})):
        object.__setattr__(config, name, value)  # verl's configs are frozen
    return partial(loss_fn.func, **loss_fn.keywords | {"config": config})


class DagrpoActorWorker(ActorRolloutRefWorker):
    """The worker of verl's ``sync`` and ``colocate_async`` trainers, with DaGRPO's actor."""

    actor_worker_cls = DagrpoTrainingWorker


class DagrpoDetachActorWorker(DetachActorWorker):
    """The worker of verl's ``separate_async`` trainer, with DaGRPO's actor."""

    actor_worker_cls = DagrpoTrainingWorker
