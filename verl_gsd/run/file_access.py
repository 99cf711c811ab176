"""Tells who else can use this user's files and folders, by their owners and modes."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
import subprocess
from pathlib import Path

#: Which user ids this process's user namespace knows. In a container without root, it may know only this user's.
_USER_MAP = Path("/proc/self/uid_map")
#: The kernel shows every user that the namespace does not know as this one.
_UNKNOWN_USER = 65534
#: Folders that belong to the machine's root (Filesystem Hierarchy Standard), and in which users have their own.
_SYSTEM_FOLDERS = {
    *("/", "/dev", "/dev/shm", "/home", "/media", "/mnt", "/opt", "/run", "/run/user", "/srv", "/tmp", "/usr", "/var"),
    *("/var/lib", "/var/tmp"),
}
#: Seconds to wait for the list of users. A directory service (LDAP) may have many, or not answer.
_LISTING_S = 5.0


def is_open_to_others(status: os.stat_result, permissions: int) -> bool:
    """Whether other users have one of the ``permissions``, without regard to the folders above.

    Args:
        permissions: os.R_OK, os.W_OK and os.X_OK, combined with ``|``.
    """
    by_group = status.st_mode & permissions << 3 and not is_own_group(status.st_gid)
    return bool(by_group or status.st_mode & permissions)


def is_own_group(group: int) -> bool:
    """Whether a group is the private one of this user: many systems create one per user, with the user's name.

    A group does not list the users whose primary group it is. They are searched in the list of users. Where a directory
    service does not list its users, only those of this machine are seen.
    """
    return _is_private_name(group) and not _is_primary_group_of_others(group)


def _is_private_name(group: int) -> bool:
    try:
        entry, name = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # the user or the group has no name, for example in a container
        return group == os.geteuid()
    return entry.gr_name == name and {*entry.gr_mem} <= {name}


@functools.cache
def _is_primary_group_of_others(group: int) -> bool:
    """Whether ``group`` is the primary group of another user. If the users cannot be listed in time, it counts as one.

    ``pwd.getpwall`` would stop all threads of this process for as long as a directory service takes.
    """
    try:
        listing = subprocess.run(["getent", "passwd"], capture_output=True, timeout=_LISTING_S)
    except (OSError, subprocess.TimeoutExpired):
        return True
    users = [line.split(b":") for line in listing.stdout.splitlines()]  # name, password, user id, group id, ...
    own, wanted = str(os.geteuid()).encode(), str(group).encode()
    return any(len(user) > 3 and user[3] == wanted and user[2] != own for user in users)


def replaceable_folder(path: Path) -> str:
    """How another user could replace ``path``, a folder without symbolic links; an empty string if nobody can.

    Whoever owns a folder, or may write in it, can rename what is in it. A sticky folder such as /tmp only lets its
    owner do so.
    """
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid not in (os.geteuid(), 0) and not _is_of_hidden_root(folder, status):
            return f"{folder} belongs to user id {status.st_uid}"
        if is_open_to_others(status, os.W_OK) and not status.st_mode & stat.S_ISVTX:
            return _open_to_others(folder, status)
    return ""


def changeable_folder(path: Path) -> str:
    """How another user could change what is in the folder ``path``, or replace it; an empty string if nobody can."""
    status = path.stat()
    if is_open_to_others(status, os.W_OK):
        return _open_to_others(path, status)
    return replaceable_folder(path)


def _open_to_others(folder: Path, status: os.stat_result) -> str:
    return f"other users can write {folder} (mode {stat.S_IMODE(status.st_mode):04o})"


def _is_of_hidden_root(folder: Path, status: os.stat_result) -> bool:
    """Whether ``folder`` belongs to the machine's root, which this process's user namespace may not know.

    The kernel shows all users that the namespace does not know as the same one, also ordinary users of the machine.
    Only folders that are root's on every system are therefore taken for root's.
    """
    if status.st_uid != _UNKNOWN_USER or str(folder) not in _SYSTEM_FOLDERS:
        return False
    return _USER_MAP.read_text().split() != ["0", "0", "4294967295"]
