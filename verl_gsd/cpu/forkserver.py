"""Starts Ray workers, and the processes they spawn, as forks of one process that has imported their modules.

A run consists of about ten Python processes. In each of them, importing torch, vLLM and similar packages takes 10 s or
more of a laptop core, mostly one after the other. Here one process, the server, imports them once while the config of
the run is being checked, and every Ray worker is a fork of it. The ``py_executable`` of the runtime environment makes
Ray start ``forkclient.py``, which sends the command to the server. A worker that spawns processes through
``multiprocessing``, as vLLM does for its engine, starts the same client (``multiprocessing.set_executable``). This is
only used on a CPU, because a process that has used CUDA cannot be forked.

The client represents its fork: it ends as the fork ends, and forwards SIGTERM and SIGINT. If the client is killed, the
server kills the fork a moment later. The client keeps the files it has sent open as long as it lives. Whoever sees them
closed, such as multiprocessing's sentinel, can therefore also learn how the process ended.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import selectors
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from verl_gsd import private_folders
from verl_gsd.cpu import before_verl
from verl_gsd.python_commands import module_command

#: The slow imports of workers, without Ray and modules that import Ray. Ray reads its job's ids on import, and its
#: random generator would be copied into every fork: the tasks of two workers would get the same id.
MODULES = (
    "torch",
    "torch._inductor.lowering",
    "functorch.compile",
    "tensordict",
    "transformers",
    "peft",
    "datasets",
    "scipy.signal",
    "fastapi",
    "openai",
    "setproctitle",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.uniproc_executor",
)

#: The environment variable with the folder for the server's socket, which the launcher creates
#: (``private_folders.run_folder``).
FOLDER = "VERL_GSD_SOCKET_FOLDER"

#: Messages to a client. Its fork sends ``_STARTED`` and its process id; the server sends ``_ENDED`` and the exit code.
_STARTED, _ENDED = b"!", b"."

_CLIENT = Path(__file__).with_name("forkclient.py")


@contextmanager
def _folder() -> Iterator[str]:
    """The folder for the socket: the launcher's, or a new one without a launcher.

    This process holds the launcher's folder too, because the launcher may be killed first.
    """
    if launcher_folder := os.environ.get(FOLDER):
        private_folders.hold(launcher_folder)
        yield launcher_folder
    else:
        with private_folders.run_folder() as new_folder:
            yield new_folder


@contextmanager
def workers_forked(modules: Sequence[str] = MODULES, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a server that imports ``modules``, and yield the command with which Ray must start its workers.

    Args:
        environment: variables that workers have in addition to this process's. Some of them are read on import.
    """
    with _folder() as folder:
        path = f"{folder}/workers"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(64)  # before any process learns the path
            server = subprocess.Popen(
                module_command(__name__, str(listener.fileno()), str(os.getpid()), *modules),
                pass_fds=[listener.fileno()],
                env=os.environ | dict(environment or {}),
            )
        command = shlex.join([sys.executable, "-I", "-S", str(_CLIENT), path])
        executable = Path(f"{path}.sh")
        executable.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        executable.chmod(0o700)
        try:
            yield command
        finally:
            processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


