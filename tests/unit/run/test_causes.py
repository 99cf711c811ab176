"""The likely cause of a failure, found in lines of real logs, and its fix."""

import re

import pytest

from verl_gsd.run.causes import likely_cause

GPU_FULL = "GPU .*gpu_memory_utilization .*ppo_max_token_len_per_gpu"
GPU_IN_USE = "vLLM .*gpu_memory_utilization .*nvidia-smi"
RAY_KILLED = r"Ray .*memory.*rollout\.n "
LINES = {
    # torch 2.11
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB of "
    "which 1.2 GiB is free.": GPU_FULL,
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": GPU_FULL,
    "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)": r"host memory.*rollout\.n ",
    "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nOSError: [Errno 28] No space "
    "left on device": "disk .*RAY_TMPDIR",
    "OSError: [Errno 122] Disk quota exceeded: '/runs/a/global_step_2'": "disk .*RAY_TMPDIR",
    # vLLM 0.24
    "ValueError: Free memory on device cuda:0 (10.2/79.1 GiB) on startup is less than desired GPU memory utilization "
    "(0.6, 47.5 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.": GPU_IN_USE,
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`": GPU_IN_USE,
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}": (
        "vLLM.* -9 "
    ),
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root "
    "cause.": r"vLLM.*rollout\.n .*ppo_max_token_len_per_gpu",
    # Ray 2.60
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n\tclass_name: WorkerDict\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "exits unexpectedly by a signal.": r"Python error.*rollout\.n ",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.\nMemory on the node (IP: "
    "10.0.0.2, ID: ab) where the task was running was 23.01GB / 24.00GB (0.958), which exceeds the memory usage "
    "threshold of 0.95.": RAY_KILLED,
    "(raylet) 1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed due to other reasons "
    "at node (ID: ab, IP: 10.0.0.2) over the last time period.": RAY_KILLED,
    "[2026-11-28 10:28:39,593 E 773 1053] rpc_client.h:204: Failed to connect to GCS within 20 seconds. GCS may have "
    "been killed.": r"gcs_server\.err",
    "ray.exceptions.ActorUnavailableError: The actor 975f30dd140b79f247c35f7a01000000 is unavailable: The actor is "
    "temporarily unavailable: RpcError: RPC error: Socket closed rpc_code: 14.": r"raylet\.err",
    "Exception: The current node timed out during startup. This could happen because some of the raylet failed": "busy",
    "OSError: [Errno 24] Too many open files: '/data/train.parquet'": "ulimit -n",
    "[rank1]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLREDUCE)": "GPUs .*rank",
}


@pytest.mark.parametrize(("text", "meaning"), LINES.items())
def test_line_has_a_meaning_and_a_fix(text, meaning):
    cause = likely_cause(f"noise\n{text}\nnoise")
    assert cause is not None and re.search(meaning, cause)


def test_specific_cause_is_preferred_to_the_death_of_a_process():
    engine = "CUDA out of memory. Tried to allocate 1 GiB\nEngineDeadError: EngineCore encountered an issue"
    assert likely_cause(engine) == likely_cause(engine.splitlines()[0]) != likely_cause(engine.splitlines()[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "KeyError: 'acc'",
        "The actor is dead because it was killed by `ray.kill`.",
        "INFO gpu_memory_utilization=0.6, disk 40% full",
        "perf/max_memory_allocated_gb:1.2",
    ],
)
def test_lines_of_normal_runs_have_no_cause(text):
    assert likely_cause(text) is None


def test_fewer_responses_per_prompt_are_advised_where_their_number_is_set():
    """rollout.n has no effect on the numbers of responses in the data."""
    cause = likely_cause("std::bad_alloc")
    assert re.search(
        r"data\.max_response_length or actor_rollout_ref\.rollout\.n \(and .*__rollout_n__ .*\) lower", cause
    )
