"""Processor time and memory of every planning function, for ten million prompts.

    .venv/bin/python benchmarks/planning.py

Rates are uniform. Counts are of 64 responses. The cost of the functions in ``BY_DISTINCT`` grows with the number of
distinct rates, so they have 1,025 of them, as of 1,024 responses. The functions in ``DISTINCT`` are measured a second
time with distinct values, for fewer prompts. Each measurement has a process of its own. Seconds are processor time, so
other work on the machine hardly matters. Peak memory includes the inputs and Python.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import typer

from verl_gsd import planning

PROMPTS, SIZE, RESPONSES = 10_000_000, 8, 64
OBJECTIVES = ("expected_std", "mixed", "fidelity")
#: Number of prompts with distinct rates, or distinct counts.
DISTINCT = {
    "required_group_size": 100_000,
    "allocate": 1_000_000,
    "allocate_from_counts": 100_000,
    "posterior_expected_std": 1_000_000,
}

OF_RATES: dict[str, Callable[[np.ndarray], object]] = {
    "silent_rate": lambda p: planning.silent_rate(p, SIZE),
    "mixed_rate": lambda p: planning.mixed_rate(p, SIZE),
    "gain": lambda p: planning.gain(p, SIZE, 0.5),
    "expected_std": lambda p: planning.expected_std(p, SIZE),
    "fidelity": lambda p: planning.fidelity(p, SIZE),
}
OF_COUNTS: dict[str, Callable[[np.ndarray], object]] = {
    "silent_rate_from_counts": lambda c: planning.silent_rate_from_counts(c, RESPONSES, SIZE),
    "expected_std_from_counts": lambda c: planning.expected_std_from_counts(c, RESPONSES, SIZE),
    "posterior_silent_rate": lambda c: planning.posterior_silent_rate(c, RESPONSES, SIZE),
    "posterior_expected_std": lambda c: planning.posterior_expected_std(c, RESPONSES, SIZE),
    "posterior_gain": lambda c: planning.posterior_gain(c, RESPONSES, SIZE, 0.5),
    "allocate_from_counts": lambda c: planning.allocate_from_counts(c, np.full(len(c), RESPONSES), SIZE * len(c)),
}
#: With rates of 1,025 distinct values.
BY_DISTINCT: dict[str, Callable[[np.ndarray], object]] = {
    "required_group_size": lambda p: planning.required_group_size(p, 0.05),
    **{
        f"allocate {objective}": lambda p, objective=objective: planning.allocate(p, SIZE * len(p), objective=objective)
        for objective in OBJECTIVES
    },
}


def measure(name: str, distinct: int | None) -> dict[str, float]:
    """Seconds of processor time, and GiB at the peak of this process."""
    rng = np.random.default_rng(0)
    values = rng.random(distinct or PROMPTS)
    if name in OF_COUNTS:
        # Counts that are discounted by their age are fractions.
        values = values * RESPONSES if distinct else rng.binomial(RESPONSES, values)
    elif name in BY_DISTINCT and not distinct:
        values = np.round(values * 1024) / 1024
    function = {**OF_RATES, **OF_COUNTS, **BY_DISTINCT}[name]
    start = time.process_time()
    function(values)
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def main(
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/planning.json"),
) -> None:
    """Measure, print, write down."""
    tasks = [(name, None) for name in (*OF_RATES, *OF_COUNTS, *BY_DISTINCT)]
    tasks += [
        (name, count)
        for name, _ in tasks
        for start, count in DISTINCT.items()
        if name in (start, f"{start} expected_std")
    ]
    result: dict[str, object] = {"machine": publishing.machine(), "prompts": PROMPTS}
    for name, distinct in tasks:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(measure, name, distinct).result()
        label = name if distinct is None else f"{name}, {distinct:,} prompts with distinct values"
        print(f"{label:70} {measured['seconds']:6.2f} s {measured['peak_gib']:.2f} GiB", flush=True)
        result[label] = measured
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
