"""Moves the sockets that carry a run's weights to vLLM into a private folder, as well as vLLM's internal sockets.

verl puts these sockets into /tmp and names them after the Ray job id. The first job of every Ray cluster has the same
id. If two runs on one machine use separate clusters, they therefore load each other's weights without a message, or
hang. Any user of the machine can also bind such a name first, and verl's receiver unpickles what it receives.

This module moves the sockets into /tmp/verl_gsd_weights_MARK. MARK is random per Ray job and node, because

- another user could create a folder first whose name can be guessed, and the run would end with an error;
- sender and receiver are always on the same Ray node, and its job's processes share random bytes (``job_secrets.py``);
- two runs never share a folder;
- each node of a run creates its own folder, so no launcher is needed.

The folder also holds the sockets between vLLM's own processes (VLLM_RPC_BASE_PATH). It also lists the shared memory
through which weights are sent. If a process is killed, vLLM and verl leave both behind; ``private_folders.py`` removes
them when the run has ended.

The sender is a Ray worker and asks Ray. The receiver is one of vLLM's processes and reads MARK from the environment of
the actor that started vLLM. verl passes its job id in the same way.
"""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import Any

from verl_gsd import private_folders
from verl_gsd.run.verl_hooks import when_imported
from verl_gsd.trainer.job_secrets import job_secret

#: Environment variable of vLLM's processes: the random part of their folder's name.
MARK = "VERL_GSD_WEIGHTS_MARK"


def install() -> None:
    """Patch verl's sender, receiver and shared memory, and the actor that starts vLLM, each when verl imports it."""
    package, patch = "verl.workers.rollout.vllm_rollout", "trainer/weight_sockets.py"
    when_imported(f"{package}.vllm_rollout", _patch_sender, patch=patch, entrances=["ServerAdapter.__init__"])
    when_imported(f"{package}.vllm_async_server", _patch_server, patch=patch, entrances=["vLLMHttpServer.__init__"])
    receiver = "vLLMColocateWorkerExtension._get_zmq_handle"
    when_imported(f"{package}.utils", _patch_receiver, patch=patch, entrances=[receiver])
    when_imported(f"{package}.bucketed_weight_transfer", _patch_shared_memory, patch=patch)


def private_handle(handle: str, mark: str) -> str:
    """Move verl's socket name ``handle`` into the folder whose name ends with ``mark``.

    Creates the folder if it does not exist. This process holds the folder until it exits.

    Raises:
        UnsafeFolderError: the folder belongs to another user, other users can enter it, or it is not a folder.
    """
    return f"ipc://{private_folders.node_folder(mark)}/{PurePath(handle).name}"


def _mark() -> str:
    """The random part of the name of the folder that this process's job has on its node: 16 hexadecimal digits."""
    if mark := os.environ.get(MARK):
        return mark
    import ray

    if not ray.is_initialized():  # otherwise, the next call would start a cluster
        raise RuntimeError(
            f"{MARK} is not set in this vLLM process, and Ray is not initialized in it. Install verl-gsd on every "
            "node, or set VERL_USE_EXTERNAL_PLUGINS so that verl loads its plugin."
        )
    return job_secret(f"weights_{ray.get_runtime_context().get_node_id()}").hex()[:16]


def _patch_sender(vllm_rollout: Any) -> None:
    """Patch the training worker: ``update_weights`` and ``_update_delta_weights`` send over ``zmq_handle``."""
    adapter = vllm_rollout.ServerAdapter
    original = adapter.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.zmq_handle = private_handle(self.zmq_handle, _mark())

    adapter.__init__ = init


def _patch_server(vllm_async_server: Any) -> None:
    """Patch the actor that starts vLLM, whose processes inherit its environment.

    This also covers separate servers for prefill and decode.
    """
    server = vllm_async_server.vLLMHttpServer
    original = server.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        os.environ[MARK] = _mark()
        os.environ.setdefault("VLLM_RPC_BASE_PATH", private_folders.node_folder(_mark()))
        original(self, *args, **kwargs)

    server.__init__ = init


def _patch_receiver(utils: Any) -> None:
    """Patch vLLM's worker: it calls this method for full weights, delta weights, and in prefill and decode servers."""
    extension = utils.vLLMColocateWorkerExtension
    original = extension._get_zmq_handle

    @functools.wraps(original)
    def _get_zmq_handle(self: Any) -> str:
        return private_handle(original(self), _mark())

    extension._get_zmq_handle = _get_zmq_handle


def _patch_shared_memory(transfer: Any) -> None:
    """Note the shared memory through which weights are sent if they do not stay on the GPU.

    verl removes this memory after each transfer, unless the sender is killed or waits for a receiver that was killed.
    """
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
