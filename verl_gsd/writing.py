"""Atomic writes: a reader finds the complete new file or folder, or the old one, even if the process is killed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give the block a temporary path to write to, and rename it to ``path`` if the block succeeds.

    The temporary file is ``path`` with the suffix ``.tmp`` added; an exception removes it and leaves ``path`` as it
    was. Missing parent folders are created.

    Raises:
        OSError: the disk is full, or the process may not write there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give the block a new temporary folder to fill, and rename it to ``path`` if the block succeeds.

    The temporary folder is ``path`` with the suffix ``.tmp`` added. One that a killed process left behind is removed
    first, so two processes must not write the same folder at a time. Missing parent folders are created.

    Args:
        replace: whether a folder that is already at ``path`` is removed just before the rename. If the process is
            killed in between, ``path`` is missing or incomplete. If False, a folder that is not empty is an error.

    Raises:
        OSError: the disk is full, the process may not write there, or ``path`` exists and ``replace`` is False.
    """
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
