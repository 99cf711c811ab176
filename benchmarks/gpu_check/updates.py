"""Time and peak memory of one step's updates: our losses against verl's own, and packed rows against padded ones.

The model has the shape of Qwen2.5-0.5B and random weights. It is trained as verl trains by default: master weights and
AdamW in float32, activations in bfloat16, with gradient checkpointing. Every round updates once with verl's own loss
and once with a contestant. Reported are medians, and medians of the rounds' ratios.
"""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import verl.utils.torch_functional as verl_F  # noqa: N812, its name in verl

from gpu_check.device import be_the_only_worker, compose, device, gpu_gib, hardware, is_drill, packed, synchronize
from gpu_check.record import CheckFailedError, Report
from gpu_check.updater import Updater, row, step
from verl_gsd.config.attention import attention_here
from verl_gsd.tasks import byte_llama

BASE = "verl's loss"
#: name -> (words, whether rows are packed)
CONTESTANTS: dict[str, tuple[list[str], bool]] = {
    BASE: (["algo=grpo"], True),
    "verl's loss, padded rows": (["algo=grpo"], False),
    "gvpo, prepass": (["algo=gvpo", "algorithm.gsd.gvpo.grouping=prepass"], True),
    "gvpo, whole": (["algo=gvpo", "algorithm.gsd.gvpo.grouping=whole"], True),
    "dagrpo with demonstrations": (["algo=dagrpo_anchors"], True),
}
GROUP, MINI_BATCHES = 8, 2


@dataclass(frozen=True)
class Sizes:
    """Of the model, of a row's tokens, of the step, and seconds for the rounds of one contestant."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: int
    groups: int
    seconds: float

    @property
    def micro_tokens(self) -> int:
        """A whole group fits a micro-batch."""
        return GROUP * self.tokens


GPU = Sizes(24, 896, 4864, 14, 2, 151936, tokens=1024, groups=2, seconds=10)
DRILL = Sizes(2, 64, 128, 2, 1, 1024, tokens=64, groups=2, seconds=2)
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 9
FULL, MIXED = "all rows of full length", "rows of mixed lengths"


def check(report: Report) -> str:
    """Time every contestant against verl's own loss, on rows of full length, and padded rows on mixed lengths too.

    Raises:
        CheckFailedError: a contestant fails; the others are timed all the same.
    """
    where, sizes = device(), DRILL if is_drill() else GPU
    be_the_only_worker()
    results: dict[str, Any] = {
        "device": str(where),
        "attention": "sdpa" if is_drill() else attention_here(),
        "rows": sizes.groups * GROUP,
        "mini_batches": MINI_BATCHES,
        "tokens_per_micro_batch": sizes.micro_tokens,
        "seconds_of_log_probs": log_prob_seconds(sizes, where),
        "against_verls_loss": {},
    }
    wrong: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results["parameters"] = make_model(folder, sizes, where)
        before = _allocated_gib(where)
        base_config = _config(BASE, folder, sizes, gpu_gib(where))
        base = Updater(base_config)
        for contestant in CONTESTANTS:
            if contestant == BASE:
                continue
            config = _config(contestant, folder, sizes, gpu_gib(where))
            lengths = (FULL, MIXED) if "padded" in contestant else (FULL,)
            rows = {name: rows for name, rows in step_rows(sizes).items() if name in lengths}
            try:
                updater = Updater(config)
                for name, of in rows.items():
                    steps = {BASE: step(base_config, of), contestant: step(config, of)}
                    found = in_turn({BASE: base, contestant: updater}, steps, sizes.seconds, where)
                    results["against_verls_loss"][f"{contestant}, {name}"] = found
                    print(f"{contestant}, {name}: {found}", flush=True)
                    # Weights, gradients and AdamW's moments of one model, which exist once it has been updated.
                    results["states_gib"] = (_allocated_gib(where) - before) / 2
                del updater
            except Exception as error:  # the others are worth knowing too
                wrong[contestant] = f"{type(error).__name__}: {error}"
                print(f"{contestant}: {wrong[contestant]}", flush=True)
            gc.collect()
            report.write(results | {"wrong": wrong})
    if wrong:
        name, reason = next(iter(wrong.items()))
        raise CheckFailedError(f"{len(wrong)} of {len(CONTESTANTS) - 1} updates fail. The first: {name}: {reason}")
    return "; ".join(
        f"{name}: {found['seconds']:.2f} s, {found['of_verl']:.2f} of verl's loss"
        for name, found in results["against_verls_loss"].items()
    )


def in_turn(updaters: dict[str, Updater], steps: dict[str, Any], seconds: float, where: torch.device) -> dict[str, Any]:
    """Update with verl's loss and with the other one in turn, after one warm-up of both; the figures of the other."""
    rounds: list[dict[str, float]] = []
    peaks: dict[str, float] = {}
    deadline = math.inf
    while len(rounds) <= _FEWEST_ROUNDS or (time.monotonic() < deadline and len(rounds) <= _MOST_ROUNDS):
        taken = {}
        for name, updater in updaters.items():
            before = _start_of_peak(where)
            taken[name] = updater.update(steps[name])
            peaks[name] = _peak_gib(where) - before
        if not rounds:
            deadline = time.monotonic() + seconds
        rounds.append(taken)
    return summarised(rounds[1:], peaks if where.type == "cuda" else {})


