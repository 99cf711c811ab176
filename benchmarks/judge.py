"""What judging costs: a slow judge asked about a whole step, a step that was judged before, and, of a run, its share.

    .venv/bin/python benchmarks/judge.py
    .venv/bin/python benchmarks/judge.py --run RUN      # made with judge.scorer=stub

1,024 responses at 100 ms a call and 64 in flight, which no judge could answer in less than 1.6 s, in at most 2 s; one
that the cache has in at most 1 ms; with the stub at most .02 of a step.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import publishing
import typer

from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.judge import Judge
from verl_gsd.judge.scorer import Question
from verl_gsd.rundir import RunDirectory, read_metrics

RESPONSES, SIZE, IN_FLIGHT, CALL_S = 1024, 8, 64, 0.1
#: Characters of a response: some two thousand tokens.
LENGTH = 8000


class SlowStub:
    """Answers after ``CALL_S``, whatever it is asked."""

    identity = "slow"

    async def score(self, question: Question) -> float:
        await asyncio.sleep(CALL_S)
        return 5.0

    async def close(self) -> None:
        pass


def asked(judge: Judge, groups: list[list[Question]]) -> float:
    """Seconds until all ``groups`` have their scores, looked at as often as the trainer looks on a small run."""
    start = time.perf_counter()
    for number, questions in enumerate(groups):
        judge.ask(str(number), questions)
    while not all(judge.is_done(str(number)) for number in range(len(groups))):
        time.sleep(0.01)
    for number in range(len(groups)):
        judge.take(str(number))
    return time.perf_counter() - start


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 5,
    run: Annotated[Path | None, typer.Option(help="A run's folder, made with the stub.")] = None,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/judge.json"),
) -> None:
    """Measure, print, write down."""
    fresh, cached = [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder, ScoreCache(Path(folder) / "cache.sqlite") as cache:
            texts = [f"{number} {row} ".ljust(LENGTH, "x") for row in range(RESPONSES)]
            groups = [
                [Question("a problem", "an answer", text) for text in texts[start : start + SIZE]]
                for start in range(0, RESPONSES, SIZE)
            ]
            judge = Judge(SlowStub(), cache, concurrency=IN_FLIGHT)
            fresh.append(asked(judge, groups))
            judge.close()
            judge = Judge(SlowStub(), cache, concurrency=IN_FLIGHT)
            cached.append(1e3 * asked(judge, groups) / RESPONSES)
            assert judge.metrics()["judge/cache_hits"] == RESPONSES
            judge.close()
    result = {
        "machine": publishing.machine(),
        "responses": RESPONSES,
        "in_flight": IN_FLIGHT,
        "call_ms": 1e3 * CALL_S,
        "asked_s": statistics.median(fresh),
        "asked_s_range": [min(fresh), max(fresh)],
        "cache_hit_ms": statistics.median(cached),
        "cache_hit_ms_range": [min(cached), max(cached)],
    }
    if run is not None:
        steps = [data for _, data in read_metrics(RunDirectory(run).metrics(1)) if "timing_s/gsd_judge" in data]
        shares = [data["timing_s/gsd_judge"] / data["timing_s/step"] for data in steps]
        result |= {"steps": len(steps), "stub_share_of_step": statistics.median(shares)}
        result["stub_share_of_step_quartiles"] = statistics.quantiles(shares, n=4)[::2]
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
