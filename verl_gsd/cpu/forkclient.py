"""The program that Ray starts instead of Python if workers are forks (``forkserver.py``). It requests a fork and waits.

    python -I -S forkclient.py SOCKET default_worker.py ARGUMENTS...
    python -I -S forkclient.py SOCKET -c PROGRAM ARGUMENTS...

It sends its command, environment, working directory and open files to the server, whose fork becomes the worker. It
stays until the fork has ended, forwards SIGTERM and SIGINT to it, and ends with the fork's exit code or signal. If the
server is gone or fails to import its modules, only time is lost: the client then runs the command as plain Python.

It uses only the standard library, and nothing from this package, because it must start in milliseconds.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    path, *command = sys.argv[1:]
    numbers = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208, pathlib would double the start-up time
        try:
            if os.get_inheritable(int(name)):  # files that Python opens itself are not inheritable
                numbers.append(int(name))
        except OSError:
            pass  # the descriptor with which this folder was listed
    request = json.dumps(
        {
            "command": command,
            "environment": dict(os.environ),
            "folder": os.getcwd(),  # noqa: PTH109
            "numbers": numbers,
        }
    ).encode()
    pid = status = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], numbers)
            connection.sendall(request)
            if connection.recv(1) == b"!":
                pid = connection.recv(4)
        except OSError as error:
            print(
                f"verl-gsd: cannot fork a worker through {path} ({error}). Starting it as plain Python", file=sys.stderr
            )
        if pid:

            def forward(number, _):
                try:  # noqa: SIM105, importing contextlib takes time
                    os.kill(int.from_bytes(pid, "big"), number)
                except ProcessLookupError:
                    pass  # the fork is ending

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, forward)
            while len(status) < 3 and (more := connection.recv(3 - len(status))):
                status += more
    if not pid:
        os.execv(sys.executable, [sys.executable, *command])
    code = (
        int.from_bytes(status[1:], "big", signed=True) if status else 1
    )  # the server is gone, so the exit code is unknown
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
