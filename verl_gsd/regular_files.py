"""Opens files that other people may have made.

In place of a file there may be a named pipe, which nobody writes, or a device, which never ends. Reading it would stop
the command, or fill its memory. There may also be a link to a private file of the user, which would then be shown or
published as a part of the other person's folder.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

#: Where Linux shows the files that this process has open, as links.
_OPEN_FILES = Path("/proc/self/fd")


def open_regular(
    path: Path | str, *, follow_links: bool = True, folder: int | None = None, within: Path | None = None
) -> BinaryIO:
    """Open a regular file for reading. What is opened is what was checked, also if others replace it meanwhile.

    Args:
        follow_links: whether ``path`` itself may be a symbolic link. Links in the folders above it are followed.
        folder: the descriptor of an open folder to which ``path`` is relative; by default, the current folder.
        within: the folder that must contain the file. Links may lead to other places in it.

    Raises:
        OSError: it cannot be opened, it is not a regular file, or a link leads out of ``within``.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    # The kernel tells where the file is that is open. Resolving ``path`` again could tell of another one.
    if within is not None and not _OPEN_FILES.joinpath(str(descriptor)).readlink().is_relative_to(within.resolve()):
        os.close(descriptor)
        raise OSError(errno.EXDEV, f"a link leads out of {within}", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, *, within: Path | None = None) -> bytes:
    """The content of a regular file.

    Args:
        within: as for ``open_regular``.

    Raises:
        OSError: it cannot be read, it is not a regular file, or a link leads out of ``within``.
    """
    with open_regular(path, within=within) as file:
        return file.read()
