"""Tells which users listen at an address of this machine, before a secret is sent there.

Every user of a machine can listen at a port that is free: at the usual port of Ray's job server or of a judge, or at
the address of a cluster that has ended. Whoever listens there receives the token that a client of Ray sends with its
first request, or the judge's key. A port at which this user or root listens cannot be taken by others.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from verl_gsd.errors import ConfigError

#: The environment variable with the name or id of one other user of this machine whose Ray clusters may be used.
TRUSTED = "VERL_GSD_CLUSTER_USER"
#: The same for the one other user whose server of a judge may receive the judge's key.
TRUSTED_JUDGE = "VERL_GSD_JUDGE_USER"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Socket(NamedTuple):
    """A TCP socket of this machine."""

    local: tuple[_Address, int]
    remote: tuple[_Address, int]
    listens: bool
    #: The id of its owner. It means nothing if no process has the socket open.
    user: int
    #: Whether a process has it open. A connection that nobody has accepted yet belongs to the listener.
    is_open: bool


def listening_users(host: str, port: int) -> set[int] | None:
    """The ids of the users who listen at an address of this machine; empty if nobody does.

    Args:
        host: a name or an IP address in any spelling, without brackets.

    Returns:
        None if nothing is known: the address is of another machine, or the system is not Linux.
    """
    local = _local_addresses(host)
    listeners = _listeners(port) if local else None
    if listeners is None:
        return None
    return {user for bound, user in listeners if any(_accepts(bound, target) for target in local)}


def users_of_connection(own: tuple[str, int], peer: tuple[str, int]) -> set[int] | None:
    """The ids of the users who can read what is sent over a connection within this machine; empty if nobody can.

    These are the users who listen at the peer's address, who can still accept the connection, and the one who has
    accepted it and may not listen any more. Nobody else can take over a connection. If this is asked between
    connecting and sending, nothing can therefore change in between.

    Args:
        own: (IP address, port) of this end, the first two items of ``socket.getsockname``.
        peer: the same of the other end, of ``socket.getpeername``.

    Returns:
        None if nothing is known: the peer is another machine, or the system is not Linux.
    """
    listening = listening_users(*peer)  # before the accepted ones: in between, the connection may be accepted
    if listening is None:
        return None
    ends = (_ip(peer[0]), peer[1]), (_ip(own[0]), own[1])
    return listening | {row.user for row in _sockets() or () if row.is_open and (row.local, row.remote) == ends}


def foreign_user(users: set[int], trusted: str = TRUSTED) -> int | None:
    """One of ``users`` who is neither this user, nor root, nor the one whom the variable ``trusted`` names.

    Raises:
        ConfigError: the variable names no user of this machine.
    """
    return min(users - {os.geteuid(), 0, _trusted_user(trusted)}, default=None)


def _trusted_user(variable: str) -> int | None:
    name = os.environ.get(variable, "")
    if not name or name.isdecimal():
        return int(name) if name else None
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(
            f"{variable}={name}: this machine has no such user. Set it to the name or the id of the user whom you "
            f"trust, or run `unset {variable}`."
        ) from None


def _local_addresses(host: str) -> set[_Address]:
    """The addresses of this machine that ``host`` stands for: a name, or an IP address in any spelling.

    A connection to the unspecified address (0.0.0.0 or ::) leads to the loopback address.
    """
    try:
        resolved = {_ip(str(entry[4][0])) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):  # Ray will report it
        return set()
    entries = (entry for interface in psutil.net_if_addrs().values() for entry in interface)
    own = {_ip(entry.address) for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)}
    loopback = {4: ipaddress.ip_address("127.0.0.1"), 6: ipaddress.ip_address("::1")}
    targets = {loopback[one.version] if one.is_unspecified else one for one in resolved}
    return {one for one in targets if one.is_loopback or one in own}


def _ip(text: str) -> _Address:
    """An address without its interface (``%eth0``). IPv4 addresses that are written as IPv6 become IPv4."""
    return _unmapped(ipaddress.ip_address(text.partition("%")[0]))


def _unmapped(address: _Address) -> _Address:
    return getattr(address, "ipv4_mapped", None) or address


def _accepts(bound: _Address, target: _Address) -> bool:
    """Whether a socket that listens at ``bound`` accepts connections to ``target``."""
    is_any = bound.is_unspecified and (bound.version == 6 or target.version == 4)  # :: usually accepts IPv4 as well
    return bound == target or is_any


def _listeners(port: int) -> set[tuple[_Address, int]] | None:
    """(address, user id) of every process that listens at a TCP port of this machine; None if that cannot be read."""
    sockets = _sockets()
    if sockets is None:
        return None
    return {(row.local[0], row.user) for row in sockets if row.listens and row.local[1] == port}


def _sockets() -> list[_Socket] | None:
    """The TCP sockets of all users of this machine; None if they cannot be read, because the system is not Linux."""
    rows: list[_Socket] = []
    is_known = False
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            for row in table.read_text(encoding="ascii").splitlines()[1:]:
                _, local, remote, state, _, _, _, user, _, inode, *_ = row.split()
                rows.append(_Socket(_end(local), _end(remote), state == "0A", int(user), inode != "0"))
            is_known = True
    return rows if is_known else None


def _end(text: str) -> tuple[_Address, int]:
    """(address, port) of one end of a socket in /proc/net/tcp."""
    address, _, port = text.rpartition(":")
    return _of_table(address), int(port, 16)


def _of_table(digits: str) -> _Address:
    """An address in /proc/net/tcp: words of 32 bits in the byte order of the machine."""
    words = (int(digits[start : start + 8], 16) for start in range(0, len(digits), 8))
    return _unmapped(ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words)))
