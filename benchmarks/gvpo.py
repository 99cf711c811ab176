"""What GVPO adds to an update, on verl's real FSDP2 engine: time and memory beside the same rows under verl's own loss.

    .venv/bin/python benchmarks/gvpo.py

One worker, four mini-batches, micro-batches of as many tokens each. Every round updates once with verl's loss, with
groups kept whole and with a pass before each mini-batch, one after the other; printed are medians and the medians of
the rounds' ratios. Peak memory is what updates add to a process of their own that has its model.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import publishing
import torch
import typer
from gpu_check.device import be_the_only_worker

GROUPS, SIZE, MINI_BATCH = 16, 8, 4
ROUTES = {"vanilla": "dr_grpo", "whole": "gvpo", "prepass": "gvpo"}


def config_of(route: str, task: Path) -> Any:
    """The resolved config: micro-batches of two groups' tokens, under either algorithm."""
    from verl_gsd.run.compose import compose_config, parse_line, resolve

    actor = "actor_rollout_ref.actor"
    words = [f"algo={ROUTES[route]}", "task=arithmetic", "hardware=cpu", f"task.directory={task}"]
    words += [f"data.train_batch_size={GROUPS}", f"{actor}.ppo_mini_batch_size={MINI_BATCH}"]
    words += [f"{actor}.ppo_max_token_len_per_gpu=6144", f"actor_rollout_ref.rollout.n={SIZE}"]
    words += [f"algorithm.gsd.gvpo.grouping={route}"] if route != "vanilla" else []
    return resolve(compose_config(parse_line(words)))


def rows(generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """GROUPS groups of SIZE rows: 48 to 80 tokens of prompt, 32 to 256 of response."""
    from gpu_check.updater import row

    made = []
    for _ in range(GROUPS):
        prompt = torch.randint(5, 256, (int(torch.randint(48, 81, (), generator=generator)),), generator=generator)
        for _ in range(SIZE):
            response = torch.randint(
                5, 256, (int(torch.randint(32, 257, (), generator=generator)),), generator=generator
            )
            made.append(row(prompt, response, torch.randn((), generator=generator), -5.5))
    return made


def updater_of(route: str, task: Path) -> Callable[[], float]:
    """A function that makes one step's updates with one route's loss and returns their seconds."""
    from gpu_check.updater import Updater, placed, step

    config, made = config_of(route, task), rows(torch.Generator().manual_seed(0))
    if route == "vanilla":  # the same rows in the same mini-batches for all three
        made = placed(config_of("prepass", task), made)[1]
    data, updater = step(config, made), Updater(config)
    return lambda: updater.update(data)


def _make(task: Path) -> None:
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
    embedded.ensure(task, specification)


def _peak(route: str, task: Path) -> float:
    be_the_only_worker()
    update = updater_of(route, task)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(3):
        update()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024 - before / 2**20


def _times(rounds: int, task: Path) -> list[dict[str, float]]:
    be_the_only_worker()
    updates = {route: updater_of(route, task) for route in ROUTES}
    for update in updates.values():
        update()
    return [{route: update() for route, update in updates.items()} for _ in range(rounds)]


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 9,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/gvpo.json"),
) -> None:
    """Measure, print, write down."""
    os.environ["VERL_GSD_CPU"] = "1"
    import verl_gsd.trainer.worker  # noqa: F401, once for all that are forked

    forks, task = multiprocessing.get_context("fork"), Path(tempfile.mkdtemp()) / "task"

    def measured(function: Any, *words: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=forks) as pool:
            return pool.submit(function, *words).result()

    measured(_make, task)  # in a process of its own: threads it starts must not be forked
    peaks = {route: measured(_peak, route, task) for route in ROUTES}
    times = measured(_times, rounds, task)
    result: dict[str, Any] = {
        "machine": publishing.machine(),
        "rows": GROUPS * SIZE,
        "mini_batches": GROUPS // MINI_BATCH,
        "rounds": rounds,
        "seconds": {route: statistics.median(of[route] for of in times) for route in ROUTES},
        "peak_MiB": peaks,
    }
    for route in ("whole", "prepass"):
        ratios = sorted(of[route] / of["vanilla"] for of in times)
        result[f"{route}_of_vanilla"] = statistics.median(ratios)
        result[f"{route}_of_vanilla_quartiles"] = [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]]
        result[f"{route}_peak_of_vanilla"] = peaks[route] / peaks["vanilla"]
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
