"""How many processes the kernel has killed for lack of memory: the usual cause of a process that ends without a word.

The counters are those of this machine and of the container that this process is in. A difference of two readings is
evidence about the processes of one run, and no proof: other programs on the machine are counted as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Processes that the kernel has killed for lack of memory so far; None if no counter can be read.

    /proc/vmstat counts the whole machine, containers included, but some container runtimes hide it. The counter of
    this process's cgroup counts the container's own limit. The larger one is returned, because one kill may be in both.
    """
    return max(_counters(proc, cgroups), default=None)


def killed_since(before: int | None) -> str | None:
    """One sentence if the kernel has killed processes since ``oom_kills`` returned ``before``; None otherwise."""
    now = oom_kills()
    if before is None or now is None or now <= before:
        return None
    processes = "1 process" if now - before == 1 else f"{now - before} processes"
    return f"The kernel ended {processes} for lack of memory while the run ran."


def _counters(proc: Path, cgroups: Path) -> Iterator[int]:
    yield from _read(proc / "vmstat")
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2: one tree
                yield from _read(_inside(cgroups, path) / "memory.events")
            elif "memory" in controllers.split(","):
                yield from _read(_inside(cgroups / "memory", path) / "memory.oom_control")


def _inside(root: Path, path: str) -> Path:
    """The folder of a cgroup. In a container the host's path leads nowhere, and the root is the container's own."""
    folder = root / path.lstrip("/")
    return folder if folder.is_dir() else root


def _read(file: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                yield int(value)
