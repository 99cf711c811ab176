"""verl's own sender and receiver of weights, as targets of processes of their own."""

import asyncio
import os
import threading
from multiprocessing import resource_tracker
from types import SimpleNamespace

import psutil
import torch
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver, BucketedWeightSender


class AnnouncingSender(BucketedWeightSender):
    """Sets ``bound`` once its socket is bound, and is verl's otherwise."""

    def __init__(self, handle, bound):
        super().__init__(handle, bucket_size_mb=4, use_shm=True)
        self._bound = bound

    def _init_socket(self):
        super()._init_socket()
        self._bound.set()


def send(handle, value, bound):
    """Send eight layers, of which two buckets are needed, that hold ``value``."""
    weights = ((f"layer{i}", torch.full((250_000,), value)) for i in range(8))
    asyncio.run(AnnouncingSender(handle, bound).async_send_weights(weights))


def receive(handle, loaded):
    """Put the different values that were received, sorted, into the queue ``loaded``."""
    values = set()
    receiver = BucketedWeightReceiver(handle, device=torch.device("cpu"), use_shm=True)
    receiver.receive_weights(lambda weights, is_last: values.update(float(layer[0]) for _, layer in weights))
    loaded.put(sorted(values))


def hold_segments(prefix, node, name, told):
    """Put (node, segments) into the queue ``told``: memory of a transfer that is over, and of one that is cut off."""
    from verl_gsd import private_folders
    from verl_gsd.trainer import weight_sockets

    private_folders._PREFIX = prefix.removesuffix("weights_")
    resource_tracker.register = lambda *_: None  # ended with the run, before it could clean up
    weight_sockets.private_handle("ipc:///tmp/x", node)
    names = [f"{name}_{node}_{number}" for number in range(2)]
    segments = [transfer.create_shared_memory(4096, name) for name in names]
    sender = BucketedWeightSender("ipc:///tmp/nowhere", use_shm=True)
    sender.shm, transfer.is_support_ipc = segments[0], lambda: False
    sender._cleanup()
    told.put((node, names))
    threading.Event().wait()


def name_sockets(model, replica, told):
    """Put what verl calls the sockets of two runs into the queue ``told``, one run after the other.

    Each has a Ray cluster of its own. Both have this process: two forks of one process may draw the same node id.
    """
    for _ in range(2):
        told.put(_sockets_of_a_run(model, replica))


def _sockets_of_a_run(model, replica):
    """A run's socket on either side, with this plugin and without."""
    import ray
    from verl.workers.config import HFModelConfig, RolloutConfig
    from verl.workers.rollout.replica import RolloutMode
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
    from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

    from verl_gsd.trainer import weight_sockets

    os.environ |= {"RANK": "0", "RAY_LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in (weight_sockets.MARK, "VERL_REPLICA_RANK", "VERL_RAY_JOB_ID"):  # of another run
        os.environ.pop(name, None)
    config = RolloutConfig(name="vllm", tensor_model_parallel_size=1)
    arguments = {"config": config, "model_config": HFModelConfig(path=model), "replica_rank": replica}
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
        return {
            "sender": sender.zmq_handle,
            "receiver": vLLMColocateWorkerExtension._get_zmq_handle(worker),
            "command_lines": str([process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]),
            "verls_sender": plain.zmq_handle,
            "verls_receiver": vLLMColocateWorkerExtension._get_zmq_handle.__wrapped__(worker),
        }
    finally:
        ray.shutdown()
