"""Messages of TransferQueue are authenticated: other users cannot run code through its sockets."""

import inspect
import logging
import os
import pickle
import re
from collections import Counter
from pathlib import Path

import forks
import pytest
import queue_attack
import ray
import torch
import verl  # noqa: F401  loads the plugin
from ray.experimental import internal_kv as kv
from tensordict import TensorDict
from transfer_queue.utils import serial_utils, zmq_utils
from transfer_queue.utils.zmq_utils import ZMQMessage, ZMQMessageDecodeError, ZMQRequestType

from verl_gsd.trainer import queue_auth

#: A request that changes nothing, per socket.
HARMLESS = {
    "handshake_socket": ZMQRequestType.HANDSHAKE,
    "request_handle_socket": ZMQRequestType.KV_LIST,
    "put_get_socket": ZMQRequestType.GET_METRICS,
}


def message(request_type, body=None):
    body = {"partition_id": None} if body is None else body
    return ZMQMessage.create(request_type=request_type, sender_id="test", body=body)


def servers(config):
    """(name, address) of every socket that TransferQueue listens on."""
    storage = config.backend.SimpleStorage.zmq_info
    for server in (config.controller.zmq_info, *storage.values()):
        for name in server.ports:
            yield name, server.to_addr(name)


def put_and_get(queue):
    """Values come back that travel as a tensor, as a nested tensor, and pickled."""
    keys = [f"k{i}" for i in range(3)]
    nested = torch.nested.as_nested_tensor([torch.arange(i + 1) for i in range(3)], layout=torch.jagged)
    fields = TensorDict({"ids": torch.arange(3), "response": nested}, batch_size=3)
    queue.kv_batch_put(keys=keys, partition_id="p", fields=fields, tags=[{"place": i} for i in range(3)])
    assert queue.kv_list(partition_id="p")["p"] == {key: {"place": i} for i, key in enumerate(keys)}
    read = queue.kv_batch_get(keys=keys, partition_id="p")
    assert read["ids"].tolist() == [0, 1, 2]
    assert [row.tolist() for row in read["response"].unbind()] == [[0], [0, 1], [0, 1, 2]]
    queue.kv_clear(keys=keys, partition_id="p")


def test_another_user_runs_nothing_through_the_queue_and_the_queue_keeps_working(queue, running_queue, tmp_path):
    put_and_get(running_queue)
    controller = ray.get_actor("TransferQueueController", namespace="transfer_queue")
    addresses = list(servers(ray.get(controller.get_config.remote())))
    assert Counter(name for name, _ in addresses) == dict.fromkeys(HARMLESS, 1)
    answers = forks.CONTEXT.Queue()
    for name, address in addresses:
        # The attacker has recorded one message of the run. It can send this message again, and nothing else.
        recorded = [bytes(frame) for frame in message(HARMLESS[name]).serialize()]
        command = f"id > {tmp_path}/ran_{name}"
        attacker = forks.start(tmp_path, queue_attack.attack, address, command, recorded, answers)
        user, count = forks.answer(answers, attacker)
        assert user == (queue_attack.OTHER_USER if os.geteuid() == 0 else os.geteuid())
        assert count == (1 if name == "handshake_socket" else 6), "an error per rejected message"
        attacker.join(60)
    assert not list(tmp_path.glob("ran_*"))
    put_and_get(running_queue)


def test_a_message_is_decoded_only_if_its_tag_is_of_this_run(queue, monkeypatch):
    for body in ({"keys": ["a"]}, {"dtype": 1 << 70}):  # the second one is pickled as a whole
        frames = message(ZMQRequestType.KV_LIST, body).serialize()
        assert ZMQMessage.deserialize(frames).body == body
        *content, tag = frames
        changed = [content[0], b"x", tag] if len(content) > 1 else [content[0] + b"x", tag]
        for wrong in ([], content, [*content, bytes(32)], [*content, tag[:-1]], [tag], changed):
            with pytest.raises(ZMQMessageDecodeError, match="not from a process of this run"):
                ZMQMessage.deserialize(wrong)
        with monkeypatch.context() as context:
            context.setattr(queue_auth, "_key", lambda: bytes(32))  # another run's
            other = message(ZMQRequestType.KV_LIST, body).serialize()
        with pytest.raises(ZMQMessageDecodeError, match="not from a process of this run"):
            ZMQMessage.deserialize(other)


