"""What Ray starts instead of Python where workers are forked (``forkserver.py``): hand the command over and wait.

    python -I -S forkclient.py SOCKET default_worker.py ARGUMENTS...

Sends the command, this process's environment, folder and standard streams to the server, whose fork then is the worker,
and stays until that fork has ended. A server that is gone, or that fails to import what workers need, costs time and
nothing else: the command is run here as Ray would have run it.

The standard library alone, and nothing from this package: it must start in milliseconds.
"""

import json
import os
import socket
import sys


def main() -> None:
    path, *command = sys.argv[1:]
    # pathlib would double what this process takes to start
    request = json.dumps({"command": command, "environment": dict(os.environ), "folder": os.getcwd()}).encode()  # noqa: PTH109
    taken = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [len(request).to_bytes(8, "big")], [1, 2])
            connection.sendall(request)
            taken = connection.recv(1)
            connection.recv(1)  # end of file: the fork, which holds the other end, has ended
        except OSError as error:
            print(f"verl-gsd: no fork from {path} ({error}); starting Python", file=sys.stderr)
    if not taken:
        os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
