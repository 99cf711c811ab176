"""Queries the NVIDIA GPUs of this machine, and finds the problems that keep a run from using them.

This module runs ``nvidia-smi`` instead of using NVML's Python bindings. The driver installs nvidia-smi, it creates no
CUDA context in this process, and it works without any Python package. Only ``query``, ``torch_build`` and the
functions ending in ``_here`` look at the machine. All other functions compute from their arguments.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from omegaconf import DictConfig

from verl_gsd.run.cluster_lock import accelerators
from verl_gsd.scalars import is_finite, is_whole

#: Seconds that nvidia-smi may take. If no process keeps the driver loaded, nvidia-smi loads it (about 3 s per GPU).
_QUERY_LIMIT_S = 60
#: Major version of CUDA -> its first driver branch. A wheel for that major version runs on this branch and newer ones.
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
#: A GPU may have this much less memory than ``hardware.gpu_memory_gib`` says: vendors and drivers round differently.
_MEMORY_TOLERANCE = 0.05

#: A GPU counts as unused if at least this share of its memory is free. Drivers and displays use a few percent.
FREE_SHARE = 0.9
#: The fix if this machine lacks the GPUs.
ELSEWHERE = (
    "Add hardware=cpu, submit the run to a cluster (verl-gsd submit), set RAY_ADDRESS to a cluster, or try the line "
    "here with --rehearse"
)
#: The fix if torch or vLLM is not the GPU build.
INSTALL_GPU_STACK = (
    "Run VENV=.venv-gpu EXTRAS=gpu,dev scripts/setup.sh, which creates an environment with the GPU builds"
)


class GpuQueryError(RuntimeError):
    """nvidia-smi failed. The message says how."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses memory of a GPU."""

    pid: int
    name: str
    memory: str


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory is None if nvidia-smi does not report it, as for MIG partitions and unified memory."""

    index: str
    uuid: str
    name: str
    total_mib: int | None
    free_mib: int | None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class Machine:
    """The driver version, the newest CUDA version that it supports, and all GPUs, including hidden ones."""

    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch: its version, and the version of CUDA or ROCm that it is built for."""

    version: str
    cuda: str | None
    hip: str | None = None


@dataclass(frozen=True)
class GpuRequest:
    """The GPUs that a config needs on this machine.

    Attributes:
        key: the keys that set the number of GPUs, with their values, for messages.
        count: number of GPUs.
        memory_gib: memory of each GPU according to the hardware group; None if no group sets it.
        share: share of each GPU's memory that vLLM uses (gpu_memory_utilization); 0 if it is not a number.
    """

    key: str
    count: int
    memory_gib: float | None = None
    share: float = 0.0


def request_of(config: DictConfig, keys: Collection[str]) -> GpuRequest:
    """The GPUs that a run needs on this machine if it does not join a Ray cluster.

    Values that are not numbers count as 0. Another check reports them.

    Args:
        keys: the single keys that the command line overrides.
    """
    trainer, model, hardware = config.trainer, config.reward.reward_model, config.get("hardware", {})
    own_pool = model.enable and model.enable_resource_pool
    counts = [trainer.nnodes, trainer.n_gpus_per_node, *((model.nnodes, model.n_gpus_per_node) if own_pool else ())]
    from_group = "gpus_per_node" in hardware and "trainer.n_gpus_per_node" not in keys
    parts = [f"{'hardware.gpus_per_node' if from_group else 'trainer.n_gpus_per_node'}={trainer.n_gpus_per_node}"]
    parts += [f"trainer.nnodes={trainer.nnodes}"] if trainer.nnodes != 1 else []
    parts += [f"reward.reward_model.n_gpus_per_node={model.n_gpus_per_node}"] if own_pool else []
    memory, share = hardware.get("gpu_memory_gib"), config.actor_rollout_ref.rollout.gpu_memory_utilization
    return GpuRequest(
        ", ".join(parts),
        accelerators(config) if all(is_whole(count, 1) for count in counts) else 0,
        memory if is_finite(memory) else None,
        share if is_finite(share) else 0.0,
    )


