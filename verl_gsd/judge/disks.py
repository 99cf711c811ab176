"""Chooses the SQLite journal mode that keeps a shared file intact, from the disk that the file is on.

SQLite's write-ahead log needs memory that all its processes share, so it damages a file that several hosts have open.
The rollback journal needs only POSIX byte-range locks that reach all hosts, and client caches that respect them. Linux
provides both on NFS: version 4 has locks in the protocol, version 3 has them in lockd, and a client discards its cached
data of a file when it acquires a lock (nfs(5), "Using file locks with NFS"). Some mount options and file systems keep
locks local to one host. SQLite cannot detect that, so such a disk is rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Protocol

import psutil

#: File systems that several hosts may write, with locks that reach all of them unless a mount option disables that.
#: 9p, virtiofs and overlays are included because they may be backed by any of the others.
_GLOBAL_LOCKS = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "wekafs", "gfs2", "ocfs2", "9p", "virtiofs"),
    *("fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.juicefs"),
    *("fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs", "fuse.gocryptfs"),
}
#: Other file systems that several hosts may write. BeeGFS has global locks only with tuneUseGlobalFileLocks, which the
#: mount options do not show.
_LOCAL_LOCKS = {"beegfs", "afs", "orangefs", "pvfs2", "ncpfs"}
#: Mount options that keep locks local to one host.
_LOCAL_LOCK_OPTIONS = {
    "nfs": {"nolock", "local_lock=all", "local_lock=posix"},
    "nfs4": {"nolock", "local_lock=all", "local_lock=posix"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
    "lustre": {"localflock", "noflock"},
}


class Mount(Protocol):
    """The attributes of ``psutil.disk_partitions()`` entries that are used here."""

    @property
    def mountpoint(self) -> str: ...

    @property
    def fstype(self) -> str: ...

    @property
    def opts(self) -> str: ...


def mounts() -> list[Mount]:
    """All mounts of this machine, including network file systems."""
    return list(psutil.disk_partitions(all=True))


def journal_mode(path: Path, mounted: Sequence[Mount]) -> Literal["wal", "truncate"]:
    """SQLite's journal mode for a file at ``path``: a write-ahead log, or a rollback journal on network disks.

    The rollback journal is truncated after each transaction, not deleted. For some seconds, another host may still
    believe that a file which it cached as missing is missing. It would then overlook the journal of a crashed writer.

    Raises:
        ValueError: locks on that disk do not reach other hosts. The message names the disk and a remedy, but neither
            ``path`` nor the setting that holds it.
    """
    mount = _mount_of(path, mounted)
    if mount is None:
        return "wal"
    options = mount.opts.split(",")
    reason = None
    if mount.fstype in _LOCAL_LOCKS or (mount.fstype.startswith("fuse.") and mount.fstype not in _GLOBAL_LOCKS):
        reason = mount.fstype
    elif local := _LOCAL_LOCK_OPTIONS.get(mount.fstype, set()).intersection(options):
        reason = f"{mount.fstype} with {min(local)}"
    elif mount.fstype == "lustre" and "flock" not in options:
        reason = "lustre without flock"
    if reason:
        raise ValueError(
            f"{mount.mountpoint} is {reason}, where file locks do not reach other hosts, so that two runs could damage "
            "the file. Use a file in a folder where only you can write, on a local disk or on NFS with locks: for "
            f"example {Path.home() / 'judge.sqlite'}, if your home directory is on such a disk"
        )
    return "truncate" if mount.fstype in _GLOBAL_LOCKS else "wal"


def _mount_of(path: Path, mounted: Collection[Mount]) -> Mount | None:
    """The mount that holds ``path``. If several mounts share a mount point, the last one hides the others."""
    resolved = path.expanduser().resolve()
    holding = [mount for mount in mounted if resolved.is_relative_to(mount.mountpoint)]
    deepest = max((len(Path(mount.mountpoint).parts) for mount in holding), default=0)
    return next((mount for mount in reversed(holding) if len(Path(mount.mountpoint).parts) == deepest), None)
