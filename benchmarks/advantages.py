"""Estimator ``gsd`` against verl's ``grpo`` and ``grpo_vectorized``, in one run of this script.

    .venv/bin/python benchmarks/advantages.py

Every round times the three estimators one after the other on the same batch, so that whatever else the machine does
hits all of them alike; printed are medians over the rounds and ratios of medians. Groups of 8, 16 and 32 responses of
1,024 tokens, an int64 response mask and uuid labels, as verl hands them over. "row part" is what is left of ours
without the two passes over tokens that any estimator must make.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import torch
import typer
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_grpo_vectorized_outcome_advantage

from verl_gsd import chain
from verl_gsd.trainer.estimator import gsd_advantage, not_padding

TOKENS = 1024
BATCHES = ((512, 8), (8192, 16), (32768, 32))
CONFIG = OmegaConf.create({"gsd": {"alpha": 1.0, "ddof": 1, "eps": 1e-6}})


def batch(rows: int, group_size: int, device: torch.device) -> dict[str, torch.Tensor | np.ndarray]:
    """Binary rewards on the last token, responses of random length, groups in consecutive rows, on ``device``."""
    generator = torch.Generator().manual_seed(rows)
    length = torch.randint(64, TOKENS + 1, (rows, 1), generator=generator)
    position = torch.arange(TOKENS)
    right = torch.randint(0, 2, (rows, 1), generator=generator).float()
    uids = [uuid.UUID(int=i + (1 << 64)).hex for i in range(rows // group_size)]
    return {
        "token_level_rewards": (right * (position == length - 1)).to(device),
        "response_mask": (position < length).long().to(device),
        "index": np.repeat(np.array(uids, dtype=object), group_size),
    }


def interleaved(functions: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each function over ``rounds`` rounds that call all of them in turn, after one of warm-up.

    A function has ended when ``device`` has done what it was given.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def estimators(rows: int, group_size: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each estimator on one batch whose tensors are on ``device``."""
    data = batch(rows, group_size, device)
    rewards = data["token_level_rewards"].sum(dim=-1)
    return interleaved(
        {
            "gsd": lambda: gsd_advantage(**data, config=CONFIG),
            "grpo": lambda: compute_grpo_outcome_advantage(**data),
            "grpo_vectorized": lambda: compute_grpo_vectorized_outcome_advantage(**data),
            "row part of gsd": lambda: chain.advantages(
                rewards, data["index"], CONFIG.gsd, mask=not_padding(data["index"])
            ),
        },
        rounds,
        device,
    )


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds a batch size.")] = 9,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/advantages.json"),
) -> None:
    """Measure, print the ratios, write everything down."""
    result: dict[str, object] = {
        "machine": publishing.machine(),
        "threads": torch.get_num_threads(),
    }
    for rows, group_size in BATCHES:
        medians = estimators(rows, group_size, rounds, torch.device("cpu"))
        result[f"{rows} rows"] = medians
        print(
            f"{rows:6} rows in groups of {group_size}: "
            + "  ".join(f"{k} {1e3 * v:.1f} ms" for k, v in medians.items())
        )
        for other in ("grpo", "grpo_vectorized"):
            print(f"       {other} / gsd = {medians[other] / medians['gsd']:.2f}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
