"""Seconds of a laboratory run: 40 steps of 24 prompts with 8 responses each, on one core, with GRPO.

    .venv/bin/python benchmarks/lab.py

It prints the seconds of each run, of the start (importing verl, reading the data, building the worker), and of one
update. The update is measured in turn with the same update by plain rows: one row per response, which repeats its
prompt. Their ratio shows what computing each prompt once saves.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

os.environ |= {"VERL_GSD_CPU": "1", "OMP_NUM_THREADS": "1"}
START = time.perf_counter()

import publishing  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402

from verl_gsd.lab.training.policy import read_prompts, score_responses  # noqa: E402
from verl_gsd.lab.training.trainer import LabTrainer  # noqa: E402
from verl_gsd.run.compose import compose_config, parse_line, resolve  # noqa: E402

torch.set_num_threads(1)
IMPORTED = time.perf_counter() - START
PROMPTS, SIZE = 24, 8


def trainer(folder: str) -> LabTrainer:
    words = ("algo=grpo", "task=arithmetic", "hardware=cpu", "trainer.val_before_train=false", "trainer.test_freq=40")
    line = parse_line([*words, f"trainer.default_local_dir={folder}"])
    return LabTrainer(resolve(compose_config(line)))


def plain_rows(model: torch.nn.Module, prompts: list[list[int]], responses: torch.Tensor) -> torch.Tensor:
    """(N, T) log-probabilities by one row per response; all prompts have one length here."""
    rows = torch.cat([torch.tensor(prompts).repeat_interleave(SIZE, dim=0), responses], dim=1)
    logits = model(rows).logits[:, len(prompts[0]) - 1 : -1].float()
    return torch.log_softmax(logits, dim=-1).gather(-1, responses.unsqueeze(-1)).squeeze(-1)


def seconds_of(model: torch.nn.Module, log_probs) -> float:
    """A forward and a backward pass."""
    start = time.perf_counter()
    model.zero_grad()
    log_probs().sum().backward()
    return time.perf_counter() - start


def main(
    runs: Annotated[int, typer.Option(help="Runs of 40 steps.")] = 3,
    rounds: Annotated[int, typer.Option(help="Timed updates of each kind.")] = 15,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/lab.json"),
) -> None:
    """Measure, print, write down."""
    trained, started = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            lab = trainer(folder)
            middle = time.perf_counter()
            lab.train()
            started.append(middle - start)
            trained.append(time.perf_counter() - middle)
    model, generator = lab.module, torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 250, (PROMPTS, 12), generator=generator).tolist()
    responses = torch.randint(5, 250, (PROMPTS * SIZE, 3), generator=generator)
    prompt_of = torch.arange(PROMPTS).repeat_interleave(SIZE)
    shared, plain = [], []
    for _ in range(rounds + 2):
        shared.append(
            seconds_of(
                model, lambda: score_responses(model, read_prompts(model, prompts), prompt_of, responses).log_probs
            )
        )
        plain.append(seconds_of(model, lambda: plain_rows(model, prompts, responses)))
    ratios = sorted(one / other for one, other in zip(plain[2:], shared[2:], strict=True))
    result = {
        "machine": publishing.machine(),
        "seconds_import": IMPORTED,
        "seconds_start": median(started),
        "seconds_40_steps": sorted(trained),
        "seconds_update_shared": median(shared[2:]),
        "plain_over_shared": {"median": median(ratios), "low": ratios[0], "high": ratios[-1]},
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
