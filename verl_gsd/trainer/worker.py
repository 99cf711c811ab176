"""verl's workers, with extensions that act before and after each mini-batch.

What a loss needs of whole mini-batches cannot be known in the loss: verl spreads a mini-batch over workers and
micro-batches. A ``WorkerExtension`` sees all rows that its worker has of a mini-batch, can talk to the other workers,
and can have a pass without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import response_from_nested

from verl_gsd.extension import Declaration, WorkerExtension, call_hook, load, merged
from verl_gsd.trainer.loss_context import with_context


class ExtendedTrainingWorker(TrainingWorker):
    """verl's training worker with extensions; ``actor_worker`` names them.

    Attributes:
        declared: (name, ``module:Class``) of each extension, in their order.
        extensions: by name.
        verl_loss: verl's loss function, with its ``config``.
    """

    declared: ClassVar[tuple[tuple[str, str], ...]]
    extensions: dict[str, WorkerExtension]
    verl_loss: partial

    def set_loss_fn(self, loss_fn: partial) -> None:
        config = loss_fn.keywords["config"]  # of verl's partial
        self.verl_loss = loss_fn
        self.extensions = {name: load(place)(self, config) for name, place in self.declared}
        super().set_loss_fn(self.with_context(loss_fn))

    def with_context(self, loss_fn: partial) -> partial:
        """``loss_fn`` with the micro-batch's columns at hand."""
        return partial(with_context, loss_fn, self.extensions)

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        self._run("before_update", data)
        return super().train_mini_batch(data=data)

    def train_batch(self, data: TensorDict) -> TensorDict:
        self._run("before_mini_batch", data)
        output = super().train_batch(data)
        found = merged(self._run("after_mini_batch", data))
        if output is not None and found:
            tu.assign_non_tensor(output, metrics=tu.get(output, "metrics") | found)
        return output

    def log_probs(self, data: TensorDict) -> torch.Tensor | None:
        """A pass without gradients: log-probabilities of the responses' tokens under theta, nested (R, j).

        None on a pipeline stage that has none, and computes no loss either.
        """
        rows = data.copy()
        self.set_engine_options(
            rows,
            calculate_entropy=False,
            compute_loss=False,
            max_token_len_per_gpu=self.engine_config.infer_max_token_len_per_gpu,
        )
        with self.engine.eval_mode(disable_auto_offload=True):
            output = self.engine.infer_batch(rows, loss_function=None).get("model_output", {})
        return response_from_nested(output["log_probs"], data["response_mask"]) if "log_probs" in output else None

    def set_engine_options(self, rows: TensorDict, **others: Any) -> None:
        """Tell the engine how to compute ``rows``: as in an update, and ``others``.

        The size of fixed micro-batches is that of an update for passes without gradients too: the one for inference
        need not divide a mini-batch.
        """
        config = self.engine_config
        options = {
            "use_remove_padding": self.model_config.get("use_remove_padding", False),
            "use_fused_kernels": config.use_fused_kernels,
            "use_dynamic_bsz": config.use_dynamic_bsz,
            "max_token_len_per_gpu": config.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": config.micro_batch_size_per_gpu,
        }
        tu.assign_non_tensor(rows, **options | others)

    def _run(self, hook: str, data: TensorDict) -> list[tuple[str, Any]]:
        return [(name, call_hook(name, extension, hook, data)) for name, extension in self.extensions.items()]


def actor_worker(declarations: Sequence[Declaration], *, separate: bool) -> type | None:
    """verl's worker with the extensions that these declarations name for it, and with the rows' columns at hand for a
    loss. None where no declaration names a worker or a loss: verl's own worker does.

    Args:
        separate: for verl's ``separate_async`` trainer.
    """
    declared = tuple((of.name, of.worker) for of in declarations if of.worker is not None)
    if not declared and all(of.loss is None for of in declarations):
        return None
    training = type("GSDTrainingWorker", (ExtendedTrainingWorker,), {"declared": declared})
    verls = DetachActorWorker if separate else ActorRolloutRefWorker
    return type(f"GSD{verls.__name__}", (verls,), {"actor_worker_cls": training})
