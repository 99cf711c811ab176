"""Runs the whole stack on a CPU: a CPU platform for verl, and the patches of verl and torch that it needs.

Everything that must happen before verl is imported is in ``before_verl.py``.

``VERL_GSD_CPU=1`` enables the platform, and ``hardware=cpu`` sets this variable. Without it, this module changes
nothing, so that a machine with GPUs never selects the CPU by accident. The plugin calls ``activate`` in every process
that imports verl: the driver, Ray workers, and the processes that vLLM spawns. Each patch says why it exists, and
``tests/contract/test_cpu_patches.py`` fails when it can be removed.
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import wrapt
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from verl_gsd.cpu import before_verl


def activate() -> None:
    """Make this process run verl on the CPU: set the environment, register the platform, apply the patches.

    Further calls do nothing.
    """
    if PlatformRegistry.get("cpu") is PlatformCPU:
        return
    before_verl.set_environment()
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    if platform_manager._current_platform is not None:  # verl selected a platform before it loaded the plugin
        platform_manager.set_platform(PlatformCPU())
    before_verl.patch_vllm()
    _patch_process_group_backend()
    wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")(_patch_fsdp_pinned_memory)


class _CpuDevice(ModuleType):
    """``torch.cpu`` plus the functions that verl calls on a device module and ``torch.cpu`` lacks.

    This is a separate module object; ``torch.cpu`` itself is unchanged. Allocated and reserved memory are 0, because a
    CPU has no memory pool.
    """

    def __init__(self) -> None:
        super().__init__("verl_gsd.cpu.platform.device")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    memory_reserved = max_memory_allocated = max_memory_reserved = memory_allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page

    def empty_cache(self) -> None:
        """Do nothing: a CPU keeps no cache of freed blocks."""

    ipc_collect = reset_peak_memory_stats = empty_cache

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"


_DEVICE = _CpuDevice()


class PlatformCPU(PlatformBase):
    """The CPU as a platform of verl.

    Ray counts it as ``ray_kwargs.ray_init.num_gpus`` logical GPUs, so that verl's placement groups work unchanged.
    Collectives run on gloo. Weights reach vLLM through shared memory.
    """

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return before_verl.requested()

    def current_device(self) -> str:  # type: ignore[override]  # an argument of torch.device; a CPU has no index
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """Do nothing: there is one CPU, and it is always current."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Do nothing: CPU operations are synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        """Do nothing: the CPU allocator has no such settings."""

    def empty_cache(self) -> None:
        """Do nothing: the CPU allocator keeps no cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # Ray sets it for logical GPUs

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None:
        """Do nothing: there is no device profiler."""

    def profiler_stop(self) -> None:
        """Do nothing: there is no device profiler."""

    def cudart(self) -> None:
        return None


def _patch_process_group_backend() -> None:
    """Replace the backend "cpu:gloo,cpu:gloo" by "gloo".

    verl uses ``cpu:gloo,<device>:<backend>``. With the device "cpu" the key occurs twice, which torch rejects.
    """
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _patch_fsdp_pinned_memory(engine_module: Any) -> None:
    """Turn off pinned memory in the reference model's offload policy, because torch needs an accelerator for it."""
    policy = engine_module.CPUOffloadPolicy
    engine_module.CPUOffloadPolicy = lambda pin_memory=True: policy(pin_memory=False)
