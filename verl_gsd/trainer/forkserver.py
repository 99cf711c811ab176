"""Ray workers, and what they spawn, as forks of one process that has imported what they all need.

A run is some ten Python processes, and importing torch, vLLM and their like takes each of them 10 s and more of a
laptop's core, mostly one after the other. Here one process imports them once, while the run's config is being checked,
and every Ray worker is a fork of it: Ray is told (``py_executable`` of its runtime environment) to start
``forkclient.py``, which hands the command over. A worker that spawns processes through ``multiprocessing``, as vLLM
does for its engine, starts that client too (``multiprocessing.set_executable``). On a CPU alone: a process that has
touched CUDA cannot be forked.

The client stands for its fork: it ends as the fork ends, passes on SIGTERM and SIGINT, and takes the fork with it if it
is killed.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import multiprocessing
import os
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

from verl_gsd.trainer import cpu_before_verl, private_folders

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

#: Environment variable: a folder for the server's socket, which the launcher has made (``private_folders.of_run``).
FOLDER = "VERL_GSD_SOCKET_FOLDER"

_CLIENT = Path(__file__).with_name("forkclient.py")


@contextmanager
def _folder() -> Iterator[str]:
    """The launcher's, which is held here too: the launcher may be killed first. Without a launcher, a new one."""
    if given := os.environ.get(FOLDER):
        private_folders.hold(given)
        yield given
    else:
        with private_folders.of_run() as made:
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
                [sys.executable, "-m", __name__, str(listener.fileno()), *modules],
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
        command: what stands behind the interpreter's name: a script, or ``-c`` and a program, and arguments.
        numbers: the descriptors that the client has.
        files: descriptors of the same files in this process.
    """

    command: list[str]
    environment: dict[str, str]
    folder: str
    numbers: list[int]
    files: list[int]


def _main(listener: socket.socket, modules: Sequence[str]) -> None:
    cpu_before_verl.patch_vllm()
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection touches it
    executable = f"{listener.getsockname()}.sh"
    command = _serve(listener).command
    if os.access(executable, os.X_OK):  # not where /tmp allows no programs
        multiprocessing.set_executable(executable)
    if "-c" in command:  # as multiprocessing starts it; options before are those of the process that asked
        _, program, *arguments = command[command.index("-c") :]
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


def _serve(listener: socket.socket) -> _Request:
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
                    if (request := _receive(connection)) is None:
                        connection.close()
                        continue
                    if (pid := os.fork()) == 0:
                        selector.close()
                        for other in (listener, ended, wake, *forks.values()):
                            other.close()
                        _take_over(request, connection)
                        return request
                    forks[pid] = connection
                    selector.register(connection, selectors.EVENT_READ, pid)
                    _tell(connection, b"!")
                    for file in request.files:
                        os.close(file)
                elif key.fileobj is ended:
                    ended.recv(4096)
                    for pid, status in _reaped():
                        connection = forks.pop(pid)
                        if connection in selector.get_map():
                            selector.unregister(connection)
                        _tell(connection, os.waitstatus_to_exitcode(status).to_bytes(2, "big", signed=True))
                        connection.close()
                elif key.data in forks and not _pass_on(forks[key.data], key.data):
                    selector.unregister(key.fileobj)


def _tell(client: socket.socket, word: bytes) -> None:
    with suppress(OSError):  # it was killed
        client.send(word)


def _pass_on(client: socket.socket, pid: int) -> bool:
    """Send the fork the signal that its client got; whether the client lives. A client that was killed got SIGKILL."""
    try:
        number = client.recv(1)
    except OSError:
        number = b""
    os.kill(pid, number[0] if number else signal.SIGKILL)
    return bool(number)


def _reaped() -> Iterator[tuple[int, int]]:
    """The forks that have ended, with their wait status."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found


#: What vLLM and we set in a worker that is to spawn its engine. Nothing reads them on import.
SET_LATER = (
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_DISABLE_SHARED_EXPERTS_STREAM",
    "VLLM_SSM_CONV_STATE_LAYOUT",
    "VLLM_RPC_BASE_PATH",
)


def _read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that come too late for a fork: one that differs in them is declined, and starts as Python."""
    names = ("PYTHONPATH", "PYTHONHASHSEED", "OMP_NUM_THREADS")
    return {
        name: value
        for name, value in environment.items()
        if name in names or (name.startswith(("HF_", "TRANSFORMERS_", "VLLM_")) and name not in SET_LATER)
    }


def _receive(connection: socket.socket) -> _Request | None:
    """What a client asks for; None, and a line that says why, if it cannot be had."""
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 250)
        with connection.makefile("rb") as stream:
            request = _Request(**json.loads(stream.read(int.from_bytes(size, "big"))), files=files)
    except (OSError, ValueError) as error:  # a client that was killed while it wrote
        print(f"verl-gsd: a worker's request was cut off: {error}", file=sys.stderr)
        return None
    asked, here = _read_on_import(request.environment), _read_on_import(os.environ)
    if asked == here:
        return request
    names = " ".join(sorted({name for name, _ in asked.items() ^ here.items()}))
    print(f"verl-gsd: a worker starts as Python, for imports read what differs in it: {names}", file=sys.stderr)
    for file in files:
        os.close(file)
    return None


def _take_over(request: _Request, connection: socket.socket) -> None:
    """Make this fork what the client would have become."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if "-c" in request.command and (title := sys.modules.get("setproctitle")):
        # vLLM's engine names itself. The place of the name is found once, by the environment of the start. Not in
        # Ray's workers: Ray brings another such library, which then finds nothing.
        title.getproctitle()
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    # Out of the way first: a file may have the number that another one is to get. The connection stays open until this
    # process ends, which is how the client knows if the server is gone.
    connected, *files = (fcntl.fcntl(file, fcntl.F_DUPFD, 512) for file in (connection.detach(), *request.files))
    os.set_inheritable(connected, False)
    for number, file in zip(request.numbers, files, strict=True):
        os.dup2(file, number)
        os.close(file)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # or every worker draws the same numbers; Python's own generator reseeds itself


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
