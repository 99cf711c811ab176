"""A run inside a job of a Ray cluster: joined, not started; and one run at a time.

TransferQueue, through which verl's trainer, rollout and workers speak, is one a cluster: whoever comes second attaches
to the queue of the first, takes its batches, and loses it when the first ends. So a run waits here for its turn. The
turn is a placement group of more than half of a resource that Ray gives its head node: Ray queues those who ask, and
gives it back when a driver ends, however it ends.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, open_dict

#: How a line begins that is for whoever waits: the launcher shows it.
WAITING = "verl-gsd waits: "
#: What Ray's job server hands the driver that it starts.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Two never fit; thousandths, which Ray Serve and others take, do beside it.
_TURN = {"node:__internal_head__": 0.6}
_QUEUE = "TransferQueueController"
#: Seconds for a cluster's nodes to arrive; then verl says what is missing.
_ARRIVAL = 600.0


def is_job() -> bool:
    """Whether this process is the driver of a submitted job, so that there is a cluster to join."""
    return _JOB in os.environ


def join(config: DictConfig) -> None:
    """Make ``ray.init`` join the job's cluster, whatever the config says of one of the run's own."""
    init = config.ray_kwargs.ray_init
    with open_dict(init):
        init.address = "auto"  # the job server sets RAY_ADDRESS
        for size in ("num_cpus", "num_gpus"):  # the cluster has its own, and Ray refuses others
            init[size] = None


@dataclass
class InTurn:
    """verl's task runner class, an instance of which is made when the cluster is this run's."""

    runner: Any
    config: DictConfig
    _turn: Any = field(default=None, init=False)

    def options(self, **options: Any) -> InTurn:
        return InTurn(self.runner.options(**options), self.config)

    def remote(self) -> Any:
        self._turn = _take_turn()
        _await_accelerators(accelerators(self.config))
        return self.runner.remote()


def accelerators(config: DictConfig) -> int:
    """How many a run needs: to train, and for a reward model that has its own."""
    trainer, model = config.trainer, config.reward.reward_model
    apart = model.nnodes * model.n_gpus_per_node if model.enable and model.enable_resource_pool else 0
    return trainer.nnodes * trainer.n_gpus_per_node + apart


def _take_turn() -> Any:
    """The placement group that is this run's turn, once it has it."""
    from ray.util import list_named_actors, placement_group

    turn = placement_group([_TURN], name="verl_gsd_turn")
    if not turn.wait(5):
        _say("another run trains on this cluster")
        while not turn.wait(60):
            pass
    # The queue of a run that was killed goes a moment after it; a run of verl's own takes no turn.
    looks = 0
    while any(actor["name"] == _QUEUE for actor in list_named_actors(all_namespaces=True)):
        if looks == 10:
            _say(f"a run that is not ours has verl's queue ({_QUEUE}) on this cluster")
        looks += 1
        time.sleep(1)
    return turn


def _await_accelerators(count: int) -> None:
    import ray
    from verl.utils.device import get_resource_name

    deadline = time.monotonic() + _ARRIVAL
    while (free := ray.available_resources().get(get_resource_name(), 0)) < count and time.monotonic() < deadline:
        _say(f"{free:g} of {count} accelerators are free")
        time.sleep(5)


def _say(what: str) -> None:
    print(f"{WAITING}{what}", flush=True)
