"""Opens files that other people may have made.

In place of a file there may be a named pipe, which nobody writes, or a device, which never ends. Reading it would stop
the command, or fill its memory.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str, *, follow_links: bool = True, folder: int | None = None) -> BinaryIO:
    """Open a regular file for reading. What is opened is what was checked, also if others replace it meanwhile.

    Args:
        follow_links: whether ``path`` itself may be a symbolic link. Links in the folders above it are followed.
        folder: the descriptor of an open folder to which ``path`` is relative; by default, the current folder.

    Raises:
        OSError: it cannot be opened, or it is not a regular file.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, or it is not a regular file.
    """
    with open_regular(path) as file:
        return file.read()