def test_all_processes_of_a_job_read_one_key_that_is_not_in_their_environment(queue):
    @ray.remote
    def worker():
        return queue_auth._key(), dict(os.environ), ray.get_runtime_context().runtime_env.to_dict()

    key, environment, runtime_env = ray.get(worker.remote())
    assert key == queue_auth._key() and len(key) == 32
    assert key.hex() not in str(environment) and key.hex() not in str(runtime_env)
    assert str(key) not in str(environment) and str(key) not in str(runtime_env)
    assert kv._internal_kv_get(f"queue_key_{ray.get_runtime_context().get_job_id()}", namespace="verl_gsd") == key


def test_without_ray_nothing_is_decoded_and_no_cluster_is_started(tmp_path):
    code, output = forks.run(tmp_path, queue_attack.decode_without_ray)
    assert code == 0, output
    assert output == "Ray is initialized: False\n"


def test_rejected_messages_are_logged_once_per_minute():
    limit = queue_auth._RateLimit()
    rejected = logging.makeLogRecord({"msg": f"undecodable request: {queue_auth._REJECTED}"})
    assert [bool(limit.filter(rejected)) for _ in range(3)] == [True, False, False]
    assert limit.filter(logging.makeLogRecord({"msg": "another error"}))
    limit._next -= queue_auth._LOG_INTERVAL
    assert limit.filter(rejected)
    for name in queue_auth._LOGGERS:
        assert any(isinstance(kind, queue_auth._RateLimit) for kind in logging.getLogger(name).filters)


# Assumptions about TransferQueue.


def test_patch_still_needed_because_transfer_queue_decodes_what_anyone_sends(tmp_path):
    """If TransferQueue rejects these messages itself, queue_auth.py can be removed."""
    original = inspect.unwrap(ZMQMessage.deserialize.__func__)
    for number, frames in enumerate(queue_attack.messages(f"touch {tmp_path}/{{}}")):
        frames = [bytes(frame).replace(b"{}", b"%02d" % number) for frame in frames]
        with pytest.raises((ZMQMessageDecodeError, KeyError, TypeError)):
            original(ZMQMessage, frames)
        assert (tmp_path / f"{number:02d}").exists()


def test_nothing_else_in_transfer_queue_decodes_what_arrives():
    """All sockets receive with ``ZMQMessage.deserialize``, which alone calls ``decode`` for them."""
    package = Path(inspect.getfile(zmq_utils)).parents[1]
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    decoder = sources.pop("utils/serial_utils.py")
    assert "socket" not in decoder and "def batch_decode_from" in decoder  # for values of other storage backends
    for name, text in sources.items():
        assert not re.search(r"recv_pyobj|recv_json|recv_serialized|\.recv\(|_decoder|ZMQStream", text), name
        assert bool(re.search(r"recv_multipart\(", text)) == bool(re.search(r"ZMQMessage\.deserialize\(", text)), name
    assert [name for name, text in sources.items() if re.search(r"(?<!\.)\bdecode\(", text)] == ["utils/zmq_utils.py"]
    # The frames that run code when they are decoded are the ones that the tag covers.
    assert serial_utils._PICKLE_FALLBACK_SENTINEL == queue_auth._PICKLED
    assert serial_utils.decode([serial_utils._PICKLE_FALLBACK_SENTINEL, pickle.dumps(1), b"not a pickle"]) == 1
    assert serial_utils.decode([serial_utils._encoder.encode(1)[0], b"not a pickle"]) == 1


def test_actors_are_the_classes_that_transfer_queue_creates():
    from transfer_queue import interface
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.bootstrap import simple_storage_bootstrap
    from transfer_queue.storage.simple_storage import SimpleStorageUnit

    assert interface.TransferQueueController is TransferQueueController
    assert simple_storage_bootstrap.SimpleStorageUnit is SimpleStorageUnit
    for actor in (TransferQueueController, SimpleStorageUnit):
        init = actor.__ray_metadata__.modified_class.__init__
        assert init.__code__.co_filename == queue_auth.__file__ and inspect.unwrap(init) is not init
