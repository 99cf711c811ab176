"""Ports of this machine that nothing uses."""

import socket


def free_ports(count):
    """Of this machine, and different ones."""
    with_ports = [socket.socket() for _ in range(count)]
    for held in with_ports:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in with_ports]
    for held in with_ports:
        held.close()
    return ports
