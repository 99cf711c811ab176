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
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import psutil
import publishing
import torch
import typer

GROUPS, SIZE, MINI_BATCH = 16, 8, 4
ROUTES = {"vanilla": "dr_grpo", "whole": "gvpo", "prepass": "gvpo"}


def config_of(route: str, task: Path) -> Any:
    """The resolved config: micro-batches of two groups' tokens, under either algorithm."""
    from verl_gsd.trainer.config import compose_config, parse_line, resolve

    actor = "actor_rollout_ref.actor"
    words = [f"algo={ROUTES[route]}", "task=arithmetic", "hardware=cpu", f"task.directory={task}"]
    words += [f"data.train_batch_size={GROUPS}", f"{actor}.ppo_mini_batch_size={MINI_BATCH}"]
    words += [f"{actor}.ppo_max_token_len_per_gpu=6144", f"actor_rollout_ref.rollout.n={SIZE}"]
    words += [f"algorithm.gsd.gvpo.grouping={route}"] if route != "vanilla" else []
    return resolve(compose_config(parse_line(words)))


def rows(generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """GROUPS groups of SIZE rows: 48 to 80 tokens of prompt, 32 to 256 of response."""
    made = []
    for _ in range(GROUPS):
        prompt = torch.randint(5, 256, (int(torch.randint(48, 81, (), generator=generator)),), generator=generator)
        for _ in range(SIZE):
            response = torch.randint(
                5, 256, (int(torch.randint(32, 257, (), generator=generator)),), generator=generator
            )
            mask, ids = torch.ones_like(response), torch.cat([prompt, response])
            made.append(
                {
                    "prompts": prompt,
                    "responses": response,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "response_mask": mask,
                    "loss_mask": mask,
                    "old_log_probs": -5.5 * torch.ones(len(response)),
                    "advantages": torch.randn((), generator=generator) * torch.ones(len(response)),
                }
            )
    return made


class Updater:
    """A worker of verl's with one route's loss, and its batch."""

    def __init__(self, route: str, task: Path) -> None:
        from verl.utils import tensordict_utils as tu
        from verl.workers.engine_workers import ActorRolloutRefWorker

        from verl_gsd.trainer.gvpo_update import GVPOUpdate
        from verl_gsd.trainer.worker import GVPOActorWorker

        config, made = config_of(route, task), rows(torch.Generator().manual_seed(0))
        self.worker = (ActorRolloutRefWorker if route == "vanilla" else GVPOActorWorker)(
            config=config.actor_rollout_ref, role="actor"
        )
        self.worker.init_model()
        keys = [f"uid{row // SIZE}_{row % SIZE}_0" for row in range(len(made))]
        self.info = {
            **{"global_batch_size": MINI_BATCH * SIZE, "mini_batch_size": MINI_BATCH * SIZE, "epochs": 1, "seed": 1},
            **{"temperature": 1.0, "dataloader_kwargs": {"shuffle": False}, "calculate_entropy": False},
            **{"distillation_use_topk": False, "distillation_only": False},
        }
        # The same rows in the same mini-batches for all three.
        update = GVPOUpdate(config if route != "vanilla" else config_of("prepass", task))
        lengths = [len(row["input_ids"]) for row in made]
        sizes = {"padding_tokens": 128, "workers": 1, "multiple": MINI_BATCH * SIZE}
        places, _ = update.place(keys, lengths, lengths, **sizes)
        made, keys = [made[row] for row in places], [keys[row] for row in places]
        if route != "vanilla":
            columns = update.columns(keys, torch.stack([row["advantages"][0] for row in made]))
            made = [row | {name: values[at] for name, values in columns.items()} for at, row in enumerate(made)]
            self.info |= update.instructions(theta_is_old=True)
        self.rows = tu.list_of_dict_to_tensordict(made)

    def update(self) -> float:
        """Seconds of one step's updates."""
        from verl.utils import tensordict_utils as tu

        data = self.rows.copy()
        tu.assign_non_tensor(data, **self.info)
        start = time.perf_counter()
        self.worker.update_actor(data)
        return time.perf_counter() - start


def _prepare() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    sys.stdout.flush()


def _make(task: Path) -> None:
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
    embedded.ensure(task, specification)


def _peak(route: str, task: Path) -> float:
    _prepare()
    updater = Updater(route, task)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(3):
        updater.update()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024 - before / 2**20


def _times(rounds: int, task: Path) -> list[dict[str, float]]:
    _prepare()
    updaters = {route: Updater(route, task) for route in ROUTES}
    for updater in updaters.values():
        updater.update()
    return [{route: updater.update() for route, updater in updaters.items()} for _ in range(rounds)]


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
