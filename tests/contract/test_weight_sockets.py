"""Each run sends its weights through its own folder. No other user can enter it, and it is removed after the run."""

import asyncio
import inspect
import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import forks
import pytest
import weight_transfer

from verl_gsd import private_folders
from verl_gsd.trainer import weight_sockets

#: Seconds until a process that waits for weights counts as hung.
HUNG = 900


@pytest.fixture
def prefix(monkeypatch):
    """The prefix of all folders, at a short path with /tmp's mode, so that runs on this machine are not affected."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(private_folders, "_PREFIX", f"{folder}/")
        monkeypatch.setattr(private_folders, "_nodes_held", set())
        yield f"{folder}/weights_"
        private_folders._hold.cache_clear()


def folders(prefix):
    return sorted(path.name for path in Path(prefix).parent.iterdir())


def test_shared_memory_of_an_interrupted_transfer_is_removed_with_the_folder_but_not_that_of_a_running_run(
    prefix, tmp_path
):
    shared, name = Path("/dev/shm"), f"verl_weights_test_{os.getpid()}"
    told = forks.CONTEXT.Queue()
    senders = {
        node: forks.start(tmp_path, weight_transfer.hold_segments, prefix, node, name, told) for node in ("aa", "bb")
    }
    foreign = shared / f"{name}_of_a_run_without_a_folder"
    foreign.touch()
    try:
        of_node = dict(forks.answer(told, *senders.values()) for _ in senders)
        sent, cut_off = zip(*(of_node[node] for node in senders), strict=True)
        assert not any((shared / segment).exists() for segment in sent), "verl removes the memory of a whole transfer"
        assert all((shared / segment).exists() for segment in cut_off)
        for node, segment in zip(senders, cut_off, strict=True):
            assert [path.name for path in Path(f"{prefix}{node}").iterdir()] == [f"shm.{segment}"]
        forks.end(senders["aa"])
        private_folders.remove_unused()
        assert [(shared / segment).exists() for segment in cut_off] == [False, True]
        assert folders(prefix) == ["weights_bb"] and foreign.exists()
        forks.end(senders["bb"])
        private_folders.remove_unused()
        assert not (shared / cut_off[1]).exists() and folders(prefix) == []
    finally:
        for process in senders.values():
            forks.end(process)
        for path in shared.glob(f"{name}*"):
            path.unlink()


REPLICA = 987  # no run on this machine has as many


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory):
    """The socket names of two runs, each with its own Ray cluster, with and without this plugin.

    Runs with ``hardware=cpu``, and runs on a single GPU machine, start such clusters.
    """
    told, folder = forks.CONTEXT.Queue(), tmp_path_factory.mktemp("runs")
    process = forks.start(folder, weight_transfer.name_sockets, str(tiny_task / "model"), REPLICA, told)
    try:
        return [SimpleNamespace(**forks.answer(told, process)) for _ in range(2)]
    finally:
        process.join(HUNG)
        forks.end(process)


class _Processes:
    """Senders and receivers of two runs."""

    def __init__(self, folder):
        self._folder, self.started = folder, []

    def _start(self, target, *arguments):
        self.started.append(forks.start(self._folder, target, *arguments))

    def send(self, handle, value):
        """Returns when the sender has bound its socket."""
        bound = forks.CONTEXT.Event()
        self._start(weight_transfer.send, handle, value, bound)
        assert bound.wait(HUNG)

    def receive(self, handle):
        loaded = forks.CONTEXT.Queue()
        self._start(weight_transfer.receive, handle, loaded)
        return loaded


@pytest.fixture
def processes(tmp_path):
    made = _Processes(tmp_path)
    yield made
    for process in made.started:
        forks.end(process)


def test_two_runs_load_their_own_weights(runs, processes):
    first, second = runs
    for run in runs:
        assert run.sender == run.receiver, "both sides compute the same path without talking to each other"
        mark = Path(run.sender).parent.name.rpartition("_")[2]
        assert re.fullmatch("[0-9a-f]{16}", mark) and mark not in run.command_lines, "ps shows Ray's ids to everyone"
    processes.send(second.sender, 2.0)
    at_first = processes.receive(first.receiver)
    processes.send(first.sender, 1.0)
    at_second = processes.receive(second.receiver)
    assert at_first.get(timeout=HUNG) == [1.0] and at_second.get(timeout=HUNG) == [2.0]
    assert first.sender != second.sender
    for process in processes.started:
        process.join(HUNG)
        assert process.exitcode == 0


def test_patch_still_needed_because_two_runs_share_verls_own_sockets(runs, processes):
    """If verl names sockets after the run and makes their folder private, weight_sockets.py can be removed."""
    first, second = runs
    assert {first.verls_sender, first.verls_receiver, second.verls_sender, second.verls_receiver} == {
        f"ipc:///tmp/rl-colocate-zmq-01000000-replica-{REPLICA}-rank-0.sock"
    }
    processes.send(second.verls_sender, 2.0)
    assert processes.receive(first.verls_receiver).get(timeout=HUNG) == [2.0], "the second run's weights"
    processes.send(first.verls_sender, 1.0)
    assert processes.receive(second.verls_receiver).get(timeout=HUNG) == [1.0], "the first run's weights"


def test_delta_weights_and_split_servers_ask_the_patched_method(monkeypatch):
    """Besides it, only ``update_verl_delta_weights`` and ``update_weights_from_ipc`` use the name in verl."""
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer, utils, vllm_pd_replica, vllm_rollout

    class ReachedError(Exception):
        pass

    def transfer(zmq_handle, **_):
        raise ReachedError(zmq_handle)

    extension, updates = utils.vLLMColocateWorkerExtension, []
    receiver = SimpleNamespace(_get_zmq_handle=lambda: "ours", update_weights=updates.append)
    extension.update_verl_delta_weights(receiver, {"names": []})
    assert updates == [{"names": [], "zmq_handle": "ours"}]
    monkeypatch.setattr(bucketed_weight_transfer, "BucketedWeightReceiver", transfer)
    monkeypatch.setattr(utils, "is_quantized_model", lambda _: False)
    vars(receiver).update(device="cpu", _is_qat_model=False, _is_modelopt_qat=False, _iter_all_models=lambda: ())
    receiver.model_runner = SimpleNamespace(vllm_config=None)
    with pytest.raises(ReachedError, match="ours"):
        extension.update_weights_from_ipc(receiver)

    async def nothing(*_, **__):
        pass

    async def flushes():
        yield [("layer", None)], True

    monkeypatch.setattr(vllm_rollout, "BucketedWeightSender", transfer)
    config = SimpleNamespace(checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1))
    sender = SimpleNamespace(zmq_handle="ours", use_shm=False, config=config, _execute_method=nothing)
    sender._delta_weight_transfer_engine_initialized = True
    for update in (
        vllm_rollout.ServerAdapter.update_weights(sender, iter(())),
        vllm_rollout.ServerAdapter._update_delta_weights(sender, flushes(), global_steps=1),
    ):
        with pytest.raises(ReachedError, match="ours"):
            asyncio.run(update)

    for name, value in (("VERL_RAY_JOB_ID", "7"), ("VERL_REPLICA_RANK", "1"), ("VERL_ZMQ_BASE_TRAINER_RANK", "4")):
        monkeypatch.setenv(name, value)
    worker = SimpleNamespace(local_rank=2, model_runner=SimpleNamespace(vllm_config=None))
    split = inspect.unwrap(extension._get_zmq_handle)(worker)
    assert split.endswith("-replica-1-rank-6.sock"), "servers for prefill and decode differ by this variable"
    naming = [function for module in (utils, vllm_rollout, vllm_pd_replica) for function in naming_sockets(module)]
    assert naming == ["vLLMColocateWorkerExtension._get_zmq_handle", "ServerAdapter.__init__"]


def naming_sockets(module):
    """The functions and methods of a module that have a socket's address among their constants."""
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
    functions = [thing for thing in own if inspect.isfunction(thing)]
    functions += [method for kind in own if inspect.isclass(kind) for method in vars(kind).values()]
    for function in map(inspect.unwrap, functions):
        constants = function.__code__.co_consts if inspect.isfunction(function) else ()
        if any(isinstance(constant, str) and constant.startswith("ipc://") for constant in constants):
            yield function.__qualname__


