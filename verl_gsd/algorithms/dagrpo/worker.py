"""DaGRPO in a training worker: on request the cosine between two halves of the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id

from verl_gsd.algorithms.dagrpo import loss as _registers_the_loss  # noqa: F401
from verl_gsd.algorithms.dagrpo.mask import PROBE
from verl_gsd.extension import WorkerExtension


class DagrpoWorker(WorkerExtension):
    """Probes the gradients of a mini-batch where the trainer asks for it."""

    def __init__(self, worker: Any, config: Any) -> None:
        super().__init__(worker, config)
        self._alone = _without_other_terms(config)
        self._found: Mapping[str, float] = {}

    def before_mini_batch(self, data: TensorDict) -> None:
        self._found = self._probe(data) if tu.get(data, PROBE, default=False) else {}

    def after_mini_batch(self, data: TensorDict) -> Mapping[str, float]:
        return self._found

    def _probe(self, data: TensorDict) -> dict[str, float]:
        """Of the mini-batch's policy loss: the cosine between the gradients that its rows of positive and of negative
        advantage give, and both norms. Two more passes; FSDP engines, whose gradients are shards."""
        positive = self._gradient(data, torch.relu)
        negative = self._gradient(data, lambda advantages: -torch.relu(-advantages))
        products = torch.zeros(3, dtype=torch.float64, device=get_device_id())
        for of_positive, of_negative in zip(positive, negative, strict=True):  # in float64 one parameter at a time
            p, n = of_positive.flatten().double(), of_negative.flatten().double()
            products += torch.stack([p @ n, p @ p, n @ n]).to(products.device)
        torch.distributed.all_reduce(products, group=self.worker.engine.get_data_parallel_group())
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
        self.worker.set_engine_options(rows)
        self.worker.engine.optimizer_zero_grad()
        policy_loss_alone = self.worker.with_context(partial(self.worker.verl_loss, config=self._alone))
        self.worker.engine.forward_backward_batch(rows, policy_loss_alone, forward_only=False)
        shards = [parameter.grad for parameter in self.worker.engine.module.parameters() if parameter.grad is not None]
        gradient = [getattr(shard, "_local_tensor", shard) for shard in shards]
        self.worker.engine.optimizer_zero_grad()  # forgets them, and leaves the tensors to us
        return gradient


def _without_other_terms(config: Any) -> Any:
    """verl's ``ActorConfig`` without the loss's entropy and KL terms."""
    config = copy.copy(config)
    for name, value in (("entropy_coeff", 0.0), ("use_kl_loss", False), ("global_batch_info", {})):
        object.__setattr__(config, name, value)  # verl's configs are frozen
    return config
