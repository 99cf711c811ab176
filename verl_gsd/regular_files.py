"""Opens files that other people may have made.

In place of a file there may be a named pipe, which nobody writes, or a device, which never ends. Reading it would stop
the command, or fill its memory. There may also be a link to a private file of the user, which would then be shown or
published as a part of the other person's folder. A file that takes no space on a disk can claim hundreds of gigabytes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from verl_gsd.file_access import real_path

#: Where Linux shows the files that this process has open, as links.
_OPEN_FILES = Path("/proc/self/fd")
#: The largest size in bytes of files with settings and results. They usually have less than 1 MiB.
SMALL = 64 << 20


def open_regular(
    path: Path | str, *, follow_links: bool = True, folder: int | None = None, within: Path | None = None
) -> BinaryIO:
    """Open a regular file for reading. What is opened is what was checked, also if others replace it meanwhile.

    Args:
        follow_links: whether ``path`` itself may be a symbolic link. Links in the folders above it are followed.
        folder: the descriptor of an open folder to which ``path`` is relative; by default, the current folder.
        within: the folder that must contain the file. Links may lead to other places in it. Its own path may have
            links of this user and of root. A link that another user chose could lead to a private folder of this user.

    Raises:
        OSError: it cannot be opened, it is not a regular file, a link leads out of ``within``, or another user owns or
            could replace a link in the path of ``within``.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    # The file is open by now: whoever exchanges a link afterwards cannot change what is read.
    if within is not None and (problem := _outside(descriptor, within)):
        os.close(descriptor)
        raise OSError(errno.EXDEV, problem, str(path))
    return os.fdopen(descriptor, "rb")


def _outside(descriptor: int, within: Path) -> str:
    """Why an open file may not be in the folder that the user means by ``within``; an empty string if it is."""
    place, problem = real_path(within)
    if problem:
        return problem
    return "" if place_of(descriptor).is_relative_to(place) else f"a link leads out of {within}"


def place_of(descriptor: int) -> Path:
    """Where the file or folder is that is open as ``descriptor``, without symbolic links.

    The kernel tells it. Resolving the path again, by which it was opened, could tell of another file.
    """
    return opened_again(descriptor).readlink()


def opened_again(descriptor: int) -> Path:
    """A path of the file that is open as ``descriptor``, for libraries that open files by name.

    It leads to that file and to no other, as long as the file is open here.
    """
    return _OPEN_FILES / str(descriptor)


def read_regular(path: Path, *, within: Path | None = None, limit: int = SMALL) -> bytes:
    """The content of a regular file.

    Args:
        within: as for ``open_regular``.
        limit: the largest size in bytes.

    Raises:
        OSError: it cannot be read, it is not a regular file, it is larger than ``limit``, or a link leads out of
            ``within``.
    """
    with open_regular(path, within=within) as file:
        return read_limited(file, limit)


def read_limited(file: BinaryIO, limit: int = SMALL) -> bytes:
    """The rest of an open file.

    Args:
        limit: as for ``read_regular``.

    Raises:
        OSError: it cannot be read, or is larger than ``limit``.
    """
    content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes")
    return content


def lines_of(file: BinaryIO, limit: int = SMALL) -> Iterator[bytes]:
    """The lines of an open file from its position on, each with its line feed. The last one may have none.

    Args:
        limit: the largest size of a line in bytes. Reading stops at a longer one.

    Raises:
        OSError: it cannot be read, or a line is longer than ``limit``.
    """
    while line := file.readline(limit + 1):
        if len(line) > limit:
            raise OSError(errno.EFBIG, f"a line is longer than {limit:,} bytes")
        yield line
