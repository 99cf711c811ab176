"""How a benchmark's figures are published: with the machine they are of, in one JSON file."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import psutil


def machine() -> str:
    """Cores, memory and architecture."""
    return f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.machine()}"


def write(result: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
