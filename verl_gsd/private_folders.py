"""Folders in /tmp that only this user can enter, and that are removed when no process uses them any more.

A process that uses such a folder holds it: it keeps a lock on the folder (``flock``), which the kernel releases however
the process ends. A folder that nobody holds belongs to a run that has ended, and the next run removes it. This also
works after SIGKILL, when the run itself cannot clean up.

The folder also lists the run's shared memory: an empty file ``shm.NAME`` says that a holder of the folder created
/dev/shm/NAME. The segment is removed together with the folder.
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

#: Always in /tmp, because the path of a socket may have at most 107 characters and TMPDIR may be long.
_PREFIX = "/tmp/verl_gsd_"
#: First parts of the folder names: for a run on one node, and for one command. Other folders are never removed.
_KINDS = ("weights_", "run_")
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
#: Prefix of the files that name a shared memory segment.
_SEGMENT = "shm."
#: Where Linux keeps shared memory.
_SHARED_MEMORY = Path("/dev/shm")


class UnsafeFolderError(RuntimeError):
    """The path is not a folder that only this user can enter."""


def node_folder(mark: str) -> str:
    """The folder that a run's processes on one node share. This process holds it until it ends.

    Args:
        mark: 16 letters or digits that others cannot guess: whoever creates the folder first decides who can use it.

    Raises:
        UnsafeFolderError: the folder belongs to another user, other users can enter it, or it is not a folder.
    """
    return _hold(f"{_PREFIX}weights_{mark}")


@contextmanager
def run_folder() -> Iterator[str]:
    """A new folder for this command, held inside the context and removed after it.

    Its path is short enough for a socket in it.
    """
    folder = f"{_PREFIX}run_{secrets.token_hex(8)}"
    descriptor, _ = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def hold_new() -> str:
    """A new folder that this process holds until it ends. A later run removes it."""
    folder = f"{_PREFIX}run_{secrets.token_hex(8)}"
    _locked(folder)  # never closed
    return folder


def hold(folder: str) -> None:
    """Hold a folder that another process of this user created, until this process ends."""
    _hold(folder)


def problem(folder: str) -> str:
    """Why ``folder`` is not a folder that only this user can enter; an empty string if it is.

    Raises:
        OSError: the folder does not exist.
    """
    status = Path(folder).lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder"
    return _unsafe_reason(status) or ""


def note_segment(name: str) -> None:
    """Record in the node's folder that this process is about to create the shared memory ``name``.

    Does nothing if this process holds no node folder, or if the disk is full: the cleanup is optional.
    """
    for folder in _nodes_held:
        with suppress(OSError):
            (Path(folder) / f"{_SEGMENT}{name}").touch(mode=0o600)


def forget_segment(name: str) -> None:
    """Undo ``note_segment`` after the segment has been removed."""
    for folder in _nodes_held:
        (Path(folder) / f"{_SEGMENT}{name}").unlink(missing_ok=True)


def remove_unused() -> None:
    """Remove this user's folders that no living process holds, and the shared memory that they list."""
    parent, _, name = _PREFIX.rpartition("/")
    for kind in _KINDS:
        for path in Path(parent).glob(f"{name}{kind}*"):
            with suppress(OSError):  # another user's folder, a folder in use, or one that has just been removed
                descriptor = os.open(path, _OPEN)
                try:
                    if os.fstat(descriptor).st_uid == os.geteuid():
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        # Another command may have removed it after it was opened, and a run may have created it again.
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


#: The node folders that this process holds: one or none.
_nodes_held: set[str] = set()


@functools.cache
def _hold(folder: str) -> str:
    """Create ``folder`` if necessary, check it, and lock it until this process ends.

    If the folder is new, unused folders of earlier runs are removed.
    """
    _, is_new = _locked(folder)  # never closed
    if folder.startswith(f"{_PREFIX}weights_"):
        _nodes_held.add(folder)
    if is_new:
        remove_unused()
    return folder


def _locked(folder: str) -> tuple[int, bool]:
    """Create ``folder`` if necessary; returns an open descriptor that locks it, and whether it is new.

    The lock also protects the folder from systemd's cleanup of /tmp.
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
            continue  # another run has just removed it
        except OSError as error:
            raise _unsafe_error(folder, error.strerror) from error
        if reason := _unsafe_reason(os.fstat(descriptor)):
            os.close(descriptor)
            raise _unsafe_error(folder, reason)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(folder, descriptor):
            return descriptor, is_new
        os.close(descriptor)  # another run removed it between opening and locking


def _unsafe_reason(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"it belongs to user id {status.st_uid}, and this process runs as {os.geteuid()}"
    if status.st_mode & 0o077:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o} and must be 0700"
    return None


def _unsafe_error(folder: str, reason: str | None) -> UnsafeFolderError:
    return UnsafeFolderError(
        f"{folder}: this folder for a run's sockets is not private: {reason}. Another user could replace the weights "
        "or run code in this process. Remove the folder, then start the run again."
    )


def _is_at(folder: str, descriptor: int) -> bool:
    """Whether the open ``descriptor`` is the folder that now exists at this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(Path(folder).lstat(), os.fstat(descriptor))
    return False