def query() -> Machine | None:
    """Ask nvidia-smi for this machine's GPUs.

    Returns:
        None if there is no nvidia-smi: there is no driver, or a container has only CUDA's libraries.

    Raises:
        GpuQueryError: nvidia-smi failed, or its output is not a report.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        completed = subprocess.run(
            [program, "-q", "-x"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_QUERY_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise GpuQueryError(f"nvidia-smi did not finish within {_QUERY_LIMIT_S} s") from error
    except OSError as error:
        raise GpuQueryError(f"nvidia-smi cannot be started: {error}") from error
    if completed.returncode != 0 and not completed.stdout.lstrip().startswith("<?xml"):
        lines = (completed.stdout + completed.stderr).strip().splitlines()
        raise GpuQueryError(f"nvidia-smi fails: {lines[0] if lines else f'exit code {completed.returncode}'}")
    return parse(completed.stdout)


def parse(report: str) -> Machine:
    """Parse the output of ``nvidia-smi -q -x``.

    Raises:
        GpuQueryError: the output is not XML.
    """
    try:
        root = ElementTree.fromstring(report.strip())
    except ElementTree.ParseError as error:
        raise GpuQueryError(f"the output of nvidia-smi is not XML ({error})") from error
    gpus = tuple(_gpu(str(index), element) for index, element in enumerate(root.findall("gpu")))
    return Machine(_text(root, "driver_version"), _text(root, "cuda_version"), gpus)


def visible(gpus: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows to this process.

    Args:
        variable: the value of CUDA_VISIBLE_DEVICES; None if it is not set. CUDA ignores it from the first entry on
            that does not name a GPU. If all GPUs are of the same model, its numbers are those of nvidia-smi.
    """
    if variable is None:
        return tuple(gpus)
    visible_gpus: list[Gpu] = []
    for entry in (part.strip() for part in variable.split(",")):
        if entry.startswith("MIG-"):
            visible_gpus.append(Gpu(entry, entry, "a MIG partition", None, None))
            continue
        matches = [
            gpu for gpu in gpus if gpu.index == entry or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))
        ]
        if len(matches) != 1:
            break
        visible_gpus += matches
    return tuple(visible_gpus)


def count_here() -> int:
    """The number of GPUs that CUDA shows on this machine.

    Without GPUs it returns 1, so that configs of GPU runs can be composed on any machine.
    """
    return len(_visible_here()) or 1


def memory_gib_here() -> int | None:
    """The memory of the smallest GPU that CUDA shows, in whole GiB; None if it is unknown."""
    sizes = [gpu.total_mib for gpu in _visible_here()]
    return min(size for size in sizes if size) // 1024 if sizes and all(sizes) else None


def name_here() -> str | None:
    """The model of the GPUs that CUDA shows, for example "NVIDIA L4"; None if there are none.

    GPUs of several models are listed with commas.
    """
    return ", ".join(dict.fromkeys(gpu.name for gpu in _visible_here())) or None


@functools.cache
def _visible_here() -> tuple[Gpu, ...]:
    """Cached per process: nvidia-smi takes seconds per GPU if no process keeps the driver loaded."""
    try:
        machine = query()
    except GpuQueryError:  # check_accelerators reports it
        return ()
    return visible(machine.gpus, os.environ.get("CUDA_VISIBLE_DEVICES")) if machine else ()


def torch_build() -> TorchBuild | None:
    """The installed torch, without importing it, which takes seconds; None if torch is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    values = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(str(values["__version__"]), values.get("cuda"), values.get("hip"))


def torch_problem(machine: Machine, build: TorchBuild | None) -> str:
    """Why the installed torch cannot use the machine's GPUs, with the fix; an empty string if it can."""
    if build is None:
        return f"torch is not installed. {INSTALL_GPU_STACK}."
    if build.cuda is None:
        return f"torch {build.version} is built without CUDA, but this machine has GPUs. {INSTALL_GPU_STACK}."
    needed, supported = _major(build.cuda), _major(machine.cuda)
    if needed is None or supported is None or needed <= supported:
        return ""
    first_driver = _FIRST_DRIVER.get(needed)
    return (
        f"the NVIDIA driver {machine.driver} supports CUDA up to {machine.cuda}, but torch {build.version} is built "
        f"for CUDA {build.cuda}. Install {f'driver {first_driver} or newer' if first_driver else 'a newer driver'}."
    )


