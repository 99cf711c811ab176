"""One step's updates on verl's own actor worker, with the loss that a config names. A benchmark times them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from gpu_check.device import device, synchronize
from verl_gsd import extension
from verl_gsd.algorithms.gvpo.checks import is_gvpo
from verl_gsd.algorithms.gvpo.placement import Placement
from verl_gsd.extension import UnplacedRows
from verl_gsd.trainer.rows import DEMONSTRATION
from verl_gsd.trainer.worker import actor_worker

Row = dict[str, torch.Tensor]


def row(prompt: torch.Tensor, response: torch.Tensor, advantage: torch.Tensor, log_prob: float) -> Row:
    """verl's columns of one response, all of whose tokens have one advantage and one old log-probability."""
    mask, ids = torch.ones_like(response), torch.cat([prompt, response])
    return {
        "prompts": prompt,
        "responses": response,
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "response_mask": mask,
        "loss_mask": mask,
        "old_log_probs": log_prob * torch.ones(len(response)),
        "advantages": advantage * torch.ones(len(response)),
    }


def placed(config: Any, rows: Sequence[Row]) -> tuple[Placement, list[Row], list[str]]:
    """Rows of whole groups in the order in which GVPO's trainer has them, and their keys.

    Args:
        config: resolved, of ``algo=gvpo``.
        rows: in groups of ``rollout.n``.
    """
    placement, size = Placement(config), config.actor_rollout_ref.rollout.n
    keys = [f"uid{number // size}_{number % size}_0" for number in range(len(rows))]
    lengths, prompts = [len(of["input_ids"]) for of in rows], len(rows) // size
    places, _ = placement.place(UnplacedRows(keys, lengths, lengths, prompts, padding_tokens=min(lengths), workers=1))
    return placement, [rows[place] for place in places], [keys[place] for place in places]


def step(config: Any, rows: Sequence[Row]) -> TensorDict:
    """What the worker gets for one step: rows, the columns that the config's loss needs, and verl's instructions."""
    actor = config.actor_rollout_ref.actor
    mini_rows = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    info: dict[str, Any] = {"global_batch_size": mini_rows, "mini_batch_size": mini_rows, "epochs": 1, "seed": 1}
    info |= {"temperature": 1.0, "dataloader_kwargs": {"shuffle": False}, "calculate_entropy": False}
    info |= {"distillation_use_topk": False, "distillation_only": False}
    if is_gvpo(config):
        placement, rows, keys = placed(config, rows)
        columns = placement.columns(keys, torch.stack([of["advantages"][0] for of in rows]))
        rows = [of | {name: values[at] for name, values in columns.items()} for at, of in enumerate(rows)]
        info |= placement.flags(theta_is_old=True)
    elif OmegaConf.select(config, "algorithm.gsd.dagrpo.demonstrations") is not None:
        size = config.actor_rollout_ref.rollout.n  # the last row of each group
        rows = [of | {DEMONSTRATION: torch.tensor(at % size == size - 1)} for at, of in enumerate(rows)]
    data = tu.list_of_dict_to_tensordict(list(rows))
    for name in [name for name, column in rows[0].items() if column.ndim == 1]:
        # verl's queue hands rows of tokens over as jagged tensors; that function stacks rows of one length.
        data[name] = torch.nested.as_nested_tensor([of[name] for of in rows], layout=torch.jagged)
    tu.assign_non_tensor(data, **info)
    return data


class Updater:
    """verl's actor worker with the config's model, optimiser and loss."""

    def __init__(self, config: Any) -> None:
        ours = actor_worker(extension.active(OmegaConf.select(config, "algorithm.gsd")), separate=False)
        worker = ours or ActorRolloutRefWorker
        self._worker = worker(config=config.actor_rollout_ref, role="actor")
        self._worker.init_model()

    def update(self, data: TensorDict) -> float:
        """Seconds of one step's updates; ``data`` stays as it is."""
        copy, where = data.copy(), device()
        synchronize(where)
        start = time.perf_counter()
        self._worker.update_actor(copy)
        synchronize(where)
        return time.perf_counter() - start
