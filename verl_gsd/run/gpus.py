"""The NVIDIA GPUs of this machine, and what keeps a run from using them.

``nvidia-smi`` reports the GPUs rather than NVML's Python bindings: the driver brings it, it starts no CUDA context in
this process, and it works where no Python package does. Every function here except ``query`` and ``torch_build``
computes from values.
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
from verl_gsd.sections import is_finite, is_whole

#: Seconds that nvidia-smi may take. It loads the driver first where no process keeps it loaded (about 3 s per GPU).
_QUERY_LIMIT_S = 60
#: The first driver branch for each major version of CUDA. A wheel of one major version runs on all of its drivers.
_FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
#: A GPU may have this much less memory than ``hardware.gpu_memory_gib`` says: vendors and drivers round differently.
_MEMORY_TOLERANCE = 0.05

#: The share of a GPU's memory that is free at least where nobody uses it. Drivers and displays keep a few per cent.
FREE_SHARE = 0.9
#: Where to run what this machine has no GPUs for.
ELSEWHERE = "Add hardware=cpu, send the run to a cluster (verl-gsd submit), or set RAY_ADDRESS to a cluster"
#: What brings torch and vLLM for GPUs.
INSTALL_GPU_STACK = "Run VENV=.venv-gpu EXTRAS=gpu,dev scripts/setup.sh, which makes an environment with the GPU build"


class GpuQueryError(RuntimeError):
    """nvidia-smi fails; the message says how."""


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    name: str
    memory: str


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory is None where nvidia-smi does not report it: in partitions (MIG) and on unified memory."""

    index: str
    uuid: str
    name: str
    total_mib: int | None
    free_mib: int | None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class Machine:
    """The driver, the newest CUDA version that it supports, and all GPUs, hidden ones included."""

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
class Request:
    """What a config asks of this machine's GPUs.

    Attributes:
        key: the key that sets the number, with its value, for messages.
        count: GPUs that the run needs on this machine.
        memory_gib: what the hardware group says that a GPU holds; None if no group says.
        share: of each GPU's memory that vLLM takes, with its key; 0 if it is not a number.
    """

    key: str
    count: int
    memory_gib: float | None = None
    share: float = 0.0


def request_of(config: DictConfig, keys: Collection[str]) -> Request:
    """What a run without a Ray cluster asks of this machine.

    Args:
        keys: the keys that the command line overrides one by one.

    A value that is not a number is taken for 0: the check of numbers reports it.
    """
    trainer, model, hardware = config.trainer, config.reward.reward_model, config.get("hardware", {})
    own_pool = model.enable and model.enable_resource_pool
    counts = [trainer.nnodes, trainer.n_gpus_per_node, *((model.nnodes, model.n_gpus_per_node) if own_pool else ())]
    from_group = "gpus_per_node" in hardware and "trainer.n_gpus_per_node" not in keys
    parts = [f"{'hardware.gpus_per_node' if from_group else 'trainer.n_gpus_per_node'}={trainer.n_gpus_per_node}"]
    parts += [f"trainer.nnodes={trainer.nnodes}"] if trainer.nnodes != 1 else []
    parts += [f"reward.reward_model.n_gpus_per_node={model.n_gpus_per_node}"] if own_pool else []
    memory, share = hardware.get("gpu_memory_gib"), config.actor_rollout_ref.rollout.gpu_memory_utilization
    return Request(
        ", ".join(parts),
        accelerators(config) if all(is_whole(count, 1) for count in counts) else 0,
        memory if is_finite(memory) else None,
        share if is_finite(share) else 0.0,
    )


def query() -> Machine | None:
    """This machine's GPUs; None if there is no nvidia-smi: no driver, or a container that has only CUDA's libraries.

    Raises:
        GpuQueryError: nvidia-smi fails, or prints what is not its report.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-q", "-x"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_QUERY_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise GpuQueryError(f"nvidia-smi does not answer within {_QUERY_LIMIT_S} s") from error
    except OSError as error:
        raise GpuQueryError(f"nvidia-smi does not start: {error}") from error
    if done.returncode != 0 and not done.stdout.lstrip().startswith("<?xml"):
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise GpuQueryError(f"nvidia-smi fails: {lines[0] if lines else f'exit code {done.returncode}'}")
    return parse(done.stdout)


def parse(report: str) -> Machine:
    """What ``nvidia-smi -q -x`` printed.

    Raises:
        GpuQueryError: it is no such report.
    """
    try:
        root = ElementTree.fromstring(report.strip())
    except ElementTree.ParseError as error:
        raise GpuQueryError(f"nvidia-smi prints no XML ({error})") from error
    gpus = tuple(_gpu(str(index), element) for index, element in enumerate(root.findall("gpu")))
    return Machine(_text(root, "driver_version"), _text(root, "cuda_version"), gpus)


def visible(gpus: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows to this process.

    Args:
        variable: the value of CUDA_VISIBLE_DEVICES; None if it is not set. CUDA reads it up to the first entry that
            names no GPU. Its numbers are nvidia-smi's on machines with GPUs of one kind.
    """
    if variable is None:
        return tuple(gpus)
    shown: list[Gpu] = []
    for entry in (part.strip() for part in variable.split(",")):
        if entry.startswith("MIG-"):
            shown.append(Gpu(entry, entry, "a MIG partition", None, None))
            continue
        named = [gpu for gpu in gpus if gpu.index == entry or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))]
        if len(named) != 1:
            break
        shown += named
    return tuple(shown)


