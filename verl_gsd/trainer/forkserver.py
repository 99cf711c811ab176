"""Ray workers as forks of one process that has imported what they all need.

A run is some ten Python processes, and importing torch and its like takes each of them 10 s and more of a laptop's
core, mostly one after the other. Here one process imports them once, while the run's config is being checked, and every
Ray worker is a fork of it: Ray is told (``py_executable`` of its runtime environment) to start ``forkclient.py``, which
hands the command over. On a CPU alone: a process that has touched CUDA cannot be forked.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from verl_gsd.trainer import private_folders

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
                # One thread a process: trainer/cpu.py says why.
                env={"OMP_NUM_THREADS": "1"} | os.environ | dict(environment or {}),
            )
        try:
            yield shlex.join([sys.executable, "-I", "-S", str(_CLIENT), path])
        finally:
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            server.wait()


@dataclass(frozen=True)
class _Request:
    """A worker to become: its command line, environment and folder, and where its standard streams go."""

    command: list[str]
    environment: dict[str, str]
    folder: str
    streams: list[int]


def _main(listener: socket.socket, modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection touches it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # workers that have ended leave no zombie
    script, *_ = sys.argv = _serve(listener).command
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def _serve(listener: socket.socket) -> _Request:
    """Fork a worker for every connection; returns in the workers alone."""
    while True:
        connection, _ = listener.accept()
        try:
            request = _receive(connection)
        except (OSError, ValueError) as error:  # a client that was killed while it wrote
            print(f"verl-gsd: a worker's request was cut off: {error}", file=sys.stderr)
            connection.close()
            continue
        if _read_on_import(request.environment) == _read_on_import(os.environ) and os.fork() == 0:
            listener.close()
            _take_over(request)
            connection.send(b"!")
            connection.detach()  # open until this process ends, which is how the client knows
            return request
        connection.close()
        for stream in request.streams:
            os.close(stream)


def _read_on_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that come too late for a fork: one that differs in them is declined, and starts as Python."""
    names = ("PYTHONPATH", "PYTHONHASHSEED", "OMP_NUM_THREADS")
    return {k: v for k, v in environment.items() if k in names or k.startswith(("HF_", "TRANSFORMERS_"))}


def _receive(connection: socket.socket) -> _Request:
    size, streams, _, _ = socket.recv_fds(connection, 8, 2)
    with connection.makefile("rb") as file:
        content: dict[str, Any] = json.loads(file.read(int.from_bytes(size, "big")))
    return _Request(**content, streams=streams)


def _take_over(request: _Request) -> None:
    """Make this fork what the client would have become."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    for target, stream in zip((1, 2), request.streams, strict=True):
        os.dup2(stream, target)
        os.close(stream)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # or every worker draws the same numbers; Python's own generator reseeds itself


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
