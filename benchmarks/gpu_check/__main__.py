"""Run one part in this process: ``python -m gpu_check NAME FILE``, where FILE is the JSON file of its results."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

import torch

from gpu_check.device import device, is_drill
from gpu_check.record import CheckFailedError, Report

PARTS = ("tensors", "gradients", "updates", "advantages", "task", "training")


def main(name: str, file: Path) -> int:
    """The exit status: 0 if the part passed, 1 if it failed; the file says why."""
    report = Report(file)
    if name not in PARTS:
        report.write({}, state="failed", reason=f"{name}: no such part. Use one of {', '.join(PARTS)}.")
        return 1
    report.write({})
    try:
        if is_drill():
            torch.set_num_threads(1)  # the models are tiny: more threads mostly wait for each other
        device()  # before verl is imported: a machine without a GPU is told so at once
        summary = importlib.import_module(f"gpu_check.{name}").check(report)
    except CheckFailedError as error:
        report.end("failed", reason=str(error))
        return 1
    except Exception as error:  # whatever breaks on a machine that nobody has tried is what this script is for
        traceback.print_exc()
        report.end("failed", reason=f"{type(error).__name__}: {error}")
        return 1
    report.end("passed", summary=summary)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