def count_here() -> int:
    """GPUs of this machine that CUDA shows; 1 where there are none, for a config that is composed elsewhere."""
    return len(_visible_here()) or 1


def memory_gib_here() -> int | None:
    """Whole GiB of the smallest GPU that CUDA shows; None where that is not known."""
    sizes = [gpu.total_mib for gpu in _visible_here()]
    return min(size for size in sizes if size) // 1024 if sizes and all(sizes) else None


@functools.cache
def _visible_here() -> tuple[Gpu, ...]:
    """Asked once per process: nvidia-smi takes seconds per GPU where no process keeps the driver loaded."""
    try:
        machine = query()
    except GpuQueryError:  # accelerator_present reports it
        return ()
    return visible(machine.gpus, os.environ.get("CUDA_VISIBLE_DEVICES")) if machine else ()


def torch_build() -> TorchBuild | None:
    """The installed torch, read without importing it (seconds); None if there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    values = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return TorchBuild(str(values["__version__"]), values.get("cuda"), values.get("hip"))


def torch_problem(machine: Machine, build: TorchBuild | None) -> str:
    """Why the installed torch cannot use the machine's GPUs, with the remedy; an empty string if it can."""
    if build is None:
        return f"torch is not installed. {INSTALL_GPU_STACK}."
    if build.cuda is None:
        return f"torch {build.version} is built without CUDA, and this machine has GPUs. {INSTALL_GPU_STACK}."
    wheel, supported = _major(build.cuda), _major(machine.cuda)
    if wheel is None or supported is None or wheel <= supported:
        return ""
    newer = _FIRST_DRIVER.get(wheel)
    return (
        f"the NVIDIA driver {machine.driver} supports CUDA up to {machine.cuda}, and torch {build.version} is built "
        f"for CUDA {build.cuda}. Install {f'driver {newer} or newer' if newer else 'a newer driver'}."
    )


def request_problems(
    request: Request, machine: Machine, build: TorchBuild | None, variable: str | None
) -> Iterator[str]:
    """What this machine's GPUs lack for a run, each with the key and the remedy.

    Args:
        variable: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    shown = visible(machine.gpus, variable)
    if not shown:
        hidden = f": CUDA_VISIBLE_DEVICES={variable} hides all {len(machine.gpus)} GPUs" if machine.gpus else ""
        fix = "Unset CUDA_VISIBLE_DEVICES, or set it to the GPUs to use" if machine.gpus else ELSEWHERE
        yield f"trainer.device=cuda: no accelerator on this machine{hidden}. {fix}."
        return
    if problem := torch_problem(machine, build):
        yield f"trainer.device=cuda: {problem}"
    yield from count_problems(request, len(shown), variable)
    yield from _occupied_problems(request, shown)
    if request.memory_gib is not None:
        least = request.memory_gib * (1 - _MEMORY_TOLERANCE)
        small = [gpu for gpu in shown if gpu.total_mib is not None and gpu.total_mib / 1024 < least]
        for gpu in small[:1]:
            there = (gpu.total_mib or 0) / 1024
            yield (
                f"hardware.gpu_memory_gib={request.memory_gib:g}: GPU {gpu.index} ({gpu.name}) has {there:.1f} GiB. "
                f"Set hardware.gpu_memory_gib={int(there)} to check the model against that, or use another GPU."
            )


def _occupied_problems(request: Request, shown: Sequence[Gpu]) -> Iterator[str]:
    """GPUs on which vLLM would not start, because others hold too much of their memory."""
    for gpu in shown[: request.count]:
        if gpu.total_mib is None or gpu.free_mib is None or gpu.free_mib >= request.share * gpu.total_mib:
            continue
        yield (
            f"actor_rollout_ref.rollout.gpu_memory_utilization={request.share:g}: vLLM needs that share of GPU "
            f"{gpu.index} ({gpu.name}), and {gpu.free_mib / 1024:.1f} of its {gpu.total_mib / 1024:.1f} GiB are free"
            f"{'; it is ' if occupied(gpu) else ''}{occupied(gpu)}. Set CUDA_VISIBLE_DEVICES to free GPUs, end what "
            "uses it, or set a smaller share."
        )


def count_problems(request: Request, there: int, variable: str | None) -> Iterator[str]:
    """Fewer GPUs than the config asks for."""
    if there < request.count:
        shown = "" if variable is None else f" that CUDA_VISIBLE_DEVICES={variable} shows"
        yield (
            f"{request.key}: the run needs {request.count} GPUs, and this machine has {there}{shown}. Set fewer, show "
            "more, or join a Ray cluster that has them (verl-gsd submit, RAY_ADDRESS)."
        )


def occupied(gpu: Gpu) -> str:
    """Who holds memory of a GPU, in words; an empty string if nobody does."""
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
