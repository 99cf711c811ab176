"""Workers of ours on verl's real FSDP2 engine: ``python engine_workers.py FOLDER``, which holds ``cases<WORKERS>.pt``.

For each case they make verl's actor from the resolved config, take their rows, run one ``update_actor`` and keep the
whole gradient of every update, and the metrics, in ``found<WORKERS>.pt``.
"""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

OURS = ("gvpo/", "dagrpo/")


def gradients(module):
    whole = {}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        whole[name] = (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).to("cpu", copy=True)
    return whole


def run(case, rank, world):
    from verl.utils import tensordict_utils as tu

    from verl_gsd.trainer.worker import actor_worker

    config = OmegaConf.create(case["config"])
    worker = actor_worker(config, separate=False)(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
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
    return {"gradients": seen, "metrics": {name: metrics[name] for name in metrics if name.startswith(OURS)}}


def work(folder, world, rank, port):
    """One worker: all cases for ``world`` workers, one after the other."""
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.update(at)
    torch.set_num_threads(1)
    cases = torch.load(folder / f"cases{world}.pt", weights_only=False)
    found = {name: run(case, rank, world) for name, case in cases.items()}
    if rank == 0:
        torch.save(found, folder / f"found{world}.pt")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    import verl_gsd.trainer.worker  # noqa: F401, once for all that are forked

    forks = multiprocessing.get_context("fork")
    workers = []
    for world in (1, 2):
        port = free_port()
        workers += [forks.Process(target=work, args=(Path(sys.argv[1]), world, rank, port)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(abs(worker.exitcode) for worker in workers))
