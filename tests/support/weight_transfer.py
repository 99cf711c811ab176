"""verl's own sender and receiver of weights, as targets of processes that have nothing else to import."""

import asyncio

import torch
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
