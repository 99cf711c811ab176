"""A private folder for the sockets over which a run's weights reach vLLM, and for what vLLM's processes share.

verl names these sockets after the Ray job id and puts them into /tmp. The first job of every Ray cluster has the same
id. Two runs on one machine, each with a cluster of its own, therefore load each other's weights without a message, or
hang. Any user of the machine can also bind such a name first, and verl's receiver unpickles what it gets.

This module moves the sockets into /tmp/verl_gsd_weights_NODE. NODE is the Ray node id, because

- sender and receiver are always on the same Ray node, and both know its id without talking to each other,
- Ray draws it at random for every node of every cluster, so that no two runs at a time share it: runs on the same
  cluster have different job ids, which stay in the socket's name, and
- each node of a run makes its own folder, and no launcher is needed.

The folder also takes the sockets between vLLM's own processes (VLLM_RPC_BASE_PATH), and it names the shared memory in
which weights travel. vLLM and verl leave both behind when a process is killed; ``private_folders.py`` removes them when
the run has ended.

The sender is a Ray worker and asks Ray for the id. The receiver is a process of vLLM's and reads it from the
environment of the actor that started vLLM. verl passes its job id on in the same way.
"""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import Any

import wrapt

from verl_gsd import private_folders

#: Environment variable of vLLM's processes: the id of the Ray node that they are on.
NODE = "VERL_GSD_RAY_NODE"


def install() -> None:
    """Patch verl's sender, receiver, shared memory, and the actor that starts vLLM, each when verl imports it."""
    package = "verl.workers.rollout.vllm_rollout"
    wrapt.when_imported(f"{package}.vllm_rollout")(_patch_sender)
    wrapt.when_imported(f"{package}.vllm_async_server")(_patch_server)
    wrapt.when_imported(f"{package}.utils")(_patch_receiver)
    wrapt.when_imported(f"{package}.bucketed_weight_transfer")(_patch_shared_memory)


def private_handle(handle: str, node: str) -> str:
    """Return verl's socket name ``handle``, moved into the folder of the Ray node ``node``.

    Makes the folder if it does not exist. This process then holds it until it ends.

    Raises:
        UnsafeFolderError: the folder belongs to another user, other users can enter it, or it is not a folder.
    """
    return f"ipc://{private_folders.node_folder(node)}/{PurePath(handle).name}"


def _node() -> str:
    """The id of the Ray node that this process is on."""
    if node := os.environ.get(NODE):
        return node
    import ray

    if not ray.is_initialized():  # asking for its context would start a cluster
        raise RuntimeError(
            f"{NODE} is not set in this process of vLLM, and Ray is not running in it. Install verl-gsd on every node, "
            "or set VERL_USE_EXTERNAL_PLUGINS so that verl loads its plugin."
        )
    return ray.get_runtime_context().get_node_id()


def _patch_sender(vllm_rollout: Any) -> None:
    """The worker that trains: ``update_weights`` and ``_update_delta_weights`` send over ``zmq_handle``."""
    adapter = vllm_rollout.ServerAdapter
    original = adapter.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.zmq_handle = private_handle(self.zmq_handle, _node())

    adapter.__init__ = init


def _patch_server(vllm_async_server: Any) -> None:
    """The actor whose environment vLLM's processes inherit, also where prefill and decode have servers of their own."""
    server = vllm_async_server.vLLMHttpServer
    original = server.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        os.environ[NODE] = _node()
        os.environ.setdefault("VLLM_RPC_BASE_PATH", private_folders.node_folder(_node()))
        original(self, *args, **kwargs)

    server.__init__ = init


def _patch_receiver(utils: Any) -> None:
    """vLLM's worker: full weights, delta weights, and those of prefill and decode servers, all ask this method."""
    extension = utils.vLLMColocateWorkerExtension
    original = extension._get_zmq_handle

    @functools.wraps(original)
    def _get_zmq_handle(self: Any) -> str:
        return private_handle(original(self), _node())

    extension._get_zmq_handle = _get_zmq_handle


def _patch_shared_memory(transfer: Any) -> None:
    """The memory through which weights travel where they do not stay on the GPU: verl removes it after each transfer,
    unless the sender is killed or waits for a receiver that was."""
    create, sender = transfer.create_shared_memory, transfer.BucketedWeightSender
    clean_up = sender._cleanup

    @functools.wraps(create)
    def create_shared_memory(size: int, name: str) -> Any:
        private_folders.note_segment(name)
        return create(size, name)

    @functools.wraps(clean_up)
    def _cleanup(self: Any) -> None:
        name = self.shm.name if self.shm is not None else None
        clean_up(self)
        if name is not None:
            private_folders.forget_segment(name)

    transfer.create_shared_memory, sender._cleanup = create_shared_memory, _cleanup
