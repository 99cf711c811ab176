"""Prepares a process for the CPU before it imports verl: environment variables, and patches of vLLM.

This module does not import verl, because verl imports Ray, and the fork server must import vLLM without Ray.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import Any

import wrapt

#: The environment variable that enables the CPU platform.
SWITCH = "VERL_GSD_CPU"

#: Environment variables for Ray, vLLM and OpenMP, also in processes that we do not start ourselves. Values that the
#: user has set are kept.
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    # verl registers its FSDP engines only under "cuda" and "npu". This is the key of the registry, not a device.
    "VERL_ENGINE_DEVICE": "cuda",
    # Several worker processes share few cores, so more threads per process would only compete.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lets vLLM's engine process run the model itself (hardware=cpu sets the executor "uni"). A second process would
    # take 20 s to start and would spin on shared memory while it waits. The engine remains a separate process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # In GiB. By default each vLLM replica would reserve a share of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def requested() -> bool:
    """Whether this process's environment enables the CPU platform."""
    return os.environ.get(SWITCH) == "1"


def set_environment() -> None:
    """Set the variables of ``ENVIRONMENT`` that this process's environment does not have."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@functools.cache  # once per process, and not again in its forks
def patch_vllm() -> None:
    """Patch vLLM in this process.

    Call this before vLLM is imported, because its modules import the patched functions from each other.
    """
    _patch_version()
    wrapt.when_imported("vllm.model_executor.layers.utils")(_patch_linear)


def _patch_version() -> None:
    """Let ``version("vllm")`` return a version although the installed distribution is called ``vllm-cpu``.

    vLLM selects its CPU platform if this string contains "cpu", and verl compares the string with vLLM's releases.
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
    """Keep the weight of linear layers and multiply by it directly.

    vLLM's CPU kernels repack a linear weight and free the original. The next weight synchronisation would then have no
    tensor to copy into.
    """
    from torch.nn.functional import linear

    @functools.wraps(layers.dispatch_cpu_unquantized_gemm)
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    layers.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm
