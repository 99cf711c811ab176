"""What drawing a step's prompts by their disagreement costs, at data sets of several sizes, all of it visited.

    .venv/bin/python benchmarks/sampler.py

Each draw follows a step in which its prompts were observed, as in a run. Printed are medians; ``first_s`` is what a
resume pays once, to find every prompt of the memory in the data.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import typer

from verl_gsd.algorithms.rollouts.sampler import DisagreementSampler
from verl_gsd.prompts import PromptStore
from verl_gsd.run.dataset import PromptKeys

BATCHES = {2_560: 24, 100_000: 256, 1_000_000: 1024}


def main(
    rounds: Annotated[int, typer.Option(help="Timed draws at each size.")] = 30,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/sampler.json"),
) -> None:
    """Measure, print, write down."""
    result = {"machine": publishing.machine(), "draws": [_measure(n, batch, rounds) for n, batch in BATCHES.items()]}
    for row in result["draws"]:
        print(row)
    publishing.write(result, output)


def _measure(n_prompts: int, batch: int, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    store = PromptStore(half_life=100)
    for prompt, right in zip(rng.permutation(n_prompts).tolist(), rng.integers(0, 9, n_prompts).tolist(), strict=True):
        store.observe(("data", prompt), right, 8, 0)
    step = 0
    keys = PromptKeys(("data",), np.zeros(n_prompts, np.int32), np.arange(n_prompts))
    sampler = DisagreementSampler(keys, store, count=batch, explore=0.1, seed=1, step=lambda: step)
    drawing = iter(sampler)
    seconds = []
    for step in range(1, rounds + 2):
        drawn = [next(drawing)]
        seconds.append(sampler.seconds)
        drawn += [next(drawing) for _ in range(batch - 1)]
        for prompt in drawn:
            store.observe(("data", prompt), 4, 8, step)
        sampler.seconds = 0.0
        if step % (n_prompts // batch) == 0:
            drawing = iter(sampler)  # a pass is over
    return {
        "prompts": n_prompts,
        "batch": batch,
        "draw_ms": 1e3 * statistics.median(seconds[1:]),
        "slowest_ms": 1e3 * max(seconds[1:]),
        "first_s": seconds[0],
    }


if __name__ == "__main__":
    typer.run(main)
