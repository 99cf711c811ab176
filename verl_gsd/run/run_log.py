"""Extracts the relevant lines from a run's log, which contains everything that verl, Ray and vLLM printed.

A log often has gigabytes. The last lines are found by reading the file backwards in blocks, so that its size does not
matter.
"""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from verl_gsd.run.messages import OWN

#: Longer lines are cut to this number of characters. verl prints all metrics of a step as one line of 4 kB.
_LONGEST = 300
_BLOCK = 1 << 16
#: The lines of one process are searched in this many bytes at the end of a log.
_SEARCHED = 64 << 20

#: Colors, other terminal sequences, and control characters except the tab.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RAYS_HINT = re.compile(r" \(Ray deduplicates logs by default\..*$")
#: The prefix by which Ray and vLLM name the process: ``(Name pid=7)``, ``(pid=7)`` or ``(Name pid=7, ip=10.0.0.2)``.
_PREFIX = re.compile(r"\((?:[^()]* )?pid=(\d+)(?:, ip=[^()]*)?\) ?")
_EXCEPTION = re.compile(r"\b\w+(?:Error|Exception): .+")
_NAMES_EXCEPTION = re.compile(rb"(?:Error|Exception): ")


def first_exception(log: Path) -> str | None:
    """The first line of ``log`` with an exception. verl often continues for a long time after the error.

    The search starts after the metrics of the last step, because the run survived earlier exceptions. If there is none
    after them, the whole log is searched. Our own messages, which may quote an exception, are ignored.
    """
    with log.open("rb") as file:
        if not file.seek(0, 2):
            return None  # an empty file cannot be mapped
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            last_step = content.rfind(b"step:")
            return _exception_after(content, max(0, last_step)) or _exception_after(content, 0)


def _exception_after(content: mmap.mmap, position: int) -> str | None:
    for match in _NAMES_EXCEPTION.finditer(content, position):
        start = content.rfind(b"\n", 0, match.start()) + 1
        end = content.find(b"\n", match.start())
        line = _readable(content[start : end if end >= 0 else len(content)])
        if _EXCEPTION.search(line) and OWN not in line:
            return line.strip()
    return None


def last_lines(log: Path, lines: int) -> list[str]:
    """The last lines of ``log``, oldest first, without colors, each cut to 300 characters."""
    return _newest(map(_readable, _lines_backwards(log)), lines)


def last_lines_of(log: Path, pid: int, lines: int) -> list[str]:
    """The last lines of ``log`` that the process ``pid`` or its children printed, oldest first, without prefixes.

    Lines of a Ray worker's child, for example of vLLM's engine, have a prefix with the worker's process id and then a
    prefix with the child's.
    """

    def lines_of_process() -> Iterator[str]:
        prefix = f"pid={pid}".encode()
        for line in _lines_backwards(log, _SEARCHED):
            if prefix in line:
                pids, text = _without_prefixes(_readable(line, cut=False))
                if pid in pids:
                    yield _cut(text)

    return _newest(lines_of_process(), lines)


def _newest(newest_first: Iterator[str], count: int) -> list[str]:
    return list(itertools.islice(newest_first, count))[::-1]


def _without_prefixes(line: str) -> tuple[list[int], str]:
    pids: list[int] = []
    while match := _PREFIX.match(line):
        pids.append(int(match[1]))
        line = line[match.end() :]
    return pids, line


def _readable(line: bytes, cut: bool = True) -> str:
    # Progress bars overwrite their line, so a terminal shows only the text after the last carriage return.
    text = line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
    text = _RAYS_HINT.sub("", _CONTROL.sub("", text))
    return _cut(text) if cut else text


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} [{len(text) - _LONGEST} more characters]"


def _lines_backwards(log: Path, limit: int | None = None) -> Iterator[bytes]:
    """The lines in the last ``limit`` bytes of a file (None: in all of it), last line first, without empty lines."""
    with log.open("rb") as file:
        position = file.seek(0, 2)
        first = 0 if limit is None else max(0, position - limit)
        rest = b""
        while position > first:
            size = min(_BLOCK, position - first)
            position -= size
            file.seek(position)
            rest, *complete = (file.read(size) + rest).split(b"\n")
            yield from filter(None, reversed(complete))
        if position == 0 and rest:
            yield rest
