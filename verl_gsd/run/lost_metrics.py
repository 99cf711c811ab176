"""The metrics of a step that was checkpointed and never logged.

verl logs a step after it has saved the checkpoint, sent the weights to vLLM and validated. A process that is killed in
between leaves a checkpoint of step N and no line of step N in RUN/metrics, although the step counts after a resume. The
trainer therefore saves with each checkpoint what is known of its step by then:

    RUN/global_step_N/gsd/metrics.json   {"attempt": ..., "step": N, "data": {...}}

The launcher adds the line to the attempt's metrics if it is missing, when the run has ended and when it is resumed.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_gsd.rundir import TRAINED, RunDirectory
from verl_gsd.writing import atomic_write

_FILE = Path("gsd") / "metrics.json"


def save(checkpoint: Path, attempt: int, step: int, metrics: Mapping[str, Any]) -> None:
    """Write what is known of ``step`` into its checkpoint's folder. Values that are no numbers are left out.

    Raises:
        OSError: there is no room, or no right to write.
    """
    data = {name: number for name, value in metrics.items() if (number := _number(value)) is not _NO_NUMBER}
    with atomic_write(checkpoint / _FILE) as path:
        path.write_text(json.dumps({"attempt": attempt, "step": step, "data": data}) + "\n", encoding="utf-8")


def restore(run: RunDirectory) -> int | None:
    """Add the missing line of the newest checkpoint's step to its attempt's metrics, in the format of verl's logger.

    Only for a run in which nobody trains. A last line that the end of the run cut off is removed first. If the disk is
    full, the line stays missing until the next call.

    Returns:
        The step whose line was added; None if the line was there, or if the checkpoint does not have one.
    """
    announced = run.latest_checkpoint()
    if announced is None:
        return None
    try:
        saved = json.loads((run.checkpoint(announced) / _FILE).read_bytes())
        attempt, step, data = int(saved["attempt"]), int(saved["step"]), dict(saved["data"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: the line is lost, and nothing else
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
    """Whether ``line`` is of the training step; a validation before the first step has a line of its own."""
    try:
        entry = json.loads(line)
        return entry["step"] == step and TRAINED in entry["data"]
    except (ValueError, KeyError, TypeError):
        return False


_NO_NUMBER = object()


def _number(value: Any) -> Any:
    """``value`` as JSON has it, where verl's logger writes null for NaN; ``_NO_NUMBER`` if it is something else."""
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        return _NO_NUMBER
    plain = int(value) if isinstance(value, numbers.Integral) else float(value)
    return plain if math.isfinite(plain) else None
