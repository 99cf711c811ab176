"""DaGRPO's worker extension: measures the cosine between two parts of the gradient, if the trainer requests it."""

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
    """Probes the gradients of a mini-batch if the trainer requests it."""

    def __init__(self, worker: Any, config: Any) -> None:
        super().__init__(worker, config)
        self._policy_loss_config = _without_other_terms(config)
        self._metrics: Mapping[str, float] = {}

    def before_mini_batch(self, data: TensorDict) -> None:
        self._metrics = self._probe(data) if tu.get(data, PROBE, default=False) else {}

    def after_mini_batch(self, data: TensorDict) -> Mapping[str, float]:
        return self._metrics

    def _probe(self, data: TensorDict) -> dict[str, float]:
        """Compare the gradients of the policy loss on rows with positive and with negative advantages.

        Returns their cosine and both norms. The probe needs two more passes over the mini-batch, and an FSDP engine,
        whose gradients are shards.
        """
        positive = self._gradient(data, torch.relu)
        negative = self._gradient(data, lambda advantages: -torch.relu(-advantages))
        products = torch.zeros(3, dtype=torch.float64, device=get_device_id())
        # One parameter at a time, because float64 copies of all of them would need too much memory.
        for positive_shard, negative_shard in zip(positive, negative, strict=True):
            p, n = positive_shard.flatten().double(), negative_shard.flatten().double()
            products += torch.stack([p @ n, p @ p, n @ n]).to(products.device)
        torch.distributed.all_reduce(products, group=_shard_group(self.worker.engine))
        dot_product, positive_square, negative_square = products.tolist()
        metrics = {"norm_positive": positive_square**0.5, "norm_negative": negative_square**0.5}
        if positive_square and negative_square:
            metrics["cosine"] = dot_product / (positive_square * negative_square) ** 0.5
        return {f"dagrpo/probe/{name}": value for name, value in metrics.items()}

    def _gradient(self, data: TensorDict, half: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """This worker's shards of the gradient of the policy loss. ``half`` selects positive or negative advantages."""
        rows = data.copy()
        advantages = data["advantages"]
        rows["advantages"] = torch.nested.nested_tensor_from_jagged(half(advantages.values()), advantages.offsets())
        self.worker.set_engine_options(rows)
        self.worker.engine.optimizer_zero_grad()
        policy_loss = self.worker.with_context(partial(self.worker.verl_loss, config=self._policy_loss_config))
        self.worker.engine.forward_backward_batch(rows, policy_loss, forward_only=False)
        shards = [parameter.grad for parameter in self.worker.engine.module.parameters() if parameter.grad is not None]
        gradient = [getattr(shard, "_local_tensor", shard) for shard in shards]
        self.worker.engine.optimizer_zero_grad()  # drops its references; we keep the tensors
        return gradient


def _shard_group(engine: Any) -> Any:
    """The processes among which the engine divides each gradient.

    With ``fsdp_size`` below the number of workers, each such group has a copy of all gradients. With sequence
    parallelism, the data-parallel group has only a part of the shards.
    """
    mesh = getattr(engine, "device_mesh", None)
    return engine.get_data_parallel_group() if mesh is None else mesh.get_group("fsdp")


def _without_other_terms(config: Any) -> Any:
    """A copy of verl's ``ActorConfig`` without the entropy and KL terms of the loss."""
    config = copy.copy(config)
    for name, value in (("entropy_coeff", 0.0), ("use_kl_loss", False), ("global_batch_info", {})):
        object.__setattr__(config, name, value)  # verl's configs are frozen
    return config
