"""Sets POSIX ACLs as setfacl does, which is not installed everywhere."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

#: The tags of entries (linux/posix_acl.h).
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
#: The id in entries that name nobody.
_NOBODY_NAMED = 0xFFFFFFFF
_VERSION = 2


def grant(path: Path, user: int, permissions: int, *, default: bool = False) -> None:
    """Give a named user ``permissions`` (os.R_OK | os.W_OK | os.X_OK), as ``setfacl -m u:USER:PERMISSIONS`` does.

    Owner, group and others keep theirs. The mask, which the mode shows as the group's, becomes the union.

    Args:
        default: for the files that will be created in the folder ``path``, as ``setfacl -d``.
    """
    mode = path.stat().st_mode
    group = mode >> 3 & 7
    entries = [
        (_OWNER, mode >> 6 & 7, _NOBODY_NAMED),
        (_USER, permissions, user),
        (_GROUP, group, _NOBODY_NAMED),
        (_MASK, group | permissions, _NOBODY_NAMED),
        (_OTHERS, mode & 7, _NOBODY_NAMED),
    ]
    set_acl(path, entries, default=default)


def set_default(folder: Path, *, owner: int, group: int, others: int) -> None:
    """Give a folder a default ACL without named users, as ``setfacl -d -m u::OWNER,g::GROUP,o::OTHERS`` does."""
    entries = [(_OWNER, owner, _NOBODY_NAMED), (_GROUP, group, _NOBODY_NAMED), (_OTHERS, others, _NOBODY_NAMED)]
    set_acl(folder, entries, default=True)


def set_acl(path: Path, entries: list[tuple[int, int, int]], *, default: bool) -> None:
    """Set an ACL of (tag, permissions, id); skips the test where the file system has no ACLs."""
    content = struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, f"system.posix_acl_{'default' if default else 'access'}", content)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip(f"the file system of {path} has no POSIX ACLs")
