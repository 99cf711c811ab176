"""verl's workers, with extensions that run before and after each mini-batch.

A loss cannot compute figures of a whole mini-batch, because verl spreads a mini-batch over workers and micro-batches. A
``WorkerExtension`` sees all rows of a mini-batch that its worker has, can communicate with the other workers, and can
run a forward pass without gradients.
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
    """verl's training worker with extensions. ``actor_worker`` sets ``declared``.

    Attributes:
        declared: (name, ``module:Class``) of each extension, in their order.
        extensions: the extensions by name.
        verl_loss: verl's loss function, with its ``config``.
    """

    declared: ClassVar[tuple[tuple[str, str], ...]]
    extensions: dict[str, WorkerExtension]
    verl_loss: partial

    def set_loss_fn(self, loss_fn: partial) -> None:
        config = loss_fn.keywords["config"]  # verl passes a partial
        self.verl_loss = loss_fn
        self.extensions = {name: load(path)(self, config) for name, path in self.declared}
        super().set_loss_fn(self.with_context(loss_fn))

    def with_context(self, loss_fn: partial) -> partial:
        """``loss_fn``, which can read the columns of its micro-batch through ``loss_context``."""
        return partial(with_context, loss_fn, self.extensions)

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        self._run("before_update", data)
        return super().train_mini_batch(data=data)

    def train_batch(self, data: TensorDict) -> TensorDict:
        self._run("before_mini_batch", data)
        output = super().train_batch(data)
        metrics = merged(self._run("after_mini_batch", data))
        if output is not None and metrics:
            tu.assign_non_tensor(output, metrics=tu.get(output, "metrics") | metrics)
        return output

    def log_probs(self, data: TensorDict) -> torch.Tensor | None:
        """Log-probabilities of the responses' tokens under theta, nested (R, j), from a pass without gradients.

        None on a pipeline stage that does not compute log-probabilities or the loss.
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

    def set_engine_options(self, rows: TensorDict, **overrides: Any) -> None:
        """Make the engine compute ``rows`` with the options of an update, except for ``overrides``.

        Passes without gradients also use the fixed micro-batch size of an update, because the size for inference need
        not divide a mini-batch.
        """
        config = self.engine_config
        options = {
            "use_remove_padding": self.model_config.get("use_remove_padding", False),
            "use_fused_kernels": config.use_fused_kernels,
            "use_dynamic_bsz": config.use_dynamic_bsz,
            "max_token_len_per_gpu": config.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": config.micro_batch_size_per_gpu,
        }
        tu.assign_non_tensor(rows, **options | overrides)

    def _run(self, hook: str, data: TensorDict) -> list[tuple[str, Any]]:
        return [(name, call_hook(name, extension, hook, data)) for name, extension in self.extensions.items()]


def actor_worker(declarations: Sequence[Declaration], *, separate: bool) -> type | None:
    """A subclass of verl's worker with the worker extensions of these declarations, whose losses can read all columns.

    None if no declaration has a worker extension or a loss. verl's own worker is then sufficient.

    Args:
        separate: whether the worker is for verl's ``separate_async`` trainer.
    """
    declared = tuple(
        (declaration.name, declaration.worker) for declaration in declarations if declaration.worker is not None
    )
    if not declared and all(declaration.loss is None for declaration in declarations):
        return None
    training_worker = type("GSDTrainingWorker", (ExtendedTrainingWorker,), {"declared": declared})
    verl_worker = DetachActorWorker if separate else ActorRolloutRefWorker
    return type(f"GSD{verl_worker.__name__}", (verl_worker,), {"actor_worker_cls": training_worker})