def summarised(rounds: list[dict[str, float]], peaks: dict[str, float]) -> dict[str, Any]:
    """Median seconds, their ratio to verl's loss in the same round, and what an update adds to the memory in use."""
    (other,) = rounds[0].keys() - {BASE}
    ratios = sorted(taken[other] / taken[BASE] for taken in rounds)
    return {
        "rounds": len(rounds),
        "seconds": statistics.median(taken[other] for taken in rounds),
        "seconds_of_verl": statistics.median(taken[BASE] for taken in rounds),
        "of_verl": statistics.median(ratios),
        "of_verl_range": [ratios[0], ratios[-1]],
        "update_peak_gib": peaks.get(other),
        "update_peak_gib_of_verl": peaks.get(BASE),
    }


def log_prob_seconds(sizes: Sizes, where: torch.device) -> dict[str, float]:
    """Seconds that the log-probabilities of one micro-batch take from its logits, forward and backward.

    Without flash-attn verl computes them token by token. Beside it is PyTorch's cross-entropy on all tokens at once.
    """
    shape = (sizes.micro_tokens, sizes.vocabulary)
    labels = torch.randint(0, sizes.vocabulary, shape[:1], device=where)
    functions = {
        "verl": lambda logits: verl_F.logprobs_from_logits(logits, labels, inplace_backward=False),
        "cross_entropy": lambda logits: -torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    }
    found = {}
    for name, function in functions.items():
        for _ in range(2):  # the first one warms up
            logits = torch.zeros(shape, dtype=torch.bfloat16, device=where, requires_grad=True)
            synchronize(where)
            start = time.perf_counter()
            function(logits).sum().backward()
            synchronize(where)
            found[name] = time.perf_counter() - start
    return found


def make_model(folder: Path, sizes: Sizes, where: torch.device) -> int:
    """Random weights in ``folder/model`` and a tokenizer in ``folder/tokenizer``; the number of parameters."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with where:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    byte_llama.build_tokenizer().save_pretrained(folder / "tokenizer")
    return sum(parameter.numel() for parameter in model.parameters())


def step_rows(sizes: Sizes) -> dict[str, list[dict[str, torch.Tensor]]]:
    """The rows of a step: all of the full length, and of an eighth of it to all of it."""
    generator = torch.Generator().manual_seed(0)

    def rows(shortest: int) -> list[dict[str, torch.Tensor]]:
        made = []
        for _ in range(sizes.groups):
            prompt = torch.randint(0, sizes.vocabulary, (sizes.tokens // 16,), generator=generator)
            for _ in range(GROUP):
                length = int(torch.randint(shortest, sizes.tokens + 1, (), generator=generator)) - len(prompt)
                response = torch.randint(0, sizes.vocabulary, (length,), generator=generator)
                advantage = torch.randn((), generator=generator)
                made.append(row(prompt, response, advantage, -float(torch.tensor(sizes.vocabulary).log())))
        return made

    return {FULL: rows(sizes.tokens), MIXED: rows(sizes.tokens // 8)}


def _config(name: str, folder: Path, sizes: Sizes, memory: float | None) -> Any:
    words, is_packed = CONTESTANTS[name]
    actor, model = "actor_rollout_ref.actor", "actor_rollout_ref.model"
    chosen = [*words, "task=arithmetic", *hardware(memory), *packed(is_packed)]
    chosen += [f"{model}.path={folder / 'model'}", f"{model}.tokenizer_path={folder / 'tokenizer'}"]
    chosen += [f"data.train_batch_size={sizes.groups}", f"{actor}.ppo_mini_batch_size={sizes.groups // MINI_BATCHES}"]
    chosen += [f"{actor}.ppo_max_token_len_per_gpu={sizes.micro_tokens}", f"actor_rollout_ref.rollout.n={GROUP}"]
    chosen += [f"++{model}.override_config.attn_implementation={'sdpa' if is_drill() else attention_here()}"]
    config, _ = compose(*chosen)
    return config


def _allocated_gib(where: torch.device) -> float:
    return torch.cuda.memory_allocated(where) / 2**30 if where.type == "cuda" else 0.0


def _start_of_peak(where: torch.device) -> float:
    """GiB that are allocated now; the peak counts from here."""
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    return _allocated_gib(where)


def _peak_gib(where: torch.device) -> float:
    return torch.cuda.max_memory_allocated(where) / 2**30 if where.type == "cuda" else 0.0
