"""What DaGRPO's mask costs in the chain: time, and memory on top of the process, for groups of 8 to 512 responses.

    .venv/bin/python benchmarks/dagrpo.py

Each case has 32,768 responses, scores of 0 to 10, and 1 % failed judgements. The table gives the processor time of the
chain with the mask, its ratio to the same chain without the mask, and the growth of the process's peak memory. The
limits for groups of 512 are 0.5 s and 200 MB. Processor time of one thread is used, because the machine may be shared.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import torch
import typer

from verl_gsd import chain
from verl_gsd.algorithms.dagrpo.mask import Dagrpo

ROWS = 32_768
GROUP_SIZES = (8, 64, 512)
#: Name -> settings of ``algorithm.gsd.dagrpo``.
CASES = {
    "pairs": {"delta": 2.0},
    "min": {"delta": 2.0, "mask": "min"},
    "mean": {"delta": 2.0, "mask": "mean"},
    "quantile": {"delta": {"quantile": 0.5}},
}


def measure(size: int, case: str, graded: bool, rounds: int) -> tuple[float, float, float]:
    """Median seconds with the mask and without it, and the growth of the peak memory in MB. Run in a new process."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    rewards = torch.from_numpy(generator.random(ROWS) if graded else generator.integers(0, 2, ROWS)).float()
    scores = torch.from_numpy(generator.integers(0, 11, ROWS)).double()
    scores[::97] = float("nan")
    columns = {
        "judge_score": scores,
        "verdict": rewards.double(),
        "judge_failed": scores.isnan(),
        "demonstration": torch.zeros(ROWS, dtype=torch.bool),
    }
    index = np.arange(ROWS) // size
    dial = {"alpha": 1.0, "ddof": 1, "eps": 1e-6}
    section = dial | {"dagrpo": CASES[case]}
    extensions = {"dagrpo": Dagrpo(CASES[case])}

    def with_mask(rows: int = ROWS) -> None:
        part = {name: column[:rows] for name, column in columns.items()}
        chain.advantages(rewards[:rows], index[:rows], section, columns=part, extensions=extensions)

    def without_mask() -> None:
        chain.advantages(rewards, index, dial)

    with_mask(size)  # imports and caches
    without_mask()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, function in (("with", with_mask), ("without", without_mask)):
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return statistics.median(seconds["with"]), statistics.median(seconds["without"]), peak


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds per case.")] = 5,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/dagrpo.json"),
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every case in a process of its own, print the figures, and write them to a file."""
    if one is not None:
        size, case, rewards = one.split(",")
        print(*measure(int(size), case, rewards == "graded", rounds))
        return
    result: dict[str, object] = {"machine": publishing.machine(), "rows": ROWS, "rounds": rounds}
    for size in GROUP_SIZES:
        for case in CASES:
            for rewards in ("binary", "graded"):
                words = [sys.executable, __file__, "--rounds", str(rounds), "--one", f"{size},{case},{rewards}"]
                text = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
                masked, plain, peak = map(float, text.split())
                name = f"groups of {size}, {case}, {rewards} rewards"
                result[name] = {"seconds": masked, "ratio_to_no_mask": masked / plain, "peak_mb": peak}
                print(f"{name}: {masked:.3f} s, {masked / plain:.0f} times the chain without a mask, {peak:.0f} MB")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
