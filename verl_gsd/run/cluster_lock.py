"""A run on a Ray cluster that is already running: when a run joins one, and why one run at a time trains there.

verl keeps one TransferQueue per Ray cluster, through which trainer, rollout and workers exchange data. A second run
would attach to the first run's queue, consume its batches, and kill the queue at its own end. Each run therefore takes
the cluster's lock first. The lock is a placement group of more than half of a resource that Ray gives to the head node.
Ray queues the jobs that ask for it and takes it back when a job ends, however it ends.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.errors import OUR_MODES, ConfigError

#: How a line begins that tells the user what the run waits for. The launcher shows these lines.
WAITING = "verl-gsd waits: "
#: Ray's job server sets this environment variable for the driver that it starts.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Two of these never fit on the head node. Ray Serve and others take thousandths, which fit beside one.
_LOCK = {"node:__internal_head__": 0.6}
_QUEUE = "TransferQueueController"
#: Seconds to wait for the nodes of a cluster to arrive. After that verl reports what is missing.
_ARRIVAL = 600.0


def is_job() -> bool:
    """Whether this process is the driver of a submitted job, so that there is a cluster to join."""
    return _JOB in os.environ


def join(config: DictConfig) -> None:
    """Make ``ray.init`` join the job's cluster, whatever the config says about a cluster of the run's own."""
    init = config.ray_kwargs.ray_init
    with open_dict(init):
        init.address = "auto"  # the job server sets RAY_ADDRESS
        for size in ("num_cpus", "num_gpus"):  # the cluster has its own, and Ray rejects these keys
            init[size] = None


def joins(config: DictConfig) -> bool:
    """Whether ``ray.init`` will join a running cluster, by Ray's own rules.

    ``ray_init.address`` decides. If it is null or "auto", RAY_ADDRESS decides. If that is not set either, Ray looks for
    a cluster that ``ray start`` started on this node.

    Raises:
        ConfigError: Ray cannot resolve the address, or "auto" finds no cluster.
    """
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    if address == "local":
        return False
    from ray._private.services import canonicalize_bootstrap_address

    key = "ray_kwargs.ray_init.address"
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        key, address = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if address is not None and "://" in address:  # Ray Client, which joins always
        return True
    try:
        folder = OmegaConf.select(config, "ray_kwargs.ray_init._temp_dir")
        return canonicalize_bootstrap_address(address, folder) is not None
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(
            f"{key}={address}: Ray finds no cluster there ({error}). Set it to HOST:PORT of a running cluster, or set "
            "ray_kwargs.ray_init.address=local for a cluster of this run's own."
        ) from error


@dataclass(frozen=True)
class ClusterLock:
    """verl's task runner class for a run that joins a cluster. Takes the lock before it makes the task runner."""

    runner: Any
    config: DictConfig

    def options(self, **options: Any) -> ClusterLock:
        return ClusterLock(self.runner.options(**options), self.config)

    def remote(self) -> Any:
        take_lock()
        _await_accelerators(accelerators(self.config))
        return self.runner.remote()


def accelerators(config: DictConfig) -> int:
    """How many accelerators a run needs: to train, and for a reward model and for rollouts that have their own."""
    trainer, model, rollout = config.trainer, config.reward.reward_model, config.actor_rollout_ref.rollout
    needed = trainer.nnodes * trainer.n_gpus_per_node
    if model.enable and model.enable_resource_pool:
        needed += model.nnodes * model.n_gpus_per_node
    if trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        needed += rollout.nnodes * rollout.n_gpus_per_node
    return needed


def lock_queue(transfer_queue: Any) -> None:
    """Patch ``transfer_queue.init``: the process that makes a run's queue takes the cluster's lock first.

    Under verl's own ``main_ppo`` nothing of ours runs before verl makes the queue. Under ``verl-gsd train`` the driver
    has the lock already, because only the driver knows how many accelerators to wait for.
    """
    original = transfer_queue.init

    @functools.wraps(original)
    def init(conf: Any = None) -> Any:
        if conf is not None:  # verl's workers pass none: they attach to the queue of their own run
            take_lock()
        return original(conf)

    transfer_queue.init = init


def take_lock() -> None:
    """Wait until this Ray job alone trains on its cluster. The job keeps the lock until it ends."""
    import ray
    from ray.util import get_placement_group, list_named_actors, placement_group

    name = f"verl_gsd_lock_{ray.get_runtime_context().get_job_id()}"  # of this job: runs can share a namespace
    try:
        get_placement_group(name)
    except ValueError:
        lock = placement_group([_LOCK], name=name)
    else:
        return  # another process of this job took it
    if not lock.wait(5):
        _say("another run trains on this cluster")
        while not lock.wait(60):
            pass
    # Ray ends the queue of a killed run a moment after the run. A run without this plugin takes no lock.
    looks = 0
    while any(actor["name"] == _QUEUE for actor in list_named_actors(all_namespaces=True)):
        if looks == 10:
            _say(f"a run without verl-gsd has verl's queue ({_QUEUE}) on this cluster")
        looks += 1
        time.sleep(1)


def _await_accelerators(count: int) -> None:
    import ray
    from verl.utils.device import get_resource_name

    deadline = time.monotonic() + _ARRIVAL
    while (free := ray.available_resources().get(get_resource_name(), 0)) < count and time.monotonic() < deadline:
        _say(f"{free:g} of {count} accelerators are free")
        time.sleep(5)


def _say(what: str) -> None:
    print(f"{WAITING}{what}", flush=True)
