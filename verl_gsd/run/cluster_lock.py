"""Runs on a Ray cluster that is already running: detects whether a run joins one, and lets one run at a time train.

verl keeps one TransferQueue per Ray cluster, through which trainer, rollout and workers exchange data. A second run
would attach to the first run's queue, consume its batches, and end the queue when it ends itself. Each run therefore
takes a lock on the cluster first.

The lock is a placement group with more than half of a resource that exists once, on the head node. Ray queues the jobs
that request it, and releases it when a job ends for any reason.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import file_access, listeners
from verl_gsd.errors import OUR_MODES, ConfigError
from verl_gsd.regular_files import open_regular
from verl_gsd.run.our_runs import uses_us
from verl_gsd.run.verl_hooks import reject_if_failed

#: The start of log lines that tell the user what the run waits for. The launcher shows these lines.
WAITING = "verl-gsd waits: "
#: Ray's job server sets this environment variable in the drivers that it starts.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: The head node has 1.0 of this resource, so only one lock fits. Ray Serve and others use only thousandths of it.
_LOCK = {"node:__internal_head__": 0.6}
_QUEUE = "TransferQueueController"
#: Seconds to wait for accelerators, for example of nodes that are starting. Then verl reports what is missing.
_ARRIVAL = 600.0
#: What Ray writes to its address file: HOST:PORT, at most this many bytes.
_ADDRESS = re.compile(rb"[\w.:%\[\]-]+:\d{1,5}")
_LONGEST_ADDRESS = 300


def is_job() -> bool:
    """Whether this process is the driver of a submitted Ray job, so that there is a cluster to join."""
    return _JOB in os.environ


def join(config: DictConfig) -> None:
    """Make ``ray.init`` join the job's cluster, even if the config is for starting a separate cluster."""
    init = config.ray_kwargs.ray_init
    with open_dict(init):
        init.address = "auto"  # the job server sets RAY_ADDRESS
        for size in ("num_cpus", "num_gpus"):  # Ray rejects these keys when it joins a cluster
            init[size] = None


def joins(config: DictConfig) -> bool:
    """Whether ``ray.init`` will join a running cluster.

    Raises:
        ConfigError: see ``address_to_join``.
    """
    return address_to_join(config) is not None


def address_to_join(config: DictConfig) -> str | None:
    """The address of the running cluster that ``ray.init`` will join; None if it starts one. This follows Ray's rules.

    ``ray_init.address`` decides. If it is null or "auto", RAY_ADDRESS decides. If that is not set either, Ray looks for
    a cluster on this node that was started with ``ray start``. If it is "auto", Ray also takes the address from the
    command line of any process that looks like a raylet.

    Raises:
        ConfigError: Ray cannot resolve the address, "auto" finds no cluster, no process or one of another user listens
            at an address of this machine, or Ray would use an address that another user may have chosen.
    """
    address = OmegaConf.select(config, "ray_kwargs.ray_init.address")
    if address == "local":
        return None
    from ray._common.utils import get_ray_address_file
    from ray._private import services

    key = "ray_kwargs.ray_init.address"
    if address in (None, "auto") and os.environ.get("RAY_ADDRESS"):
        key, address = "RAY_ADDRESS", os.environ["RAY_ADDRESS"]
    if address is not None and "://" in address:  # Ray Client always joins a cluster
        _check_listener(urlsplit(address).netloc, f"{key}={address}")
        return address
    folder = OmegaConf.select(config, "ray_kwargs.ray_init._temp_dir")
    source = f"{key}={address}"
    try:
        if address in (None, "auto"):
            file = Path(get_ray_address_file(folder))
            own = _read_address_file(file)
            found = own if address is None else services.get_ray_address_from_environment(address, folder)
            if found is None:
                return None
            if found != own:
                _check_process_address(found)
            source = f"the address in {file}" if found == own else "the address that Ray found in a command line"
            address = found
        joined = services.canonicalize_bootstrap_address(address, folder)
    except ConfigError:  # our own, which is a ValueError too
        raise
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(
            f"{key}={address}: Ray finds no cluster there ({error}). Set it to HOST:PORT of a running cluster, or set "
            "ray_kwargs.ray_init.address=local to start a separate cluster for this run."
        ) from error
    if joined is not None:
        _check_listener(joined, source)
    return joined


