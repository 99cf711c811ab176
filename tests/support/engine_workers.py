"""Workers of ours on verl's real FSDP2 engine.

For each case they make verl's actor from the resolved config, take their rows, run one ``update_actor`` and keep the
whole gradient of every update, and the metrics. A case with ``in_laboratory`` has the laboratory's engine instead.
``scripts/gpu_check.sh`` calls ``run`` on a GPU.
"""

import os
import traceback
from pathlib import Path
from unittest import mock

import forks
import torch
from omegaconf import OmegaConf
from ports import free_ports

OURS = ("gvpo/", "dagrpo/", "silent_groups/")


def gradients(module):
    whole = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:  # of the base model under LoRA
            continue
        gradient = parameter.grad
        whole[name] = (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).to("cpu", copy=True)
    return whole


def run(case, rank, world):
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from verl_gsd import extension
    from verl_gsd.lab.training.engine import DEVICE
    from verl_gsd.trainer.worker import actor_worker

    config = OmegaConf.create(case["config"])
    ours = actor_worker(extension.active(OmegaConf.select(config, "algorithm.gsd")), separate=False)
    worker = (ours or ActorRolloutRefWorker)(config=config.actor_rollout_ref, role="actor")
    with mock.patch.dict(os.environ, {"VERL_ENGINE_DEVICE": DEVICE} if case.get("in_laboratory") else {}):
        worker.init_model()
    if case.get("is_inference"):
        return {"log_probs": log_probs(worker, case)}
    engine, seen = worker.actor.engine, []
    step = engine.optimizer_step

    def optimizer_step():
        seen.append(gradients(engine.module))
        return step()

    engine.optimizer_step = optimizer_step
    share = len(case["rows"]) // world
    rows = tu.list_of_dict_to_tensordict(case["rows"][rank * share : (rank + 1) * share])
    tu.assign_non_tensor(rows, **case["extra_info"])
    try:
        metrics = tu.get(worker.update_actor(rows), "metrics")
    except Exception as error:
        if not case.get("fails"):
            raise
        return {"error": f"{type(error).__name__}: {error}"}
    if "checkpoint" in case:
        worker.save_checkpoint(case["checkpoint"])
    return {
        "gradients": seen,
        "metrics": {name: metrics[name] for name in metrics if name.startswith(OURS)},
        "verls_metrics": {name: metrics[name] for name in metrics if not name.startswith((*OURS, "perf/", "mfu"))},
    }


def log_probs(worker, case):
    """(tokens of all responses,) by ``compute_log_prob``."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import response_from_nested

    rows = tu.list_of_dict_to_tensordict(case["rows"])
    tu.assign_non_tensor(rows, **case["extra_info"])
    return response_from_nested(worker.compute_log_prob(rows)["log_probs"], rows["response_mask"]).values().float()


def serve(world, rank, port, orders, answers):
    """One of ``world`` workers: run the cases of each folder that ``orders`` names, and say that they are done."""
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.update(at)
    torch.set_num_threads(1)
    while True:
        folder = Path(orders.get())
        try:
            cases = torch.load(folder / f"cases{world}.pt", weights_only=False)
            found = {name: run(case, rank, world) for name, case in cases.items()}
            if rank == 0:
                torch.save(found, folder / f"found{world}.pt")
            answers.put(None)
        except Exception:
            answers.put(traceback.format_exc())


class EngineWorkers:
    """Workers for all files of tests: one alone and two together. They start with the first cases."""

    def __init__(self, folder):
        self._folder, self._processes, self._orders, self._answers = folder, [], {}, {}

    def _start(self):
        for world in (1, 2):
            (port,) = free_ports(1)
            self._orders[world] = [forks.CONTEXT.Queue() for _ in range(world)]
            self._answers[world] = forks.CONTEXT.Queue()
            for rank, orders in enumerate(self._orders[world]):
                place = self._folder / f"{world}_{rank}"
                place.mkdir(exist_ok=True)
                process = forks.start(place, serve, world, rank, port, orders, self._answers[world])
                self._processes.append(process)

    def begin(self, folder, cases):
        """Begin to run ``cases``, {number of workers: {name: case}}.

        Returns:
            a function that waits until they are done. It returns {name: what the case found}.
        """
        if not self._processes:
            self._start()
        for world, of_world in cases.items():
            torch.save(of_world, folder / f"cases{world}.pt")
            for orders in self._orders[world]:
                orders.put(str(folder))
        return lambda: self._found(folder, list(cases))

    def _found(self, folder, worlds):
        found = {}
        for world in worlds:
            for _ in range(world):
                error = forks.answer(self._answers[world], *self._processes)
                if error is not None:
                    self.close()  # the other worker waits for this one
                    raise AssertionError(error)
            found |= torch.load(folder / f"found{world}.pt", weights_only=False)
        return found

    def close(self):
        for process in self._processes:
            forks.end(process)
        self._processes = []
