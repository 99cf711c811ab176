"""Restores the metrics of a step that was checkpointed but not logged.

verl logs a step only after it saved the checkpoint, sent the weights to vLLM and validated. If the process is killed
before that, there is a checkpoint of step N, but RUN/metrics has no line for step N. A resume does not train that step
again. The trainer therefore saves the metrics that are known so far with each checkpoint:

    RUN/global_step_N/gsd/metrics.json   {"attempt": ..., "step": N, "data": {...}}

When a run ends and when it is resumed, the launcher adds the line to the metrics of the attempt if it is missing.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import read_regular
from verl_gsd.rundir import TRAINED, RunDirectory
from verl_gsd.writing import atomic_write

_FILE = Path("gsd") / "metrics.json"


def save(checkpoint: Path, attempt: int, step: int, metrics: Mapping[str, Any]) -> None:
    """Write the metrics of ``step`` into the folder of its checkpoint. Values that are not numbers are omitted.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    data = {name: number for name, value in metrics.items() if (number := _number(value)) is not _NO_NUMBER}
    with atomic_write(checkpoint / _FILE) as path:
        path.write_text(json.dumps({"attempt": attempt, "step": step, "data": data}) + "\n", encoding="utf-8")


def restore(run: RunDirectory) -> int | None:
    """Add the line for the newest checkpoint's step to the attempt's metrics if it is missing, in the format of verl.

    Call this only while no process trains in the run. It first removes an incomplete last line. If the disk is full,
    nothing is added until the next call.

    Returns:
        The step whose line was added; None if the line exists, or if the checkpoint has no saved metrics.
    """
    newest = run.latest_checkpoint()
    if newest is None:
        return None
    try:
        saved = parse_json(read_regular(run.checkpoint(newest) / _FILE))
        attempt, step, data = int(saved["attempt"]), int(saved["step"]), dict(saved["data"])
    except (OSError, OverflowError, ValueError, KeyError, TypeError):  # missing or damaged: only this line is lost
        return None
    path = run.metrics(attempt)
    content = path.read_bytes() if path.is_file() else b""
    kept = content[: content.rfind(b"\n") + 1]
    if any(_is_line_of(step, line) for line in kept.splitlines()):
        return None
    line = json.dumps({"step": step, "data": data}, separators=(",", ":")) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.is_file() else "wb") as file:
            file.truncate(len(kept))
            file.seek(len(kept))
            file.write(line.encode())
    except OSError:
        return None
    return step


def _is_line_of(step: int, line: bytes) -> bool:
    """Whether ``line`` has the metrics of the training step. Validation before the first step has a separate line."""
    try:
        entry = parse_json(line)
        return entry["step"] == step and TRAINED in entry["data"]
    except (ValueError, KeyError, TypeError):
        return False


_NO_NUMBER = object()


def _number(value: Any) -> Any:
    """``value`` as a JSON number, or None for NaN as in verl's logger; ``_NO_NUMBER`` if it is not a number."""
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        return _NO_NUMBER
    plain = int(value) if isinstance(value, numbers.Integral) else float(value)
    return plain if math.isfinite(plain) else None
