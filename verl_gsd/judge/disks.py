"""Which journal keeps a shared SQLite file whole, by the disk that the file lies on.

SQLite's write-ahead log needs memory that all its processes share, so it damages a file that several hosts have open.
The rollback journal needs only POSIX byte-range locks that reach all hosts, and caches that follow them. Linux gives
both on NFS: version 4 has locks in the protocol, version 3 has them in lockd, and a client discards what it has cached
of a file when it acquires a lock (nfs(5), "Using file locks with NFS"). Mount options and some file systems keep locks
on one host. SQLite cannot notice that, so such a disk is rejected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Protocol

import psutil

#: Mounted folders that several hosts may write, with locks that reach all of them unless an option says otherwise.
#: 9p, virtiofs and overlays are here because they may lie on any of the others.
_LOCKS_REACH_ALL = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "wekafs", "gfs2", "ocfs2", "9p", "virtiofs"),
    *("fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs"),
    *("fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs", "fuse.gocryptfs"),
}
#: Others that several hosts may write. BeeGFS has global locks only with tuneUseGlobalFileLocks, which no mount shows.
_LOCKS_STAY = {"beegfs", "afs", "orangefs", "pvfs2", "ncpfs"}
#: Mount options that keep locks on one host.
_OPTIONS_STAY = {
    "nfs": {"nolock", "local_lock=all", "local_lock=posix"},
    "nfs4": {"nolock", "local_lock=all", "local_lock=posix"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
    "lustre": {"localflock", "noflock"},
}


class Mount(Protocol):
    """As ``psutil.disk_partitions`` has it."""

    @property
    def mountpoint(self) -> str: ...

    @property
    def fstype(self) -> str: ...

    @property
    def opts(self) -> str: ...


def mounts() -> list[Mount]:
    """What is mounted on this machine, network file systems included."""
    return list(psutil.disk_partitions(all=True))


def journal_mode(path: Path, mounted: Sequence[Mount]) -> Literal["wal", "truncate"]:
    """SQLite's journal mode for a file at ``path``: the write-ahead log, on network disks a rollback journal.

    The rollback journal is truncated and not deleted after each transaction. Another host may believe for some seconds
    that a file which it has cached as missing is still missing, and would overlook the journal of a crashed writer.

    Raises:
        ValueError: locks on that disk do not reach other hosts. The message names the disk and a remedy, but neither
            ``path`` nor the setting that holds it.
    """
    mount = _mount_of(path, mounted)
    if mount is None:
        return "wal"
    options = mount.opts.split(",")
    reason = None
    if mount.fstype in _LOCKS_STAY or (mount.fstype.startswith("fuse.") and mount.fstype not in _LOCKS_REACH_ALL):
        reason = mount.fstype
    elif stay := _OPTIONS_STAY.get(mount.fstype, set()).intersection(options):
        reason = f"{mount.fstype} with {min(stay)}"
    elif mount.fstype == "lustre" and "flock" not in options:
        reason = "lustre without flock"
    if reason:
        raise ValueError(
            f"{mount.mountpoint} is {reason}, where file locks do not reach other hosts, so that two runs could damage "
            f"the file. Use a file on a local disk, for example {Path(tempfile.gettempdir()) / 'judge.sqlite'}, or on "
            "NFS with locks"
        )
    return "truncate" if mount.fstype in _LOCKS_REACH_ALL else "wal"


def _mount_of(path: Path, mounted: Collection[Mount]) -> Mount | None:
    """The mount that holds ``path``; of several at one place the last one, which hides the others."""
    place = path.expanduser().resolve()
    holding = [mount for mount in mounted if place.is_relative_to(mount.mountpoint)]
    deepest = max((len(Path(mount.mountpoint).parts) for mount in holding), default=0)
    return next((mount for mount in reversed(holding) if len(Path(mount.mountpoint).parts) == deepest), None)
