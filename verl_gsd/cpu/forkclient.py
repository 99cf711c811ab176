"""What is started instead of Python where workers are forked (``forkserver.py``): hand the command over and wait.

    python -I -S forkclient.py SOCKET default_worker.py ARGUMENTS...
    python -I -S forkclient.py SOCKET -c PROGRAM ARGUMENTS...

Sends the command, this process's environment, folder and open files to the server, whose fork then is the worker, and
stays until that fork has ended. Signals that ask the worker to end are passed on, and this process ends as the worker
did. A server that is gone, or that fails to import what workers need, costs time and nothing else: the command is run
here as it would have been without a server.

The standard library alone, and nothing from this package: it must start in milliseconds.
"""

import json
import os
import signal
import socket
import sys


def main() -> None:
    path, *command = sys.argv[1:]
    numbers = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208, pathlib would double what this process takes to start
        try:
            if os.get_inheritable(int(name)):  # Python's own files are not
                numbers.append(int(name))
        except OSError:
            pass  # the folder's own
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
            print(f"verl-gsd: no fork from {path} ({error}); starting Python", file=sys.stderr)
        if pid:

            def pass_on(number, _):
                try:  # noqa: SIM105, contextlib would have to be imported
                    os.kill(int.from_bytes(pid, "big"), number)
                except ProcessLookupError:
                    pass  # it is ending

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, pass_on)
            while len(status) < 3 and (more := connection.recv(3 - len(status))):
                status += more
    if not pid:
        os.execv(sys.executable, [sys.executable, *command])
    code = int.from_bytes(status[1:], "big", signed=True) if status else 1  # nobody knows once the server is gone
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
