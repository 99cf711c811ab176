"""A private folder for the sockets over which a run's weights reach vLLM.

verl names these sockets after the Ray job id and puts them into /tmp. The first job of every Ray cluster has the same
id. Two runs on one machine, each with a cluster of its own, therefore load each other's weights without a message, or
hang. Any user of the machine can also bind such a name first, and verl's receiver unpickles what it gets.

This module moves the sockets into /tmp/verl_gsd_weights_NODE. NODE is the Ray node id, because

- sender and receiver are always on the same Ray node, and both know its id without talking to each other,
- Ray draws it at random for every node of every cluster, so that no two runs at a time share it: runs on the same
  cluster have different job ids, which stay in the socket's name, and
- each node of a run makes its own folder, and no launcher is needed.

The sender is a Ray worker and asks Ray for the id. The receiver is a process of vLLM's and reads it from the
environment of the actor that started vLLM. verl passes its job id on in the same way.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

import wrapt

#: Environment variable of vLLM's processes: the id of the Ray node that they are on.
NODE = "VERL_GSD_RAY_NODE"

#: Always below /tmp, as verl's: a socket's path may have at most 107 characters, and TMPDIR may be long.
_PREFIX = "/tmp/verl_gsd_weights_"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class UnsafeFolderError(RuntimeError):
    """The folder for the sockets is not a folder that this user alone can enter."""


def install() -> None:
    """Patch verl's sender, its receiver, and the actor that starts vLLM, each when verl imports it."""
    package = "verl.workers.rollout.vllm_rollout"
    wrapt.when_imported(f"{package}.vllm_rollout")(_patch_sender)
    wrapt.when_imported(f"{package}.vllm_async_server")(_patch_server)
    wrapt.when_imported(f"{package}.utils")(_patch_receiver)


def private_handle(handle: str, node: str) -> str:
    """Return verl's socket name ``handle``, moved into the folder of the Ray node ``node``.

    Makes the folder if it does not exist. This process then holds it until it ends.

    Raises:
        UnsafeFolderError: the folder belongs to another user, other users can enter it, or it is not a folder.
    """
    return f"ipc://{_hold(f'{_PREFIX}{node[:16]}')}/{PurePath(handle).name}"


def remove_unused() -> None:
    """Remove the folders of this user that no living process holds: their runs have ended."""
    for path in Path(_PREFIX).parent.glob(f"{Path(_PREFIX).name}*"):
        with suppress(OSError):  # another user's folder, a folder in use, or one that has just been removed
            descriptor = os.open(path, _OPEN)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


@functools.cache
def _hold(folder: str) -> str:
    """Make ``folder`` if necessary, check it, and lock it until this process ends.

    The kernel gives the lock back however the process ends, so that a lock says more than a process id would. It also
    keeps systemd's cleaning of /tmp away.
    """
    while True:
        try:
            Path(folder).mkdir(mode=0o700)
            is_new = True
        except FileExistsError:
            is_new = False
        try:
            descriptor = os.open(folder, _OPEN)
        except FileNotFoundError:
            continue  # remove_unused of another run has just removed it
        except OSError as error:
            raise _unsafe(folder, error.strerror) from error
        if reason := _what_is_unsafe(os.fstat(descriptor)):
            os.close(descriptor)
            raise _unsafe(folder, reason)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(folder, descriptor):
            break
        os.close(descriptor)  # removed between opening and locking
    if is_new:
        remove_unused()
    return folder


def _what_is_unsafe(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"it belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}"
    if status.st_mode & 0o077:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o} and must be 0700"
    return None


def _unsafe(folder: str, reason: str | None) -> UnsafeFolderError:
    return UnsafeFolderError(
        f"{folder}: this folder for the sockets of vLLM's weights is not private: {reason}. Another user could replace "
        "the weights or run code in this process. Remove the folder, then start the run again."
    )


def _is_at(folder: str, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(Path(folder).lstat(), os.fstat(descriptor))
    return False


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
