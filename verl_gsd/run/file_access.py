"""Tells who else can use this user's files and folders, by their owners and modes."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

#: Which user ids this process's user namespace knows. In a container without root, it may know only this user's.
_USER_MAP = Path("/proc/self/uid_map")
#: The kernel shows every user that the namespace does not know as this one.
_UNKNOWN_USER = 65534


def is_open_to_others(status: os.stat_result, permissions: int) -> bool:
    """Whether other users have one of the ``permissions``, without regard to the folders above.

    Args:
        permissions: os.R_OK, os.W_OK and os.X_OK, combined with ``|``.
    """
    by_group = status.st_mode & permissions << 3 and not is_own_group(status.st_gid)
    return bool(by_group or status.st_mode & permissions)


def is_own_group(group: int) -> bool:
    """Whether a group is the private one of this user: many systems create one per user, with the user's name."""
    try:
        entry, name = grp.getgrgid(group), pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # the user or the group has no name, for example in a container
        return group == os.geteuid()
    return entry.gr_name == name and {*entry.gr_mem} <= {name}


def replaceable_folder(path: Path) -> str:
    """How another user could replace ``path``, a folder without symbolic links; an empty string if nobody can.

    Whoever owns a folder, or may write in it, can rename what is in it. A sticky folder such as /tmp only lets its
    owner do so.
    """
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid not in (os.geteuid(), 0) and not _is_hidden_root(status.st_uid):
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


def _is_hidden_root(user: int) -> bool:
    """Whether ``user`` stands for the users that this namespace does not know, of which the machine's root is one."""
    return user == _UNKNOWN_USER and _USER_MAP.read_text().split() != ["0", "0", "4294967295"]