@dataclass(frozen=True)
class _Request:
    """What a fork must become.

    Attributes:
        command: the arguments after the interpreter's name. These are a script and its arguments; or, as
            multiprocessing starts processes, options of the requesting process, ``-c``, a program and its arguments.
        environment: the environment variables.
        folder: the working directory.
        numbers: the client's file descriptors.
        files: descriptors of the same files in this process.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    numbers: list[int]
    files: list[int]

    @property
    def program(self) -> str | None:
        return self.command[self.command.index("-c") + 1] if "-c" in self.command else None

    @property
    def arguments(self) -> list[str]:
        return self.command[self.command.index("-c") + 2 :] if "-c" in self.command else self.command


#: The option of Linux' prctl that sets the signal a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when its ``parent`` ends in any way. Exit if it has already ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was killed before the call above
        sys.exit("The process that launched this one has ended")


def _main(listener: socket.socket, job: int, modules: Sequence[str]) -> None:
    die_with_parent(job, signal.SIGKILL)  # nothing else ends the server if the job is killed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # as Ray does, so that a fork can have a worker's descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    server, before = os.getpid(), dict(os.environ)
    before_verl.patch_vllm()
    for module in modules:
        importlib.import_module(module)
    imports = _ImportEnvironment(before, dict(os.environ))
    gc.collect()
    gc.freeze()  # garbage collection must not write to memory that forks share
    executable = f"{listener.getsockname()}.sh"
    request, connection = _serve(listener, imports)
    _become(request, connection, server)
    if os.access(executable, os.X_OK):  # false if /tmp is mounted with noexec
        multiprocessing.set_executable(executable)
    if request.program is not None:
        # Python would also put the current folder first in sys.path. The requesting process sends its own sys.path.
        sys.argv = ["-c", *request.arguments]
        exec(request.program, {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv = request.arguments
        sys.path.insert(0, str(Path(request.arguments[0]).parent))
        runpy.run_path(request.arguments[0], run_name="__main__")


def _serve(listener: socket.socket, imports: _ImportEnvironment) -> tuple[_Request, socket.socket]:
    """Fork a process for every connection. Kill forks whose client is gone, and tell clients how their forks ended.

    This returns only in the forks.
    """
    clients: dict[int, socket.socket] = {}  # fork's process id -> connection to its client
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler, Python does not write to the wakeup descriptor
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request = _receive(connection, imports)
                    if request and (pid := _fork()) is not None:
                        if pid == 0:
                            selector.close()
                            for other in (listener, ended, wake, *clients.values()):
                                other.close()
                            return request, connection
                        clients[pid] = connection
                        selector.register(connection, selectors.EVENT_READ, pid)
                    else:
                        connection.close()
                    for file in request.files if request else ():
                        os.close(file)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    for pid, status in _reap():
                        if (client := clients.pop(pid, None)) is not None:
                            if client in selector.get_map():
                                selector.unregister(client)
                            with suppress(OSError):  # the client was killed
                                client.send(_ENDED + os.waitstatus_to_exitcode(status).to_bytes(2, "big", signed=True))
                            client.close()
                elif key.data in clients:  # clients send nothing more, so this one has closed its connection
                    os.kill(key.data, signal.SIGKILL)
                    selector.unregister(key.fileobj)


def _fork() -> int | None:
    """``os.fork``; None if the machine cannot start another process."""
    try:
        return os.fork()
    except OSError as error:
        print(f"verl-gsd: a worker starts as plain Python, because the server cannot fork: {error}", file=sys.stderr)
        return None


def _reap() -> Iterator[tuple[int, int]]:
    """The process ids of the forks that have ended, and their wait status."""
    with suppress(ChildProcessError):
        while (pid_and_status := os.waitpid(-1, os.WNOHANG))[0]:
            yield pid_and_status


@dataclass(frozen=True)
class _ImportEnvironment:
    """This process's environment before and after the imports, because some modules set variables on import."""

    before: Mapping[str, str]
    after: Mapping[str, str]

    def add_to(self, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` plus the variables that the imports set, unless it had another value than this process."""
        changed = {name: value for name, value in self.after.items() if self.before.get(name) != value}
        return {**environment, **{n: v for n, v in changed.items() if environment.get(n) == self.before.get(n)}}


#: Variables that vLLM and we set in a worker before it spawns its engine. No module reads them on import.
SET_LATER = (
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
    "VLLM_SSM_CONV_STATE_LAYOUT",
    "VLLM_RPC_BASE_PATH",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",  # trainer/runtime_lora.py; vLLM reads it when its HTTP server starts
)

#: Prefixes of variables that Python and libraries read on import.
_PREFIXES = ("PYTHONPATH", "PYTHONHASHSEED", "HF_", "TRANSFORMERS_", "VLLM_", "OMP_", "KMP_", "GOMP_")


def _read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a fork cannot apply any more. A worker that has other values must start as plain Python."""
    return {k: v for k, v in environment.items() if k.startswith(_PREFIXES) and k not in SET_LATER}


def _receive(connection: socket.socket, imports: _ImportEnvironment) -> _Request | None:
    """A client's request. If it cannot be met, print why and return None."""
    files: list[int] = []
    connection.settimeout(5)  # a suspended client must not block all others
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 250)
        with connection.makefile("rb") as stream:
            fields = json.loads(stream.read(int.from_bytes(size, "big")))
        connection.settimeout(None)
    except (OSError, ValueError) as error:  # the client is suspended, or was killed while it wrote
        problem = f"the request of a worker is incomplete: {error}"
    else:
        request = _Request(**fields | {"environment": imports.add_to(fields["environment"])}, files=files)
        differing = _read_on_import(request.environment).items() ^ _read_on_import(imports.after).items()
        if not differing:
            return request
        names = " ".join(sorted({name for name, _ in differing}))
        problem = f"a worker starts as plain Python, because it has other values of variables read on import: {names}"
    print(f"verl-gsd: {problem}", file=sys.stderr)
    for file in files:
        os.close(file)
    return None


def _become(request: _Request, connection: socket.socket, server: int) -> None:
    """Turn this fork of process ``server`` into what the client would have become, and tell the client."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request.program is not None:
        # If the client is killed, only the server can end this fork, so it must not outlive the server.
        # multiprocessing's resource tracker is an exception: it cleans up and then ends by itself.
        if "resource_tracker" not in request.program:
            die_with_parent(server, signal.SIGKILL)
        if title := sys.modules.get("setproctitle"):
            # vLLM's engine sets its process title. setproctitle locates the title once, by the original environment,
            # so it must do so before the environment changes. Not in Ray's workers: Ray has a similar library of its
            # own, which would then not find the title.
            title.getproctitle()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    # First move all files to unused numbers, because one file may have the number that another needs. The connection
    # stays open until this process ends, so that a client whose server is gone still sees the end of its fork.
    first_free = 1 + max(request.numbers, default=2)
    original_files = connection.detach(), *request.files
    connected, *files = (fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, first_free) for file in original_files)
    for file in original_files:
        os.close(file)
    for number, file in zip(request.numbers, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # otherwise all workers draw the same numbers; Python's own generator reseeds itself
    try:
        os.write(connected, _STARTED + os.getpid().to_bytes(4, "big"))
    except BrokenPipeError:
        sys.exit("The client of this process was killed")


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:])