def test_vllms_own_sockets_are_in_the_folder(prefix, monkeypatch):
    """The server's process sets VLLM_RPC_BASE_PATH, which vLLM reads for each socket, and its children inherit it."""
    from vllm import envs
    from vllm.utils import network_utils

    monkeypatch.setenv(weight_sockets.MARK, "ef" * 8)
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "")
    monkeypatch.delenv("VLLM_RPC_BASE_PATH")

    class Server:
        def __init__(self):
            self.path = network_utils.get_open_zmq_ipc_path()

    weight_sockets._patch_server(SimpleNamespace(vLLMHttpServer=Server))
    folder = f"{prefix}{'ef' * 8}"
    assert Path(Server().path.removeprefix("ipc://")).parent == Path(folder)
    assert folder == envs.VLLM_RPC_BASE_PATH and Path(folder).is_dir()
    # A socket of vLLM's has a UUID for a name.
    assert len(f"{private_folders._PREFIX}weights_{'e' * 16}/{'u' * 36}") < 107


def test_patch_still_needed_because_verl_names_segments_at_random(monkeypatch):
    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer

    names = []

    def create(size, name):
        names.append(name)
        return SimpleNamespace(buf=bytearray(size))

    monkeypatch.setattr(transfer, "create_shared_memory", create)
    for _ in range(2):
        sender = SimpleNamespace(use_shm=True, bucket_size=64, socket=Mock())
        transfer.BucketedWeightSender._init_buffer(sender)
        assert sender.socket.send_pyobj.call_args.args[0]["name"] == names[-1]
    assert len(set(names)) == 2 and all(name.startswith("verl_weights_") for name in names)
