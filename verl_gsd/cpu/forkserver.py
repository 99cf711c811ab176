"""Ray workers, and what they spawn, as forks of one process that has imported what they all need.

A run is some ten Python processes, and importing torch, vLLM and their like takes each of them 10 s and more of a
laptop's core, mostly one after the other. Here one process imports them once, while the run's config is being checked,
and every Ray worker is a fork of it: Ray is told (``py_executable`` of its runtime environment) to start
``forkclient.py``, which hands the command over. A worker that spawns processes through ``multiprocessing``, as vLLM
does for its engine, starts that client too (``multiprocessing.set_executable``). On a CPU alone: a process that has
touched CUDA cannot be forked.

The client stands for its fork: it ends as the fork ends, and passes on SIGTERM and SIGINT. If it is killed, the server
kills the fork a moment later. It keeps the files that it has handed over as long as it lives, so that whoever sees them
closed (multiprocessing's sentinel) also finds how the process ended.
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

#: The heavy part of what workers import, Ray and what imports Ray left out: Ray reads the numbers of its job on import,
#: and its random generator, copied into every fork, would give two workers' tasks the same identifier.
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

#: Environment variable: a folder for the server's socket, which the launcher has made (``private_folders.run_folder``).
FOLDER = "VERL_GSD_SOCKET_FOLDER"

#: What a client is told. By its fork: that the fork runs, and its process id. By the server: how the fork ended.
_TAKEN, _ENDED = b"!", b"."

_CLIENT = Path(__file__).with_name("forkclient.py")


@contextmanager
def _folder() -> Iterator[str]:
    """The launcher's, which is held here too: the launcher may be killed first. Without a launcher, a new one."""
    if given := os.environ.get(FOLDER):
        private_folders.hold(given)
        yield given
    else:
        with private_folders.run_folder() as made:
            yield made


