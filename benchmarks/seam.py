"""What seeing groups whole costs: our share of a step, of a run that was made.

    .venv/bin/python benchmarks/seam.py RUN

Medians over the steps of one attempt, and their ratio. At most .05 on the demo, .01 where a step takes over 10 s.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import typer

from verl_gsd.rundir import RunDirectory, read_metrics


def main(run: Annotated[Path, typer.Argument()], attempt: Annotated[int, typer.Option()] = 1) -> None:
    """Print the medians and the ratio."""
    steps = [data for _, data in read_metrics(RunDirectory(run).metrics(attempt)) if "timing_s/gsd_read" in data]
    ours = statistics.median(data["timing_s/gsd_read"] + data["timing_s/gsd_write"] for data in steps)
    step = statistics.median(data["timing_s/step"] for data in steps)
    print(f"{len(steps)} steps: {1e3 * ours:.0f} ms of {step:.2f} s, {ours / step:.4f}")


if __name__ == "__main__":
    typer.run(main)
