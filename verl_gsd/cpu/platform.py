"""The whole stack on a CPU: verl's platform for it, and the patches of verl and torch that this takes.

What comes before verl is imported is in ``before_verl.py``.

Asked for by ``VERL_GSD_CPU=1`` (``hardware=cpu`` sets it) and inert otherwise, so that a machine with GPUs never picks
it by itself. ``activate`` runs from the plugin, hence in every process that imports verl: driver, Ray workers, and the
processes vLLM spawns. Each patch says why it is there; ``tests/contract/test_cpu_patches.py`` says when it can go.
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

SWITCH = "VERL_GSD_CPU"


def requested() -> bool:
    """Whether the CPU platform was asked for in this process."""
    return os.environ.get(SWITCH) == "1"


def activate() -> None:
    """Make this process run verl on the CPU: environment, platform, patches. Safe to call again."""
    if PlatformRegistry.get("cpu") is PlatformCPU:
        return
    before_verl.set_environment()
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    if platform_manager._current_platform is not None:  # something asked before the plugin was loaded
        platform_manager.set_platform(PlatformCPU())
    before_verl.patch_vllm()
    _patch_process_group_backend()
    wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")(_patch_fsdp_pinned_memory)


class _CpuDevice(ModuleType):
    """``torch.cpu`` with the calls verl makes on a device module that ``torch.cpu`` lacks.

    A module object of our own: ``torch.cpu`` itself stays as it is. Memory figures are the process's own view of a
    device that has no memory pool: nothing allocated, nothing reserved.
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
        """A CPU keeps no cache of freed blocks."""

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
    """A CPU dressed as verl's accelerator.

    Ray counts it as logical GPUs (``ray_kwargs.ray_init.num_gpus`` says how many), so that verl's placement groups work
    unchanged; collectives run on gloo; weights reach vLLM through shared memory.
    """

    device_name = "cpu"
    vendor_name = "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return requested()

    def current_device(self) -> str:  # type: ignore[override]  # a torch.device argument: there is no CPU index
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one CPU and it is always current."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU operations are synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        """The CPU allocator has no such settings."""

    def empty_cache(self) -> None:
        """The CPU allocator keeps no cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"  # what Ray sets for logical GPUs

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
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def cudart(self) -> None:
        return None


def _patch_process_group_backend() -> None:
    """verl asks for ``cpu:gloo,<device>:<backend>``; with the device "cpu" torch refuses the doubled key."""
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group


def _patch_fsdp_pinned_memory(engine_module: Any) -> None:
    """The reference model's offload policy pins memory, for which torch wants an accelerator."""
    policy = engine_module.CPUOffloadPolicy
    engine_module.CPUOffloadPolicy = lambda pin_memory=True: policy(pin_memory=False)
