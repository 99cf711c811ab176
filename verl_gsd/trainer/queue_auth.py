"""Authenticates the messages of verl's TransferQueue, so that only the processes of this run can use its queue.

TransferQueue listens on the node's IP address and unpickles what it receives from anyone. Ray's token does not protect
these sockets. This module adds an HMAC-SHA256 to every message, and checks it before anything is decoded. It covers the
frames that are unpickled or decoded as msgpack. The other frames are the bytes of tensors, which cannot run code.

The key is 32 random bytes per Ray job, which its processes share (``job_secrets.py``).

A rejected message is not decoded. TransferQueue logs it and answers with an error, as it does for damaged messages.
This module limits these log lines to one per minute and logger.

Not covered: a recorded message can be sent again within the same run, and messages are not encrypted. Storage backends
other than SimpleStorage (Mooncake, Yuanrong) also transfer values over their own connections.

The patch can be removed when TransferQueue authenticates its messages (tests/contract/test_queue_auth.py).
"""

from __future__ import annotations

import functools
import hmac
import logging
import time
from collections.abc import Sequence
from typing import Any

from verl_gsd.trainer.job_secrets import job_secret

#: TransferQueue's mark of a message whose second frame is a pickle.
_PICKLED = b"\xc1\xfe\xed"
#: Seconds between two log lines about rejected messages.
_LOG_INTERVAL = 60.0
#: Part of every log line about a rejected message.
_REJECTED = "this message is not from a process of this run"
#: Loggers of the processes that listen.
_LOGGERS = ("transfer_queue.controller", "transfer_queue.storage.simple_storage")


def install(transfer_queue: Any = None) -> None:
    """Authenticate messages in this process, and in the actors of TransferQueue that it creates.

    Args:
        transfer_queue: the package, which ``wrapt.when_imported`` passes.
    """
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit
    from transfer_queue.utils.zmq_utils import ZMQMessage

    if hasattr(ZMQMessage.serialize, "__wrapped__"):
        return  # an actor has imported verl before TransferQueue creates its object
    # Before anything is patched: with only a part of the patches, no process could read the messages of another.
    actors = [actor.__ray_metadata__.modified_class for actor in (TransferQueueController, SimpleStorageUnit)]
    _patch_messages(ZMQMessage)
    for actor in actors:
        _patch_actor(actor)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_RateLimit())


def _patch_messages(message: Any) -> None:
    """Append the tag to the frames of a message, and check and remove it before they are decoded."""
    from transfer_queue.utils.zmq_utils import ZMQMessageDecodeError

    serialize, deserialize = message.serialize, message.deserialize.__func__

    @functools.wraps(serialize)
    def tagged(self: Any) -> list[Any]:
        frames = list(serialize(self))
        return [*frames, _tag(frames)]

    @functools.wraps(deserialize)
    def checked(cls: Any, frames: Sequence[Any]) -> Any:
        *frames, tag = frames or [b""]
        if not frames or not hmac.compare_digest(bytes(tag), _tag(frames)):
            raise ZMQMessageDecodeError(
                f"{_REJECTED}: its tag is wrong or missing. If it is from your own process, install verl-gsd where "
                "that process runs"
            )
        return deserialize(cls, frames)

    message.serialize, message.deserialize = tagged, classmethod(checked)


def _patch_actor(actor: Any) -> None:
    """Call ``install`` in the actor's process before its object is created.

    These processes do not import verl, and therefore not our plugin. Ray pickles the class of an actor by value, so
    the new ``__init__`` travels with it. It refers to ``install`` by name, and therefore imports this module there.
    """
    original = actor.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        install()
        original(self, *args, **kwargs)

    actor.__init__ = init


def _tag(frames: Sequence[Any]) -> bytes:
    """The HMAC of the frames that TransferQueue unpickles or decodes."""
    first = memoryview(frames[0])
    if first == _PICKLED:
        first = memoryview(b"".join(memoryview(frame) for frame in frames[:2]))
    return hmac.digest(_key(), first, "sha256")


@functools.cache
def _key() -> bytes:
    """The key of this process's Ray job.

    It is read once: verl's processes belong to one job as long as they live.

    Raises:
        RuntimeError: Ray is not initialized in this process.
    """
    return job_secret("queue_key")


class _RateLimit(logging.Filter):
    """Drops log records about rejected messages that follow the last one too soon, so that they cannot fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if _REJECTED not in record.getMessage():
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _LOG_INTERVAL
        return True
