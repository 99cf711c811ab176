"""Tells who else can use this user's files and folders, by their owners, modes and POSIX ACLs."""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
#: The extended attributes with the ACL of a file or folder, and with the one that new files in a folder get.
_ACL, _DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
#: The errors that say that there is no ACL: none is set, or the file system has none.
_NO_ACL = (errno.ENODATA, errno.ENOTSUP)
#: The tags of the entries of an ACL (linux/posix_acl.h). Entries for named users and groups are not among them.
_OWNING_GROUP, _MASK, _OTHERS = 0x04, 0x10, 0x20
#: Linux follows at most this many symbolic links in one path.
_MOST_LINKS = 40


def is_open_to_others(path: Path | int, permissions: int) -> bool:
    """Whether other users have one of the ``permissions``, without regard to the folders above.

    With an ACL, the bits of the group are its mask: the most that any named user or group has. The mask then counts as
    open to others, whoever the named ones are.

    Args:
        path: a file or folder, or the descriptor of an open one. Links are followed.
        permissions: os.R_OK, os.W_OK and os.X_OK, combined with ``|``.

    Raises:
        OSError: it does not exist, or may not be examined.
    """
    status = path.stat() if isinstance(path, Path) else os.fstat(path)
    if status.st_mode & permissions:
        return True
    return bool(status.st_mode & permissions << 3) and (
        _read_acl(path, _ACL) is not None or not is_own_group(status.st_gid)
    )


def _new_files_are_open(folder: Path) -> bool:
    """Whether other users could write new files in ``folder`` because of its default ACL, which replaces the umask.

    If others cannot enter the folder, they cannot reach the files in it.
    """
    entries = _read_acl(folder, _DEFAULT_ACL)
    if entries is None or not is_open_to_others(folder, os.X_OK):
        return False
    by_group = entries.get(_MASK, 0)
    if _MASK not in entries and not is_own_group(folder.stat().st_gid):
        by_group = entries.get(_OWNING_GROUP, 0)
    return bool((by_group | entries.get(_OTHERS, 0)) & os.W_OK)


def _read_acl(path: Path | int, name: str) -> dict[int, int] | None:
    """Tag -> permissions of the entries of an ACL; None if there is none. Of several named ones, one is returned."""
    try:
        content = os.getxattr(path, name)
    except OSError as error:
        if error.errno in _NO_ACL:
            return None
        raise
    return {tag: permissions for tag, permissions, _ in struct.iter_unpack("<HHI", content[4:])}  # after the version


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
    return next((problem for folder in (path, *path.parents) if (problem := _renaming_problem(folder))), "")


def _renaming_problem(folder: Path) -> str:
    """How another user could rename what this user has in ``folder``; an empty string if nobody can."""
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0) and not _is_of_hidden_root(folder, status.st_uid):
        return f"{folder} belongs to user id {status.st_uid}"
    if not status.st_mode & stat.S_ISVTX and is_open_to_others(folder, os.W_OK):
        return _open_to_others(folder)
    return ""


def changeable_folder(path: Path) -> str:
    """How another user could change what is in the folder ``path``, or replace it; an empty string if nobody can."""
    if is_open_to_others(path, os.W_OK):
        return _open_to_others(path)
    return open_default(path) or replaceable_folder(path)


def open_default(folder: Path) -> str:
    """How another user could write what is created in ``folder``; an empty string if the folder's default is safe."""
    if not _new_files_are_open(folder):
        return ""
    return (
        f"other users can write what is created in {folder}, because of its default ACL (`setfacl -k {folder}` removes "
        "it)"
    )


def real_path(path: Path) -> tuple[Path, str]:
    """Where ``path`` leads, and how another user could have chosen that by a symbolic link.

    Both are of one walk along the path, so that nobody can exchange a link in between.

    Returns:
        (``path`` without symbolic links; a text that names the first link that is another user's or that another user
        could replace, and its owner). The text is empty if there is no such link.

    Raises:
        OSError: it leads nowhere, or in a circle.
    """
    place, problem, passed = Path("/"), "", []
    for step in _steps(path):
        place = step.place
        passed.append(step)
        if step.link_owner is None:  # what lies behind the last link does not change where it leads
            continue
        if not problem and (cause := next((text for one in passed if (text := _replacing_problem(one))), "")):
            own_text = _link_text(step)
            problem = cause if cause == own_text else f"{own_text}, and {cause}"
        passed = []
    return place, problem


def replaceable_target(link: Path) -> str:
    """How another user could make the symbolic link ``link`` lead elsewhere; an empty string if nobody can.

    A link may lead to another link, or through one. All folders in which the kernel looks for a name on the way are
    checked, and the owners of all further links: in a sticky folder, the owner of a link can replace it.

    Raises:
        OSError: it leads nowhere, or in a circle.
    """
    return next((problem for step in _steps(link) if (problem := _replacing_problem(step))), "")


class _Step(NamedTuple):
    """A name on the way of a path.

    Attributes:
        path: the folder in which the kernel looks for the name, and the name. The folder is without symbolic links.
        place: the path so far without symbolic links. Behind a link, it is the folder from which the link leads on.
        link_owner: the user id of the owner, if the name is that of a symbolic link.
    """

    path: Path
    place: Path
    link_owner: int | None


def _steps(path: Path) -> Iterator[_Step]:
    """The names that the kernel looks for on the way of ``path``, also on that of the links in it.

    Raises:
        OSError: it leads nowhere, or in a circle.
    """
    folder, names, links = Path("/"), list(path.absolute().parts[1:]), 0
    while names:
        name = names.pop(0)
        if name == "..":
            folder = folder.parent
            yield _Step(folder, folder, None)  # it was looked up before
            continue
        found = folder / name
        status = found.lstat()
        if not stat.S_ISLNK(status.st_mode):
            yield _Step(found, found, None)
            folder = found
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = found.readlink()
        folder = Path("/") if target.is_absolute() else folder
        yield _Step(found, folder, status.st_uid)
        names = [*(part for part in target.parts if part != "/"), *names]


def _replacing_problem(step: _Step) -> str:
    """How another user could replace what has the name of ``step``; an empty string if nobody can."""
    if problem := _renaming_problem(step.path.parent):
        return problem
    owner = step.link_owner
    if owner is None or owner in (os.geteuid(), 0) or _is_of_hidden_root(step.path, owner):
        return ""
    return _link_text(step)


def _link_text(step: _Step) -> str:
    return f"the link {step.path} belongs to user id {step.link_owner}"


def _open_to_others(folder: Path) -> str:
    by_acl = "" if _read_acl(folder, _ACL) is None else " and an ACL"
    return f"other users can write {folder} (mode {stat.S_IMODE(folder.stat().st_mode):04o}{by_acl})"


def _is_of_hidden_root(folder: Path, owner: int) -> bool:
    """Whether ``folder`` belongs to the machine's root, which this process's user namespace may not know.

    The kernel shows all users that the namespace does not know as the same one, also ordinary users of the machine.
    Only folders that are root's on every system are therefore taken for root's.
    """
    if owner != _UNKNOWN_USER or str(folder) not in _SYSTEM_FOLDERS:
        return False
    return _USER_MAP.read_text().split() != ["0", "0", "4294967295"]
