"""Each run's weights travel through a folder of its own, which no other user can enter and which does not stay."""

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from verl_gsd.trainer import private_folders, weight_sockets

#: Seconds until a process that waits for weights counts as hung.
HUNG = 900


@pytest.fixture
def prefix(monkeypatch):
    """Where folders begin, short and with /tmp's mode, so that no run on this machine is touched."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(private_folders, "_PREFIX", f"{folder}/")
        monkeypatch.setattr(private_folders, "_nodes_held", set())
        yield f"{folder}/weights_"
        private_folders._hold.cache_clear()


def folders(prefix):
    return sorted(path.name for path in Path(prefix).parent.iterdir())


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


SENDER = """
import sys
from multiprocessing import resource_tracker, shared_memory
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl_gsd.trainer import private_folders, weight_sockets
private_folders._PREFIX = sys.argv[1].removesuffix("weights_")
resource_tracker.register = lambda *_: None  # ended with the run, before it could clean up
weight_sockets.private_handle("ipc:///tmp/x", sys.argv[2])
names = [f"{sys.argv[3]}_{sys.argv[2]}_{i}" for i in range(2)]
segments = [transfer.create_shared_memory(4096, name) for name in names]
sender = transfer.BucketedWeightSender("ipc:///tmp/nowhere", use_shm=True)
sender.shm, transfer.is_support_ipc = segments[0], lambda: False
sender._cleanup()
print("SEGMENTS", *names, flush=True)
sys.stdin.read()
"""


def test_memory_of_a_transfer_that_was_cut_off_goes_with_the_folder_and_a_living_runs_stays(prefix):
    shared, name = Path("/dev/shm"), f"verl_weights_test_{os.getpid()}"
    senders = {
        node: subprocess.Popen(
            [sys.executable, "-c", SENDER, prefix, node, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for node in ("aa", "bb")
    }
    foreign = shared / f"{name}_of_a_run_without_a_folder"
    foreign.touch()
    try:
        printed = [next(line for line in process.stdout if "SEGMENTS" in line) for process in senders.values()]
        sent, cut_off = zip(*(line.split()[1:] for line in printed), strict=True)
        assert not any((shared / segment).exists() for segment in sent), "verl removes the memory of a whole transfer"
        assert all((shared / segment).exists() for segment in cut_off)
        for node, segment in zip(senders, cut_off, strict=True):
            assert [path.name for path in Path(f"{prefix}{node}").iterdir()] == [f"shm.{segment}"]
        end(senders["aa"])
        private_folders.remove_unused()
        assert [(shared / segment).exists() for segment in cut_off] == [False, True]
        assert folders(prefix) == ["weights_bb"] and foreign.exists()
        end(senders["bb"])
        private_folders.remove_unused()
        assert not (shared / cut_off[1]).exists() and folders(prefix) == []
    finally:
        for process in senders.values():
            process.kill()
            process.wait()
        for path in shared.glob(f"{name}*"):
            path.unlink()


REPLICA = 987  # no run on this machine has as many


def _run_on_a_cluster_of_its_own(model, monkeypatch):
    """What verl calls the socket of a run, on either side, with this plugin and without."""
    import ray
    from verl.workers.config import HFModelConfig, RolloutConfig
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
    from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

    environment = {"RANK": "0", "RAY_LOCAL_WORLD_SIZE": "1", "VERL_REPLICA_RANK": "", "VERL_RAY_JOB_ID": ""}
    for name, value in (environment | {"CUDA_VISIBLE_DEVICES": ""}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(weight_sockets.NODE, "")
    config = RolloutConfig(name="vllm", tensor_model_parallel_size=1)
    arguments = {"config": config, "model_config": HFModelConfig(path=str(model)), "replica_rank": REPLICA}
    plain = ServerAdapter.__new__(ServerAdapter)
    ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
    try:
        sender = ServerAdapter(**arguments, device_mesh=None)
        ServerAdapter.__init__.__wrapped__(plain, **arguments, device_mesh=None)
        vLLMHttpServer(
            **arguments,
            rollout_mode=RolloutMode.HYBRID,
            workers=[],
            node_rank=0,
            gpus_per_node=1,
            nnodes=1,
            cuda_visible_devices="0",
        )
        worker = SimpleNamespace(local_rank=0, model_runner=SimpleNamespace(vllm_config=None))
        return SimpleNamespace(
            sender=sender.zmq_handle,
            receiver=vLLMColocateWorkerExtension._get_zmq_handle(worker),
            verls_sender=plain.zmq_handle,
            verls_receiver=vLLMColocateWorkerExtension._get_zmq_handle.__wrapped__(worker),
        )
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def runs(tiny_task):
    """Two runs, each on a Ray cluster of its own, as ``hardware=cpu`` or a GPU machine without a cluster has them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return [_run_on_a_cluster_of_its_own(tiny_task / "model", monkeypatch) for _ in range(2)]


