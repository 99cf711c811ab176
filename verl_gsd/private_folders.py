"""Folders below /tmp that this user alone can enter, and that are gone when no process needs them any more.

A process that uses such a folder holds it: it keeps a lock on the folder (``flock``), which the kernel gives back
however the process ends. A folder that nobody holds belongs to a run that has ended, and the next run removes it. This
also works after SIGKILL, where the run itself has no chance to clean up.

Shared memory of a run is named in its folder: an empty file ``shm.NAME`` says that the folder's holders made
/dev/shm/NAME. The segment is removed with the folder.
"""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Always below /tmp: a socket's path may have at most 107 characters, and TMPDIR may be long.
_PREFIX = "/tmp/verl_gsd_"
#: Beginnings of the folders' names: of a Ray node, and of a command. Folders with other names are not ours and stay.
_KINDS = ("weights_", "run_")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_SEGMENT = "shm."
#: Where Linux keeps shared memory.
_SHARED_MEMORY = Path("/dev/shm")


class UnsafeFolderError(RuntimeError):
    """The folder is not a folder that this user alone can enter."""


def of_node(node: str) -> str:
    """The folder of what the processes of one Ray node share, held by this process until it ends.

    Raises:
        UnsafeFolderError: the folder belongs to another user, other users can enter it, or it is not a folder.
    """
    return _hold(f"{_PREFIX}weights_{node[:16]}")


@contextmanager
def of_run() -> Iterator[str]:
    """A new temporary folder of this command, held inside the context and removed after it.

    Its name is short enough for a socket's path.
    """
    folder = f"{_PREFIX}run_{secrets.token_hex(8)}"
    descriptor, _ = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def hold(folder: str) -> None:
    """Hold a folder of this user until this process ends, in addition to whoever made it."""
    _hold(folder)


def note_segment(name: str) -> None:
    """Say in the node's folder that this process makes the shared memory ``name``, before it does so.

    Nothing is said if this process holds no folder of a node, or if there is no room: cleaning up is a courtesy.
    """
    for folder in _nodes_held:
        with suppress(OSError):
            (Path(folder) / f"{_SEGMENT}{name}").touch(mode=0o600)


def forget_segment(name: str) -> None:
    """Take ``note_segment`` back: the segment has been removed."""
    for folder in _nodes_held:
        (Path(folder) / f"{_SEGMENT}{name}").unlink(missing_ok=True)


def remove_unused() -> None:
    """Remove the folders of this user that no living process holds, and the shared memory that they name."""
    parent, _, name = _PREFIX.rpartition("/")
    for kind in _KINDS:
        for path in Path(parent).glob(f"{name}{kind}*"):
            with suppress(OSError):  # another user's folder, a folder in use, or one that has just been removed
                descriptor = os.open(path, _OPEN)
                try:
                    if os.fstat(descriptor).st_uid == os.geteuid():
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        # Another command may have removed it since it was opened, and a run made it again.
                        if _is_at(str(path), descriptor):
                            _remove_segments(path)
                            shutil.rmtree(path)
                finally:
                    os.close(descriptor)


def _remove_segments(folder: Path) -> None:
    for note in folder.glob(f"{_SEGMENT}*"):
        segment = _SHARED_MEMORY / note.name.removeprefix(_SEGMENT)
        with suppress(FileNotFoundError):
            if segment.lstat().st_uid == os.geteuid():
                segment.unlink()


#: Folders of Ray nodes that this process holds: one, or none.
_nodes_held: set[str] = set()


@functools.cache
def _hold(folder: str) -> str:
    """Make ``folder`` if necessary, check it, and lock it until this process ends. Others' unused ones are removed."""
    _, is_new = _locked(folder)  # never closed
    if folder.startswith(f"{_PREFIX}weights_"):
        _nodes_held.add(folder)
    if is_new:
        remove_unused()
    return folder


def _locked(folder: str) -> tuple[int, bool]:
    """An open descriptor that locks ``folder``, and whether the folder is new.

    The lock also keeps systemd's cleaning of /tmp away.
    """
    while True:
        try:
            Path(folder).mkdir(mode=0o700)
            is_new = True
        except FileExistsError:
            is_new = False
        try:
            descriptor = os.open(folder, _OPEN)
        except FileNotFoundError:
            continue  # remove_unused of another run has just removed it
        except OSError as error:
            raise _unsafe(folder, error.strerror) from error
        if reason := _what_is_unsafe(os.fstat(descriptor)):
            os.close(descriptor)
            raise _unsafe(folder, reason)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(folder, descriptor):
            return descriptor, is_new
        os.close(descriptor)  # removed between opening and locking


def _what_is_unsafe(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"it belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}"
    if status.st_mode & 0o077:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o} and must be 0700"
    return None


def _unsafe(folder: str, reason: str | None) -> UnsafeFolderError:
    return UnsafeFolderError(
        f"{folder}: this folder for a run's sockets is not private: {reason}. Another user could replace "
        "the weights or run code in this process. Remove the folder, then start the run again."
    )


def _is_at(folder: str, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(Path(folder).lstat(), os.fstat(descriptor))
    return False