def check_request(
    request: GpuRequest, machine: Machine, build: TorchBuild | None, variable: str | None
) -> Iterator[str]:
    """Check that this machine's GPUs satisfy the request of a run. Each problem names the key and the fix.

    Args:
        variable: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    visible_gpus = visible(machine.gpus, variable)
    if not visible_gpus:
        hidden = f": CUDA_VISIBLE_DEVICES={variable} hides all {len(machine.gpus)} GPUs" if machine.gpus else ""
        fix = "Unset CUDA_VISIBLE_DEVICES, or set it to the GPUs to use" if machine.gpus else ELSEWHERE
        yield f"trainer.device=cuda: no accelerator on this machine{hidden}. {fix}."
        return
    if problem := torch_problem(machine, build):
        yield f"trainer.device=cuda: {problem}"
    yield from check_count(request, len(visible_gpus), variable)
    yield from _check_free_memory(request, visible_gpus)
    if request.memory_gib is not None:
        least = request.memory_gib * (1 - _MEMORY_TOLERANCE)
        small = [gpu for gpu in visible_gpus if gpu.total_mib is not None and gpu.total_mib / 1024 < least]
        for gpu in small[:1]:
            total = (gpu.total_mib or 0) / 1024
            yield (
                f"hardware.gpu_memory_gib={request.memory_gib:g}: GPU {gpu.index} ({gpu.name}) has {total:.1f} GiB. "
                f"Set hardware.gpu_memory_gib={int(total)} to check the model against that size, or use another GPU."
            )


def _check_free_memory(request: GpuRequest, visible_gpus: Sequence[Gpu]) -> Iterator[str]:
    """Report GPUs on which vLLM would not start, because other processes use too much of their memory."""
    for gpu in visible_gpus[: request.count]:
        if gpu.total_mib is None or gpu.free_mib is None or gpu.free_mib >= request.share * gpu.total_mib:
            continue
        yield (
            f"actor_rollout_ref.rollout.gpu_memory_utilization={request.share:g}: vLLM needs this share of GPU "
            f"{gpu.index} ({gpu.name}), but only {gpu.free_mib / 1024:.1f} of its {gpu.total_mib / 1024:.1f} GiB are "
            f"free{'; it is ' if occupied(gpu) else ''}{occupied(gpu)}. Set CUDA_VISIBLE_DEVICES to unused GPUs, end "
            "the processes that use this GPU, or set a smaller share."
        )


def check_count(request: GpuRequest, available: int, variable: str | None) -> Iterator[str]:
    """Check that the ``available`` GPUs are as many as the config needs."""
    if available < request.count:
        restricted = "" if variable is None else f" that CUDA_VISIBLE_DEVICES={variable} shows"
        yield (
            f"{request.key}: the run needs {request.count} GPUs, but this machine has {available}{restricted}. Set a "
            "smaller number, make more GPUs visible, or use a Ray cluster that has them (verl-gsd submit, RAY_ADDRESS)."
        )


def occupied(gpu: Gpu) -> str:
    """Describe the processes that use a GPU's memory; an empty string if the GPU is unused."""
    if gpu.total_mib is None or gpu.free_mib is None or gpu.free_mib >= FREE_SHARE * gpu.total_mib:
        return ""
    if not gpu.processes:
        return "in use by processes that are not visible from here (another container or user)"
    return "in use by " + ", ".join(
        f"{process.name} (pid {process.pid}, {process.memory})" for process in gpu.processes
    )


def _gpu(index: str, element: ElementTree.Element) -> Gpu:
    processes = [
        GpuProcess(int(_text(process, "pid")), _text(process, "process_name"), _text(process, "used_memory"))
        for process in element.findall("processes/process_info")
        if _text(process, "pid").isdecimal()
    ]
    return Gpu(
        index,
        _text(element, "uuid"),
        _text(element, "product_name"),
        _mib(_text(element, "fb_memory_usage/total")),
        _mib(_text(element, "fb_memory_usage/free")),
        tuple(processes),
    )


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _mib(text: str) -> int | None:
    number, _, unit = text.partition(" ")
    return int(number) if unit == "MiB" and number.isdecimal() else None


def _major(version: str) -> int | None:
    number = version.partition(".")[0]
    return int(number) if number.isdecimal() else None