class _Processes:
    """Senders and receivers of two runs, as forks of a process that has imported what they need and nothing else."""

    def __init__(self):
        self._context = multiprocessing.get_context("forkserver")
        # Not weight_transfer itself: until Python 3.12 the fork server does not know where this folder is.
        self._context.set_forkserver_preload(["verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"])
        self.started = []

    def _start(self, target, *arguments):
        process = self._context.Process(target=target, args=arguments, daemon=True)
        process.start()
        self.started.append(process)

    def send(self, handle, value):
        """Returns once the sender has bound its socket."""
        import weight_transfer

        bound = self._context.Event()
        self._start(weight_transfer.send, handle, value, bound)
        assert bound.wait(HUNG)

    def receive(self, handle):
        import weight_transfer

        loaded = self._context.Queue()
        self._start(weight_transfer.receive, handle, loaded)
        return loaded


@pytest.fixture
def processes():
    made = _Processes()
    yield made
    for process in made.started:
        process.kill()
        process.join()


def test_two_runs_load_their_own_weights(runs, processes):
    first, second = runs
    for run in runs:
        assert run.sender == run.receiver, "both sides compute the same path without talking to each other"
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
    """If verl names a run's sockets after the run, weight_sockets.py can go, once /tmp is private as well."""
    first, second = runs
    assert {first.verls_sender, first.verls_receiver, second.verls_sender, second.verls_receiver} == {
        f"ipc:///tmp/rl-colocate-zmq-01000000-replica-{REPLICA}-rank-0.sock"
    }
    processes.send(second.verls_sender, 2.0)
    assert processes.receive(first.verls_receiver).get(timeout=HUNG) == [2.0], "the second run's weights"
    processes.send(first.verls_sender, 1.0)
    assert processes.receive(second.verls_receiver).get(timeout=HUNG) == [1.0], "the first run's weights"


def test_delta_weights_and_split_servers_ask_the_patched_method():
    """``update_verl_delta_weights`` and ``update_weights_from_ipc`` are verl's only other users of the name."""
    import inspect

    from verl.workers.rollout.vllm_rollout import utils, vllm_pd_replica, vllm_rollout

    extension = inspect.getsource(utils.vLLMColocateWorkerExtension)
    assert extension.count("self._get_zmq_handle()") == 2 and extension.count("ipc://") == 1
    sender = inspect.getsource(vllm_rollout)
    assert sender.count("zmq_handle=self.zmq_handle") == 2 and sender.count("ipc://") == 1
    assert "ipc://" not in inspect.getsource(vllm_pd_replica)
    assert "VERL_ZMQ_BASE_TRAINER_RANK" in inspect.getsource(utils.vLLMColocateWorkerExtension._get_zmq_handle)


def test_vllms_own_sockets_are_in_the_folder(prefix, monkeypatch):
    """The server's process sets VLLM_RPC_BASE_PATH, which vLLM reads for each socket, and its children inherit it."""
    from vllm import envs
    from vllm.utils import network_utils

    monkeypatch.setenv(weight_sockets.NODE, "ef" * 28)
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


def test_patch_still_needed_because_verl_names_segments_at_random():
    import inspect

    from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer

    text = inspect.getsource(transfer.BucketedWeightSender._init_buffer)
    assert 'f"verl_weights_{uuid.uuid4().hex}"' in text and "create_shared_memory(self.bucket_size, shm_name)" in text
    assert "self.shm.unlink()" in inspect.getsource(transfer.BucketedWeightSender._cleanup.__wrapped__)


ENGINE = """
import sys
from vllm import LLM

if __name__ == "__main__":
    model, executor = sys.argv[1:]
    engine = LLM(
        model=model, dtype="float32", enforce_eager=True, max_model_len=64, gpu_memory_utilization=0.05,
        distributed_executor_backend=executor,
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
    )
    print("HANDLES", engine.collective_rpc("_get_zmq_handle"))
"""


@pytest.mark.parametrize("executor", ["uni", "mp"])
def test_vllm_loads_the_plugin_in_the_process_that_receives(tiny_task, tmp_path, executor):
    """As verl starts vLLM: the engine and, with "mp", the worker are processes that vLLM spawns."""
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    environment = {"VERL_GSD_CPU": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    # verl first, as in its actor: vLLM asks for its own version, which verl_gsd.trainer.cpu answers.
    code = f"import verl, runpy, sys; sys.argv[0] = {str(script)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_task / "model", executor],
        env=os.environ | environment | {weight_sockets.NODE: "cd" * 28, "VERL_RAY_JOB_ID": "01000000"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    name = "rl-colocate-zmq-01000000-replica-0-rank-0.sock"
    (handles,) = re.findall(r"^HANDLES (.*)$", done.stdout, re.MULTILINE)
    assert handles == f"['ipc://{private_folders._PREFIX}weights_{'cd' * 8}/{name}']"
    private_folders.remove_unused()
    assert not Path(f"{private_folders._PREFIX}weights_{'cd' * 8}").exists()
