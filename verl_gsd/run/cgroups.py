"""The control groups of this process, by which Linux and containers limit a process, and their limit on CPU time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def own_cgroups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[int, Path]]:
    """(version of cgroups, folder) of this process's control groups that may have ``controller``, e.g. ``memory``.

    A machine can use both versions. In a container, the path of the host may not exist. The folder is then the root,
    which is the container's own group.

    Args:
        proc, cgroups: where these file systems are mounted.
    """
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield 2, _inside(cgroups, path)
            elif controller in controllers.split(","):
                yield 1, _inside(cgroups / controller, path)


def cpu_quota(proc: Path = PROC, cgroups: Path = CGROUPS) -> float | None:
    """The number of cores whose time this process may use; None if there is no limit.

    A limit of a group also holds for the groups within it, so that this is the smallest limit of this process's groups
    and of the groups that contain them.

    Args:
        proc, cgroups: see ``own_cgroups``.
    """
    quotas = (
        quota
        for version, folder in own_cgroups("cpu", proc, cgroups)
        for group in (folder, *folder.parents)
        if group.is_relative_to(cgroups) and (quota := _quota(version, group)) is not None
    )
    return min(quotas, default=None)


def _inside(root: Path, path: str) -> Path:
    folder = root / path.lstrip("/")
    return folder if folder.is_dir() else root


def _quota(version: int, group: Path) -> float | None:
    """The limit of one group: microseconds of CPU time per microsecond. None if it has none."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()  # "max 100000" without a limit
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None  # version 1 has -1 without a limit
    except (OSError, ValueError, ZeroDivisionError):
        return None
