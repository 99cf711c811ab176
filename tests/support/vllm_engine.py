"""A program: start vLLM with verl's extension of its workers, and print the sockets that they receive weights over."""

import sys

from vllm import LLM

if __name__ == "__main__":
    engine = LLM(
        model=sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        gpu_memory_utilization=0.05,
        distributed_executor_backend="mp",
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
    )
    print("HANDLES", engine.collective_rpc("_get_zmq_handle"))