@contextmanager
def workers_forked(modules: Sequence[str] = MODULES, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start a server that imports ``modules``, and yield the command that Ray is to start its workers with.

    Args:
        environment: what workers will have in theirs beyond this process's; some of it is read on import.
    """
    with _folder() as folder:
        path = f"{folder}/workers"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(64)  # before anybody is told the path
            server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid()), *modules],
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
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


@dataclass(frozen=True)
class _Request:
    """A process to become: its command line, environment and folder, and its open files.

    Attributes:
        command: what stands behind the interpreter's name: a script and arguments, or ``-c``, a program and arguments,
            as multiprocessing has it, behind options of the process that asked.
        numbers: the descriptors that the client has.
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


#: Of Linux' prctl: the signal this process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def end_with(launcher: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Have this process get a signal when its parent, the ``launcher``, ends in any way; exit if it has ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != launcher:  # killed before that was said
        sys.exit("the launcher of this process has ended")


def _main(listener: socket.socket, job: int, modules: Sequence[str]) -> None:
    end_with(job, signal.SIGKILL)  # nobody else ends it where the job is killed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # as Ray raises its own, so that a worker's descriptors have room in a fork
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    server, before = os.getpid(), dict(os.environ)
    before_verl.patch_vllm()
    for module in modules:
        importlib.import_module(module)
    imports = _Imports(before, dict(os.environ))
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection touches it
    executable = f"{listener.getsockname()}.sh"
    request, connection = _serve(listener, imports)
    _take_over(request, connection, server)
    if os.access(executable, os.X_OK):  # not where /tmp allows no programs
        multiprocessing.set_executable(executable)
    if request.program is not None:
        sys.argv, sys.path[0] = ["-c", *request.arguments], ""
        exec(request.program, {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv, sys.path[0] = request.arguments, str(Path(request.arguments[0]).parent)
        runpy.run_path(request.arguments[0], run_name="__main__")


def _serve(listener: socket.socket, imports: _Imports) -> tuple[_Request, socket.socket]:
    """Fork a process for every connection, and tell each end of the other's; returns in the forks alone."""
    forks: dict[int, socket.socket] = {}  # by process id: the connection with the client
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler nothing is written
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request = _receive(connection, imports)
                    if request and (pid := _forked()) is not None:
                        if pid == 0:
                            selector.close()
                            for other in (listener, ended, wake, *forks.values()):
                                other.close()
                            return request, connection
                        forks[pid] = connection
                        selector.register(connection, selectors.EVENT_READ, pid)
                    else:
                        connection.close()
                    for file in request.files if request else ():
                        os.close(file)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    for pid, status in _reaped():
                        if (client := forks.pop(pid, None)) is not None:
                            if client in selector.get_map():
                                selector.unregister(client)
                            with suppress(OSError):  # it was killed
                                client.send(_ENDED + os.waitstatus_to_exitcode(status).to_bytes(2, "big", signed=True))
                            client.close()
                elif key.data in forks:  # a client says nothing: it is gone
                    os.kill(key.data, signal.SIGKILL)
                    selector.unregister(key.fileobj)


def _forked() -> int | None:
    """As ``os.fork``; None if the machine has no room for another process."""
    try:
        return os.fork()
    except OSError as error:
        print(f"verl-gsd: a worker starts as Python: {error}", file=sys.stderr)
        return None


def _reaped() -> Iterator[tuple[int, int]]:
    """The forks that have ended, with their wait status."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found


@dataclass(frozen=True)
class _Imports:
    """This process's environment before the imports and after them: some set variables in it."""

    before: Mapping[str, str]
    after: Mapping[str, str]

    def on(self, environment: Mapping[str, str]) -> dict[str, str]:
        """``environment`` with what the imports set, but for variables that had another value in it at the start."""
        changed = {name: value for name, value in self.after.items() if self.before.get(name) != value}
        return {**environment, **{n: v for n, v in changed.items() if environment.get(n) == self.before.get(n)}}


#: What vLLM and we set in a worker that is to spawn its engine. Nothing reads them on import.
SET_LATER = (
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
    "VLLM_SSM_CONV_STATE_LAYOUT",
    "VLLM_RPC_BASE_PATH",
)


#: Beginnings of the names of variables that Python and libraries read on import.
_PREFIXES = ("PYTHONPATH", "PYTHONHASHSEED", "HF_", "TRANSFORMERS_", "VLLM_", "OMP_", "KMP_", "GOMP_")


def _read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that come too late for a fork: one that differs in them is declined, and starts as Python."""
    return {k: v for k, v in environment.items() if k.startswith(_PREFIXES) and k not in SET_LATER}


def _receive(connection: socket.socket, imports: _Imports) -> _Request | None:
    """What a client asks for; None, and a line that says why, if it cannot be had."""
    files: list[int] = []
    connection.settimeout(5)  # a client that is stopped must not stop all others
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 250)
        with connection.makefile("rb") as stream:
            asked = json.loads(stream.read(int.from_bytes(size, "big")))
        connection.settimeout(None)
    except (OSError, ValueError) as error:  # or was killed while it wrote
        problem = f"a worker's request was cut off: {error}"
    else:
        request = _Request(**asked | {"environment": imports.on(asked["environment"])}, files=files)
        differing = _read_on_import(request.environment).items() ^ _read_on_import(imports.after).items()
        if not differing:
            return request
        names = " ".join(sorted({name for name, _ in differing}))
        problem = f"a worker starts as Python, for imports read what differs in it: {names}"
    print(f"verl-gsd: {problem}", file=sys.stderr)
    for file in files:
        os.close(file)
    return None


def _take_over(request: _Request, connection: socket.socket, server: int) -> None:
    """Make this fork of process ``server`` what the client would have become, and tell the client so."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request.program is not None:
        # The server alone could end it where its client is killed. multiprocessing's tracker of resources cleans up and
        # then ends by itself.
        if "resource_tracker" not in request.program:
            end_with(server, signal.SIGKILL)
        if title := sys.modules.get("setproctitle"):
            # vLLM's engine names itself. The place of the name is found once, by the environment of the start. Not in
            # Ray's workers: Ray brings another such library, which then finds nothing.
            title.getproctitle()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    # Out of the way first: a file may have the number that another one is to get. The connection stays open until this
    # process ends, which is how the client knows if the server is gone.
    first_free = 1 + max(request.numbers, default=2)
    held = connection.detach(), *request.files
    connected, *files = (fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, first_free) for file in held)
    for file in held:
        os.close(file)
    for number, file in zip(request.numbers, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # or every worker draws the same numbers; Python's own generator reseeds itself
    try:
        os.write(connected, _TAKEN + os.getpid().to_bytes(4, "big"))
    except BrokenPipeError:
        sys.exit("the client of this process was killed")


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:])
