"""A training engine of verl's worker: one process, no sharding, and one pass over each prompt instead of each row.

verl's worker (``workers/engine_workers.py``) does everything around the engine exactly as on the stack: mini-batches,
epochs, the loss, the learning rate, the metrics, and our worker extensions. verl chooses this engine instead of FSDP
where ``VERL_ENGINE_DEVICE`` is ``DEVICE``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from verl.workers.config.optimizer import build_optimizer
from verl.workers.engine.base import BaseEngine, BaseEngineCtx, EngineRegistry
from verl.workers.engine.utils import postprocess_batch_func, prepare_micro_batches

from verl_gsd.lab.training.policy import read_prompts, score_responses

#: The device under which verl finds this engine.
DEVICE = "verl_gsd_lab"


def load_model(path: str) -> Any:
    """The model in the folder ``path``, in float32 and in the mode ``eval``."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    ).eval()


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=DEVICE)
class LabEngine(BaseEngine):
    """Trains a whole model in this process with the optimizer of the config.

    The model never leaves the mode ``eval``, because rollouts and updates alternate in it. verl's engines switch to
    ``train`` for updates. The difference is dropout, so that the checks of the laboratory reject models with dropout.

    Attributes:
        skipped_updates: the number of updates whose gradient was not finite, since the start of the run.
    """

    is_param_offload_enabled = False
    is_optimizer_offload_enabled = False

    def __init__(self, model_config: Any, engine_config: Any, optimizer_config: Any, checkpoint_config: Any) -> None:
        self.model_config, self.engine_config, self.optimizer_config = model_config, engine_config, optimizer_config
        self.mode: str | None = None
        self.skipped_updates = 0

    def initialize(self) -> None:
        self.module = load_model(self.model_config.local_path)
        self.optimizer = build_optimizer(self.module.parameters(), self.optimizer_config)
        self.lr_scheduler = self._schedule()

    def _schedule(self) -> Any:
        optim = self.optimizer_config
        warmup = optim.lr_warmup_steps
        if warmup <= 0:
            warmup = int(optim.lr_warmup_steps_ratio * optim.total_training_steps)
        if optim.lr_scheduler_type == "constant":
            return get_constant_schedule_with_warmup(optimizer=self.optimizer, num_warmup_steps=warmup)
        return get_cosine_schedule_with_warmup(
            optimizer=self.optimizer,
            num_warmup_steps=warmup,
            num_training_steps=optim.total_training_steps,
            min_lr_ratio=optim.min_lr_ratio,
            num_cycles=optim.num_cycles,
            zero_indexed_step=optim.zero_indexed_step,
        )

    def train_mode(self, **kwargs: Any) -> BaseEngineCtx:
        return BaseEngineCtx(self, "train", **kwargs)

    def eval_mode(self, **kwargs: Any) -> BaseEngineCtx:
        return BaseEngineCtx(self, "eval", **kwargs)

    def optimizer_zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def optimizer_step(self) -> float:
        """Clip the gradient and update the weights. As in verl, a gradient that is not finite is dropped."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), max_norm=self.optimizer_config.clip_grad)
        if norm.isfinite():
            self.optimizer.step()
        else:
            self.optimizer.zero_grad()
            self.skipped_updates += 1
        return norm.item()

    def lr_scheduler_step(self) -> float:
        self.lr_scheduler.step()
        return self.lr_scheduler.get_last_lr()[0]

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable | None, forward_only: bool = False
    ) -> dict[str, Any]:
        tu.assign_non_tensor(data, sp_size=1, dp_size=1, batch_num_tokens=data["loss_mask"].sum().item())
        if data["use_dynamic_bsz"] and int(data["input_ids"].offsets()[-1]) <= data["max_token_len_per_gpu"]:
            micro_batches, indices = [data], [list(range(len(data)))]  # what verl would do, without copies
        else:
            micro_batches, indices = prepare_micro_batches(data, dp_group=None, same_micro_num_in_dp=False)
        outputs = []
        for micro_batch in micro_batches:
            with torch.no_grad() if forward_only else nullcontext():
                model_output = self._model_output(micro_batch)
                output: dict[str, Any] = {"loss": 1.0, "metrics": {}}
                if loss_function is not None:
                    loss, metrics = loss_function(model_output=model_output, data=micro_batch, dp_group=None)
                    if not forward_only:
                        loss.backward()
                    output = {"loss": loss.detach().item(), "metrics": metrics}
                if forward_only:
                    output["model_output"] = model_output
            outputs.append(output)
        return postprocess_batch_func(output_lst=outputs, indices=indices, data=data)

    def _model_output(self, rows: TensorDict) -> dict[str, torch.Tensor]:
        """Log-probabilities, and entropies if requested, as verl's engines return them.

        They are nested over prompt and response. Position t has the value of token t + 1. Only the values of response
        tokens are computed; the others are 0.
        """
        with_entropy = tu.get_non_tensor_data(data=rows, key="calculate_entropy", default=False)
        prompts = [tuple(prompt.tolist()) for prompt in rows["prompts"].unbind()]
        number = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        responses = torch.nested.to_padded_tensor(rows["responses"], 0)
        scores = score_responses(
            self.module,
            read_prompts(self.module, list(number)),
            torch.tensor([number[prompt] for prompt in prompts]),
            responses,
            temperature=float(rows["temperature"]),
            with_entropy=with_entropy,
        )
        lengths, offsets = rows["responses"].offsets().diff(), rows["input_ids"].offsets()
        steps = torch.arange(responses.shape[1])
        is_response = steps < lengths.unsqueeze(1)
        places = (offsets[1:] - lengths - 1).unsqueeze(1) + steps

        def nested(values: torch.Tensor) -> torch.Tensor:
            flat = values.new_zeros(int(offsets[-1])).index_put((places[is_response],), values[is_response])
            return torch.nested.nested_tensor_from_jagged(flat, offsets)

        output = {"log_probs": nested(scores.log_probs)}
        if scores.entropy is not None:
            output["entropy"] = nested(scores.entropy)
        return output

    def get_data_parallel_size(self) -> int:
        return 1

    def get_data_parallel_rank(self) -> int:
        return 0

    def get_data_parallel_group(self) -> Any:
        return torch.distributed.group.WORLD

    def is_mp_src_rank_with_outputs(self) -> bool:
        return True
