"""Seconds a step of verl's trainer mode ``sync`` and of ``gsd_sync`` on the CPU platform, in one run of this script.

    .venv/bin/python benchmarks/step.py

Each mode trains the embedded task from the same model with the same seeds; what differs is how often the replay
buffer is looked at (verl's 2 s against 0.1 s). Prints the median, minimum and maximum of verl's own step timer, the
first three steps left out (kernels warm up), and the ratio of the medians; writes them as JSON with the machine.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import publishing
import typer

from verl_gsd.rundir import RunDirectory, read_metrics

WARM_UP = 3
GROUP_SIZE = 8


def step_seconds(mode: str, steps: int, rows: int, folder: Path) -> list[float]:
    """verl's ``timing_s/step`` of every step after the warm-up."""
    run = RunDirectory(folder / mode)
    words = [
        *("algo=grpo", "task=arithmetic", "hardware=cpu", f"trainer.v1.trainer_mode={mode}"),
        *(f"trainer.default_local_dir={run.path}", f"trainer.total_training_steps={steps}"),
        *(f"data.train_batch_size={rows // GROUP_SIZE}", f"actor_rollout_ref.rollout.n={GROUP_SIZE}"),
        *("trainer.save_freq=-1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    ]
    subprocess.run([Path(sys.executable).parent / "verl-gsd", "train", *words], check=True, stdout=sys.stderr)
    seconds = [data["timing_s/step"] for _, data in read_metrics(run.metrics(1))]
    return seconds[WARM_UP:]


def main(
    steps: Annotated[int, typer.Option(help="Steps of each mode, the warm-up of 3 included.")] = 12,
    rows: Annotated[int, typer.Option(help="Responses a step, in groups of 8.")] = 16,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/step.json"),
) -> None:
    """Measure both modes and print their ratio; the bar is at most one half."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = {mode: step_seconds(mode, steps, rows, Path(folder)) for mode in ("sync", "gsd_sync")}
    medians = {mode: statistics.median(values) for mode, values in seconds.items()}
    result = {
        "machine": publishing.machine(),
        "rows": rows,
        "seconds": seconds,
        "ratio": medians["gsd_sync"] / medians["sync"],
    }
    for mode, values in seconds.items():
        spread = f"min {min(values):.2f}  max {max(values):.2f}  ({len(values)} steps)"
        print(f"{mode:9} median {medians[mode]:.2f} s  {spread}")
    print(f"gsd_sync / sync = {result['ratio']:.2f}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
