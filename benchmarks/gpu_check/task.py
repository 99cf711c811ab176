"""The embedded task, made once on the CPU for the runs that follow; ``VERL_GSD_CACHE`` names its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gpu_check.record import Report
from verl_gsd.tasks import embedded


def folder() -> Path:
    """Where ``task=arithmetic`` expects the task."""
    return Path(os.environ.get("VERL_GSD_CACHE") or Path.home() / ".cache" / "verl_gsd") / "arithmetic"


def check(report: Report) -> str:
    """Make the task where it is missing."""
    start, was_there = time.perf_counter(), embedded.is_ready(folder())
    embedded.ensure(folder(), on_step=_say)
    seconds = time.perf_counter() - start
    report.write({"folder": str(folder()), "was_there": was_there, "seconds": seconds})
    return f"the embedded task was there, in {folder()}" if was_there else f"made {folder()} in {seconds:.0f} s"


def _say(step: int, loss: float) -> None:
    if step % 100 == 0:
        print(f"warm start: step {step}, loss {loss:.3f}", flush=True)
