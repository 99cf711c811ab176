"""What the usual causes of death look like in a log, and what a user can do about each."""

from __future__ import annotations

import re
from typing import NamedTuple


class _Cause(NamedTuple):
    """What is found in a log, what it means, and what helps: the keys of verl's config to change, mostly."""

    pattern: str
    meaning: str
    remedy: str


_HOST_MEMORY = (
    "Set data.train_batch_size, actor_rollout_ref.rollout.n or data.max_response_length lower, or use a machine with "
    "more memory"
)
_GPU_MEMORY = (
    "Set actor_rollout_ref.rollout.gpu_memory_utilization or actor_rollout_ref.actor.ppo_max_token_len_per_gpu lower"
)

#: The most specific cause first: a log of a process that was killed has several of these.
_CAUSES = (
    _Cause(
        r"No space left on device|Errno 28\b|Disk quota exceeded",
        "A disk is full",
        "Free space in trainer.default_local_dir, in /dev/shm and where Ray writes its session (RAY_TMPDIR), or set "
        "trainer.max_actor_ckpt_to_keep to keep fewer checkpoints",
    ),
    _Cause(
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|NPU out of memory",
        "A GPU ran out of memory",
        _GPU_MEMORY,
    ),
    _Cause(
        r"No available memory for the cache blocks|less than desired GPU memory utilization",
        "vLLM did not find enough free GPU memory",
        "Set actor_rollout_ref.rollout.gpu_memory_utilization to what is free, and look for other processes on the GPU "
        "(nvidia-smi)",
    ),
    _Cause(
        r"killed due to (?:the node running low on memory|memory pressure)|Memory on the node \(IP: |"
        r"ray\.exceptions\.OutOfMemoryError",
        "Ray killed a process because this machine's memory was nearly full",
        _HOST_MEMORY,
    ),
    _Cause(
        r"DefaultCPUAllocator: (?:can't|not enough)|std::bad_alloc|\bMemoryError\b|Cannot allocate memory",
        "A process could not allocate host memory",
        _HOST_MEMORY,
    ),
    _Cause(r"Too many open files", "A process ran out of file descriptors", "Run `ulimit -n 65536` before the run"),
    _Cause(
        r"NCCL (?:error|timeout)|Watchdog caught collective operation timeout",
        "GPUs waited for each other in vain, for one of them has stopped or the network has failed",
        "Look for the first error of another rank in the log",
    ),
    _Cause(
        r"Failed to connect to GCS within|GCS may have been killed",
        "Ray's control service (gcs_server) died or cannot be reached",
        "Look into gcs_server.out and gcs_server.err in Ray's log folder (/tmp/ray/session_latest/logs) on the head "
        "node",
    ),
    _Cause(
        r"ActorUnavailableError: .*RpcError|The raylet \(Ray node\)|raylet.*(?:has died|died unexpectedly)",
        "Ray's own process on a node (raylet) died or cannot be reached",
        "Look into raylet.out and raylet.err in Ray's log folder (/tmp/ray/session_latest/logs) on that node",
    ),
    _Cause(
        r"Engine core initialization failed",
        "vLLM's engine process died while it started",
        f"The log has its first error. Exit code -9 means that it was killed, often for lack of memory: {_HOST_MEMORY}",
    ),
    _Cause(
        r"EngineDeadError|EngineCore encountered an issue",
        "vLLM's engine process died",
        f"If it was killed for lack of memory: {_HOST_MEMORY}. On a GPU: {_GPU_MEMORY}",
    ),
    _Cause(
        r"The actor is dead because its worker process has died|The worker died unexpectedly",
        "A process of the run died without a Python error: it was killed, or it crashed",
        f"If it was killed for lack of memory: {_HOST_MEMORY}",
    ),
)


def likely_cause(text: str) -> str | None:
    """What probably ended the run whose log, or a part of it, is ``text``, and what to do; None if nothing is known."""
    for cause in _CAUSES:
        if re.search(cause.pattern, text):
            return f"{cause.meaning}. {cause.remedy}."
    return None