def _read_address_file(path: Path) -> str | None:
    """The address of a cluster that Ray wrote to a file; None if there is no such file, or it is empty.

    The file is opened once, because its folder may be writable for others, who could replace it in between. If another
    user has written it, Ray would join that user's cluster and run that user's code. Others could also move another
    file of this user to this path, for example a log. The whole content must therefore be an address.

    Raises:
        ConfigError: the file cannot be read, is no regular file (also a symbolic link), does not contain an address,
            belongs to another user than this one and root, or others can write it.
    """
    try:
        with open_regular(path, follow_links=False) as file:
            status, content = os.fstat(file.fileno()), file.read(_LONGEST_ADDRESS + 1)
            is_open = file_access.is_open_to_others(file.fileno(), os.W_OK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _address_file_error(f"{path} cannot be read ({error.strerror})") from error
    if status.st_uid not in (os.geteuid(), 0):
        raise _address_file_error(f"another user (id {status.st_uid}) wrote the cluster address in {path}")
    if is_open:
        raise _address_file_error(f"other users can write {path} (mode {stat.S_IMODE(status.st_mode):04o})")
    address = content.strip()
    if len(content) > _LONGEST_ADDRESS or (address and not _ADDRESS.fullmatch(address)):
        raise _address_file_error(f"{path} does not contain HOST:PORT")
    return address.decode("ascii") or None


def _address_file_error(problem: str) -> ConfigError:
    return ConfigError(
        f"ray_kwargs.ray_init.address: {problem}, so that the cluster to join is not known. To join a cluster, set "
        "RAY_ADDRESS to HOST:PORT, or remove the file and run `ray start`. To start a separate cluster for this run, "
        "set ray_kwargs.ray_init.address=local."
    )


def _check_listener(address: str, source: str) -> None:
    """Reject an address of this machine at which no process listens, or one of another user.

    An address remains when its cluster is killed, and another user can then listen there, who would receive the
    cluster's token and could run code as this user. This also holds for an address that the user named long ago, for
    example in a shell's startup file. A port at which this user or root listens cannot be taken.

    Args:
        address: HOST:PORT, as Ray will use it.
        source: where it comes from, for the message.

    Raises:
        ConfigError: see above; ``VERL_GSD_CLUSTER_USER`` admits one other user.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return  # Ray will report it
    users = listeners.listening_users(host.strip("[]"), int(port))
    if users is None:
        return
    if not users:
        raise ConfigError(
            f"{source}: no process listens at {address}. The cluster has ended, and another user could listen there "
            "instead. Start the cluster, or run `ray stop`, which removes an old address. To start a separate cluster "
            "for this run, unset RAY_ADDRESS and set ray_kwargs.ray_init.address=local."
        )
    if (foreign := listeners.foreign_user(users)) is not None:
        raise ConfigError(
            f"{source}: Ray would join the cluster at {address}, but another user (id {foreign}) listens there, who "
            "would receive the cluster's token and could run code as you. If you trust that user and want to join this "
            f"cluster, set RAY_ADDRESS={address} and {listeners.TRUSTED}={foreign}. To start a separate cluster for "
            "this run, unset RAY_ADDRESS and set ray_kwargs.ray_init.address=local."
        )


def _check_process_address(address: str) -> None:
    """Reject an address that Ray read from a command line, unless a process of this user or root has it.

    Raises:
        ConfigError: only processes of other users have the address.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or this user may not read it
            words = " ".join(process.cmdline()).split()  # a process that sets its title has all words in the first
            if f"--gcs-address={address}" in words and process.uids().real in (os.geteuid(), 0):
                return
    raise ConfigError(
        f"ray_kwargs.ray_init.address=auto: Ray would join the cluster at {address}, and another user of this machine "
        f"started it. If you trust that user and want to join this cluster, set RAY_ADDRESS={address} and "
        f"{listeners.TRUSTED} to that user's name. To start a separate cluster for this run, set "
        "ray_kwargs.ray_init.address=local."
    )


@dataclass(frozen=True)
class ClusterLock:
    """Wraps verl's task runner class for a run that joins a cluster: takes the lock before creating the task runner."""

    runner: Any
    config: DictConfig

    def options(self, **options: Any) -> ClusterLock:
        return ClusterLock(self.runner.options(**options), self.config)

    def remote(self) -> Any:
        take_lock()
        _wait_for_accelerators(accelerators(self.config))
        return self.runner.remote()


def accelerators(config: DictConfig) -> int:
    """The number of accelerators of a run: for training, and for a reward model and rollouts if they have their own."""
    trainer = config.trainer
    return trainer.nnodes * trainer.n_gpus_per_node + sum(separate_accelerators(config).values())


def separate_accelerators(config: DictConfig) -> dict[str, int]:
    """Config section -> the number of accelerators that it has in addition to those of the trainer."""
    rollout, model = config.actor_rollout_ref.rollout, config.reward.reward_model
    numbers = {}
    if config.trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        numbers["actor_rollout_ref.rollout"] = rollout.nnodes * rollout.n_gpus_per_node
    if model.enable and model.enable_resource_pool:
        numbers["reward.reward_model"] = model.nnodes * model.n_gpus_per_node
    return numbers


def lock_queue(transfer_queue: Any) -> None:
    """Patch ``transfer_queue.init`` so that the process that creates a run's queue takes the cluster's lock first.

    Under verl's ``main_ppo`` none of our code runs before verl creates the queue. Under ``verl-gsd train`` the driver
    already has the lock, because only the driver knows how many accelerators to wait for.

    The patched function raises ``ConfigError`` if a part of this package failed in this process, for example the
    authentication of the queue's messages, and the run uses this package. No queue is created then. verl's modules have
    been imported by then, so that their hooks have run.
    """
    original = transfer_queue.init

    @functools.wraps(original)
    def init(conf: Any = None) -> Any:
        if conf is not None:  # workers pass None, because they attach to the existing queue of their run
            if _is_of_our_run(conf):
                reject_if_failed()
            take_lock()
        return original(conf)

    transfer_queue.init = init


def _is_of_our_run(conf: Any) -> bool:
    """Whether verl's section ``transfer_queue`` belongs to the config of a run that uses this package."""
    root = conf._get_root() if isinstance(conf, DictConfig) else None
    return isinstance(root, DictConfig) and uses_us(root)


def take_lock() -> None:
    """Wait until no other run trains on this cluster. This Ray job then holds the lock until it ends."""
    import ray
    from ray.util import get_placement_group, list_named_actors, placement_group

    name = (
        f"verl_gsd_lock_{ray.get_runtime_context().get_job_id()}"  # with the job id, because runs can share a namespace
    )
    try:
        get_placement_group(name)
    except ValueError:
        lock = placement_group([_LOCK], name=name)
    else:
        return  # another process of this job already holds it
    if not lock.wait(5):
        _print_wait("another run trains on this cluster")
        while not lock.wait(60):
            pass
    # The queue of a killed run ends a moment later than the run. Runs without this plugin do not take the lock.
    checks = 0
    while any(actor["name"] == _QUEUE for actor in list_named_actors(all_namespaces=True)):
        if checks == 10:
            _print_wait(f"a run without verl-gsd uses verl's queue ({_QUEUE}) on this cluster")
        checks += 1
        time.sleep(1)


def _wait_for_accelerators(count: int) -> None:
    import ray
    from verl.utils.device import get_resource_name

    deadline = time.monotonic() + _ARRIVAL
    while (free := ray.available_resources().get(get_resource_name(), 0)) < count and time.monotonic() < deadline:
        _print_wait(f"{free:g} of {count} accelerators are free")
        time.sleep(5)


def _print_wait(reason: str) -> None:
    print(f"{WAITING}{reason}", flush=True)
