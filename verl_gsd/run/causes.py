"""Recognizes common causes of a failed run in its log, and says how to fix each."""

from __future__ import annotations

import re
from typing import NamedTuple

from verl_gsd.extension import ROLLOUTS


class _Cause(NamedTuple):
    """A pattern to find in a log, what it means, and the fix, which usually names keys of verl's config."""

    pattern: str
    meaning: str
    fix: str


#: A budget gives prompts different numbers of responses, and n is their mean. Sizes in the data do not follow from n.
_HOST_MEMORY = (
    "Set data.train_batch_size, data.max_response_length or actor_rollout_ref.rollout.n (and the sizes in column "
    f"{ROLLOUTS} of data.train_files, if it has one) lower, or use a machine with more memory"
)
_GPU_MEMORY = (
    "Set actor_rollout_ref.rollout.gpu_memory_utilization or actor_rollout_ref.actor.ppo_max_token_len_per_gpu lower"
)

#: Of a cluster that verl-gsd started, and of one that `ray start` started.
_RAY_LOGS = "/tmp/ray_UID/ray/session_latest/logs or /tmp/ray/session_latest/logs, or in RAY_TMPDIR instead of /tmp"

#: Ordered from the most specific cause to the least specific. The log of a killed process often matches several.
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
        "Set actor_rollout_ref.rollout.gpu_memory_utilization to the free share of the memory, or end other processes "
        "on the GPU (nvidia-smi lists them)",
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
    _Cause(
        r"current node timed out during startup",
        "Ray did not start in time, because this machine is busy or its disk is slow",
        "End other work on this machine, then start the run again",
    ),
    _Cause(r"Too many open files", "A process ran out of file descriptors", "Run `ulimit -n 65536` before the run"),
    _Cause(
        r"NCCL (?:error|timeout)|Watchdog caught collective operation timeout",
        "Communication between GPUs timed out or failed, because one of them stopped or the network failed",
        "Look in the log for the first error of another rank",
    ),
    _Cause(
        r"Failed to connect to GCS within|GCS may have been killed",
        "Ray's control service (gcs_server) died or cannot be reached",
        f"Read gcs_server.out and gcs_server.err in Ray's log folder on the head node ({_RAY_LOGS})",
    ),
    _Cause(
        r"ActorUnavailableError: .*RpcError|The raylet \(Ray node\)|raylet.*(?:has died|died unexpectedly)",
        "Ray's process on a node (raylet) died or cannot be reached",
        f"Read raylet.out and raylet.err in Ray's log folder on that node ({_RAY_LOGS})",
    ),
    _Cause(
        r"Engine core initialization failed",
        "vLLM's engine process died while it started",
        "Look for its first error in the log. Exit code -9 means that it was killed, often because memory ran out. In "
        f"that case: {_HOST_MEMORY}",
    ),
    _Cause(
        r"EngineDeadError|EngineCore encountered an issue",
        "vLLM's engine process died",
        f"If host memory ran out: {_HOST_MEMORY}. If GPU memory ran out: {_GPU_MEMORY}",
    ),
    _Cause(
        r"The actor is dead because its worker process has died|The worker died unexpectedly",
        "A process of the run died without a Python error: it was killed, or it crashed",
        f"If memory ran out: {_HOST_MEMORY}",
    ),
)


def likely_cause(text: str) -> str | None:
    """The likely cause of a failure and its fix, found in ``text`` of the log; None if no pattern matches."""
    for cause in _CAUSES:
        if re.search(cause.pattern, text):
            return f"{cause.meaning}. {cause.fix}."
    return None
