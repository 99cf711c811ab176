"""budget=adaptive against equal groups at equal rollouts: mixed groups and held-out accuracy, over seeds.

    .venv/bin/python benchmarks/budget.py

The embedded task's policy and problems, 240 prompts (30 of each level), 24 a step with 8 rollouts each on average: 60
steps are six passes, and a prompt's posterior is of its earlier ones. Both arms of a seed see the same prompts in the
same order. What shares out rollouts, remembers prompts and makes advantages is what training uses; generating and
updating is a loop of plain torch in the place of vLLM, Ray and verl, some ten times faster on two cores, so that there
are seeds enough to tell two arms apart: GRPO's loss, AdamW and learning rate as the embedded task has them. That the
stack asks for the same rollouts is a test (tests/stack/test_grpo.py).

Published are each run's figures, and the differences adaptive - uniform with 95 % intervals (Student's t over seeds).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import publishing
import pyarrow.parquet as pq
import scipy.stats
import torch
import typer
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_gsd.algorithms.rollouts.budget import allocate_rollouts
from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import gain_ratios
from verl_gsd.chain import advantages
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.tasks import embedded
from verl_gsd.tasks.arithmetic import compute_score

PER_LEVEL, BATCH, SIZE, STEPS = 30, 24, 8, 60
PASS = 8 * PER_LEVEL // BATCH
#: Two passes: the policy learns fast here.
BUDGET = BudgetSettings(half_life=20)
RATE, WARM_UP, LONGEST = 1.2e-4, 5, 8
HELD_OUT_SAMPLES = 2
ARMS = ("uniform", "adaptive")
DIAL = {"alpha": 1.0, "ddof": 1, "eps": 1e-6}


class Policy:
    """The embedded task's model, with what a step needs of it."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda n: min(1.0, (n + 1) / WARM_UP))

    def sample(self, rows: list[dict], repeats: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, L) tokens, (N, T) mask of the responses' tokens (the last T columns), (N,) rewards; rows repeated."""
        texts = [
            self.tokenizer.apply_chat_template(r["prompt"], add_generation_prompt=True, tokenize=False) for r in rows
        ]
        each = [text for text, n in zip(texts, repeats, strict=True) for _ in range(n)]
        batch = self.tokenizer(each, return_tensors="pt", padding=True, add_special_tokens=False)
        width = batch["input_ids"].shape[1]
        with torch.no_grad():
            tokens = self.model.generate(
                **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=LONGEST
            )
        responses = tokens[:, width:]
        ended = (responses == self.tokenizer.eos_token_id).cumsum(dim=1)
        mask = (ended == 0) | ((ended == 1) & (responses == self.tokenizer.eos_token_id))
        truth = [row["reward_model"]["ground_truth"] for row, n in zip(rows, repeats, strict=True) for _ in range(n)]
        answers = self.tokenizer.batch_decode(
            responses.where(mask, self.tokenizer.eos_token_id), skip_special_tokens=True
        )
        right = [
            compute_score("arithmetic", answer, wanted)["acc"] for answer, wanted in zip(answers, truth, strict=True)
        ]
        return tokens, mask, torch.tensor(right)

    def update(self, tokens: torch.Tensor, mask: torch.Tensor, advantage: torch.Tensor) -> None:
        """One step on -A log pi, a mean over each response's tokens and then over responses (seq-mean-token-mean)."""
        width = tokens.shape[1] - mask.shape[1]
        attention = tokens != self.tokenizer.pad_token_id
        attention[:, width:] = mask
        position = (attention.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(tokens, attention_mask=attention.long(), position_ids=position).logits[:, width - 1 : -1]
        log_prob = torch.log_softmax(logits, dim=-1).gather(2, tokens[:, width:, None]).squeeze(2)
        loss = (-advantage[:, None] * log_prob * mask).sum(dim=1) / mask.sum(dim=1)
        self._optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()

    def accuracy(self, rows: list[dict]) -> float:
        """Of ``HELD_OUT_SAMPLES`` samples a prompt."""
        torch.manual_seed(0)
        return float(self.sample(rows, [HELD_OUT_SAMPLES] * len(rows))[2].mean())


def run(arm: str, seed: int, task: Path, train: list[dict], held_out: list[dict]) -> dict[str, float]:
    """Train once; over all steps, and over those after the first pass, where prompts were visited before."""
    policy, store = Policy(task / "model"), PromptStore(half_life=BUDGET.half_life)
    before = policy.accuracy(held_out)
    order, drawn = np.random.default_rng(seed), np.zeros(0, int)
    torch.manual_seed(seed)
    rollouts, mixed, deviation, predicted, sizes = 0, [], [], [], []
    for step in range(1, STEPS + 1):
        if not len(drawn):
            drawn = order.permutation(len(train))
        here, drawn = drawn[:BATCH], drawn[BATCH:]
        keys = [("arithmetic", int(index)) for index in here]
        correct, total = store.recent(keys, step)
        size = np.full(BATCH, SIZE)
        if arm == "adaptive":
            size = allocate_rollouts(correct, total, SIZE, BUDGET)
        tokens, mask, rewards = policy.sample([train[index] for index in here], size.tolist())
        group = np.repeat(np.arange(BATCH), size)
        ratio = gain_ratios(correct, total, size, SIZE, prior=BUDGET.prior, **DIAL)
        columns = {"rollouts": torch.from_numpy(size)[group], "gain_ratio": torch.from_numpy(ratio)[group]}
        policy.update(tokens, mask, advantages(rewards, group, DIAL | {"budget": {}}, columns=columns))
        for place, key in enumerate(keys):
            of_prompt = rewards[group == place].double()
            store.observe(key, float(of_prompt.sum()), len(of_prompt), step)
            mixed.append(bool(of_prompt.min() != of_prompt.max()))
            deviation.append(float(of_prompt.std(unbiased=False)))
        predicted += np.asarray(posterior_silent_rate(correct, total, size, BUDGET.prior)).tolist()
        sizes += size.tolist()
        rollouts += int(size.sum())
    known = slice(PASS * BATCH, None)
    return {
        "rollouts": rollouts,
        "mixed": float(np.mean(mixed)),
        "mixed_of_known": float(np.mean(mixed[known])),
        "mixed_of_known_predicted": float(1 - np.mean(predicted[known])),
        "mean_std_of_known": float(np.mean(deviation[known])),
        "rollouts_p10": float(np.percentile(sizes[known], 10)),
        "rollouts_p90": float(np.percentile(sizes[known], 90)),
        "held_out_before": before,
        "held_out_after": policy.accuracy(held_out),
    }


def paired(first: list[float], second: list[float]) -> dict[str, float]:
    """The mean of ``second`` - ``first`` and its 95 % interval."""
    difference = np.subtract(second, first)
    mean, error = float(difference.mean()), float(scipy.stats.sem(difference))
    width = float(scipy.stats.t.ppf(0.975, len(difference) - 1)) * error
    return {"mean": mean, "low": mean - width, "high": mean + width}


def main(
    seeds: Annotated[int, typer.Option(min=2)] = 8,
    output: Annotated[Path, typer.Option()] = Path(__file__).parent / "results" / "budget.json",
) -> None:
    """Measure, print, write down."""
    torch.set_num_threads(1)
    task = Path(os.environ.get("VERL_GSD_CACHE", Path.home() / ".cache" / "verl_gsd")) / "arithmetic"
    rows = pq.read_table(embedded.ensure(task) / "train.parquet").to_pylist()
    levels = np.array([row["extra_info"]["level"] for row in rows])
    chosen = np.sort(np.concatenate([np.flatnonzero(levels == level)[:PER_LEVEL] for level in np.unique(levels)]))
    train, held_out = [rows[place] for place in chosen], pq.read_table(task / "test.parquet").to_pylist()
    start = time.perf_counter()
    runs: dict[str, dict[str, dict[str, float]]] = {arm: {} for arm in ARMS}
    for seed in track(range(1, seeds + 1)):
        for arm in ARMS:
            runs[arm][str(seed)] = run(arm, seed, task, train, held_out)
    result: dict[str, Any] = {
        "machine": publishing.machine(),
        "setting": f"grpo, {len(train)} prompts, {BATCH} x {SIZE} rollouts, {STEPS} steps",
        "budget": BUDGET.model_dump(),
        "minutes": (time.perf_counter() - start) / 60,
        "mean": {
            arm: {name: float(np.mean([r[name] for r in of.values()])) for name in of["1"]} for arm, of in runs.items()
        },
        "adaptive_less_uniform": {
            name: paired(*([r[name] for r in runs[arm].values()] for arm in ARMS))
            for name in ("mixed", "mixed_of_known", "mean_std_of_known", "held_out_after")
        },
        "runs": runs,
    }
    print(result["mean"], result["adaptive_less_uniform"], sep="\n")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
