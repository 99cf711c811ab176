"""Atomic writes: a reader finds the complete new file or folder, or the old one, even if the process is killed.

A name that others can predict is a trap in a folder that they can write: with a symbolic link of that name they choose
which file is overwritten. Temporary files therefore have random names, and no function here writes through a link.
"""

from __future__ import annotations

import glob
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

#: The random part of a temporary file's name: bytes, and the glob pattern of their hexadecimal digits.
_RANDOM_BYTES = 8
_RANDOM_PATTERN = "[0-9a-f]" * (2 * _RANDOM_BYTES)
#: A temporary file that has not changed for this many seconds belongs to a process that was killed.
_ABANDONED_S = 86_400.0


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the block an empty temporary file to write to, and rename it to ``path`` if the block succeeds.

    The temporary file is ``path`` with a random suffix that ends in ``.tmp``. An exception removes it and leaves
    ``path`` as it was. The next write of ``path`` removes those of killed processes after a day. Missing parent folders
    are created.

    Raises:
        OSError: the disk is full, or the process may not write there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(_RANDOM_BYTES)}.tmp")
    temporary.open("xb").close()  # exclusive: it fails if anything has this name, also a link that leads nowhere
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing, and replace what is at ``path``. A symbolic link there is removed, not followed.

    Raises:
        OSError: the process may not write there, or ``path`` is a folder.
    """
    path.unlink(missing_ok=True)
    return path.open("xb")


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give the block a new temporary folder to fill, and rename it to ``path`` if the block succeeds.

    The temporary folder is ``path`` with the suffix ``.tmp`` added. One that a killed process left behind is removed
    first, so two processes must not write the same folder at a time. Missing parent folders are created.

    Args:
        replace: whether a folder that is already at ``path`` is removed just before the rename. If the process is
            killed in between, ``path`` is missing or incomplete. If False, a folder that is not empty is an error.

    Raises:
        OSError: the disk is full, the process may not write there, ``path`` exists and ``replace`` is False, or the
            temporary folder's name is a symbolic link.
    """
    temporary = path.with_name(path.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)  # fails on a link
    try:
        yield temporary
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of earlier writes of ``path`` by processes that were killed."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.{_RANDOM_PATTERN}.tmp"):
        with suppress(OSError):  # another process has removed it, or this one may not
            if time.time() - leftover.lstat().st_mtime > _ABANDONED_S:
                leftover.unlink()
