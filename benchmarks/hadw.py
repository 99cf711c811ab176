"""What HA-DW adds to a step at 1,024 rows: columns, factor, records, end of the step, beside the chain it weighs.

    .venv/bin/python benchmarks/hadw.py

Every round runs the chain without and with it on the same batch; printed are medians and the difference. It reads no
queue, so this is all it costs.
"""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import torch
import typer

from verl_gsd import chain
from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.groups import Group, Member

GROUPS, SIZE = 128, 8
DIAL = {"alpha": 1.0, "ddof": 1, "eps": 1e-6}


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 200,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/hadw.json"),
) -> None:
    """Measure, print, write down; every 50 rounds apart, to show that nothing grows."""
    rng = np.random.default_rng(0)
    uids = itertools.count()
    hadw = Hadw({"preset": "hard"})
    index = np.repeat([f"uid{number}" for number in range(GROUPS)], SIZE)
    without: list[float] = []
    added: list[float] = []
    for _ in range(rounds + 5):
        verdicts = rng.integers(0, 2, (GROUPS, SIZE)).astype(np.float64)
        groups = [
            Group(f"uid{next(uids)}", f"source{number % 2}", number, row, row, np.ones(SIZE, np.int64))
            for number, row in enumerate(verdicts)
        ]
        rewards = torch.from_numpy(verdicts.ravel()).float()
        rows = [group for group in groups for _ in range(SIZE)]
        start = time.perf_counter()
        chain.advantages(rewards, index, DIAL, extensions={})
        middle = time.perf_counter()
        columns = hadw.stage_inputs([Member(hadw.on_group_left(group, "trained"), 0) for group in rows], groups)
        gsd = DIAL | {"hadw": {"preset": "hard"}}
        chain.advantages(rewards, index, gsd, columns=columns, extensions={"hadw": hadw})
        for group in groups:
            hadw.record(group)
        hadw.end_step(groups)
        end = time.perf_counter()
        without.append(middle - start)
        added.append((end - middle) - (middle - start))
    without, added = without[5:], added[5:]
    result = {
        "machine": publishing.machine(),
        "rows": GROUPS * SIZE,
        "chain_ms": 1e3 * statistics.median(without),
        "hadw_adds_ms": 1e3 * statistics.median(added),
        "hadw_adds_ms_by_50_rounds": [1e3 * statistics.median(added[i : i + 50]) for i in range(0, rounds, 50)],
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
