"""Counts the processes that the kernel killed because memory ran out.

Such a kill is the usual cause if a process ends without an error message. The counters belong to this machine and to
this process's container. If a counter rose during a run, that suggests a kill in the run but does not prove it, because
other programs on the machine are counted as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from verl_gsd.run.cgroups import CGROUPS, PROC, own_cgroups


def oom_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The number of processes that the kernel has killed so far because memory ran out; None if it is unknown.

    /proc/vmstat counts the whole machine, including containers, but some container runtimes hide it. The counter of
    this process's cgroup counts kills by the container's limit. Both may count the same kill, so this returns the
    larger one.
    """
    return max(_counters(proc, cgroups), default=None)


def killed_since(before: int | None) -> str | None:
    """A sentence if the kernel killed processes since ``oom_kills`` returned ``before``; None otherwise."""
    now = oom_kills()
    if before is None or now is None or now <= before:
        return None
    processes = "1 process" if now - before == 1 else f"{now - before} processes"
    return f"The kernel ended {processes} for lack of memory during the run."


def _counters(proc: Path, cgroups: Path) -> Iterator[int]:
    yield from _read(proc / "vmstat")
    for version, folder in own_cgroups("memory", proc, cgroups):
        yield from _read(folder / ("memory.events" if version == 2 else "memory.oom_control"))


def _read(file: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                yield int(value)
