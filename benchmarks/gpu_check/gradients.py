"""Gradients of GVPO's and DaGRPO's losses on verl's FSDP2 engine, against plain autograd on the CPU.

The cases of ``tests/engine/test_gvpo.py`` and ``tests/engine/test_dagrpo.py``, on one device: the embedded model, two
mini-batches, several micro-batch sizes, rows packed and padded. The engine computes in float32 without TF32, autograd
in float64. A difference is the L2 norm over all parameters of the error, relative to that of the gradient.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import dagrpo_cases
import engine_workers
import gvpo_cases

from gpu_check.device import be_the_only_worker, compose, device, gpu_gib, hardware, in_float32, is_drill, packed
from gpu_check.record import CheckFailedError, Report
from verl_gsd.tasks import embedded

TOLERANCE = 1e-4
_TOKENS = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
_FIXED = "actor_rollout_ref.actor.use_dynamic_bsz=false"
_ROWS = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
_MODE, _LOSS = "actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.policy_loss"

GVPO = {
    "prepass, one micro-batch": ["grouping=prepass"],
    "prepass, 64 tokens": ["grouping=prepass", f"{_TOKENS}=64"],
    "prepass, 1 row": ["grouping=prepass", "rows=1"],
    "prepass, 8 rows": ["grouping=prepass", "rows=8"],
    "whole, 1 group": ["grouping=whole", "rows=4"],
    "whole, 160 tokens": ["grouping=whole", f"{_TOKENS}=160"],
    "prepass, fixed reference, 64 tokens": ["grouping=prepass", "reference=ref", f"{_TOKENS}=64"],
}
DAGRPO = {
    "one micro-batch": [],
    "40 tokens": [f"{_TOKENS}=40"],
    "1 row": [_FIXED, f"{_ROWS}=1"],
    "token-mean, 40 tokens": [f"{_MODE}=token-mean", f"{_TOKENS}=40"],
    "over GSPO, 40 tokens": [f"{_LOSS}.on_policy=gspo", f"{_TOKENS}=40"],
}
#: In the drill: what the tests of the engines do not have, which is packed rows.
DRILL = ("prepass, 64 tokens", "whole, 1 group", "40 tokens", "1 row")


def check(report: Report) -> str:
    """Every case on the engine, on this device.

    Raises:
        CheckFailedError: a gradient differs, or a case fails; all cases run first.
    """
    where = device()
    be_the_only_worker()
    found: dict[str, list[float]] = {}
    wrong: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = embedded.ensure(
            Path(folder) / "task", embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
        )
        machine = [*hardware(gpu_gib(where)), *in_float32()]
        for name, case, expected in [*_gvpo(task, machine), *_dagrpo(task, machine)]:
            try:
                gradients = engine_workers.run(case, 0, 1)["gradients"]
                found[name] = [gvpo_cases.distance(one, other) for one, other in zip(gradients, expected, strict=True)]
            except Exception as error:  # the other cases are worth knowing too
                wrong[name] = f"{type(error).__name__}: {error}"
            else:
                if not max(found[name]) <= TOLERANCE:
                    wrong[name] = f"differs by {max(found[name]):.1e}; {TOLERANCE:.0e} is allowed"
            print(f"{name}: {wrong.get(name) or found[name]}", flush=True)
            report.write({"device": str(where), "tolerance": TOLERANCE, "differences": found, "wrong": wrong})
    if wrong:
        name, reason = next(iter(wrong.items()))
        raise CheckFailedError(f"{len(wrong)} of {len(found | wrong)} cases are wrong. The first: {name}: {reason}")
    largest = max(max(differences) for differences in found.values())
    return f"{len(found)} cases on {where} equal plain autograd; the largest difference is {largest:.1e}"


def _layouts(name: str) -> list[tuple[str, list[str]]]:
    if is_drill() and name not in DRILL:
        return []
    return [(f"{name}, {'packed' if is_packed else 'padded'}", packed(is_packed)) for is_packed in (True, False)]


def _gvpo(task: Path, machine: list[str]) -> list[tuple[str, Any, Any]]:
    """(name, case for ``engine_workers``, expected gradients) of each case."""
    rows, expected, cases = gvpo_cases.with_log_probs(task), gvpo_cases.ExpectedGradients(task), []
    for name, words in GVPO.items():
        for full_name, layout in _layouts(name):
            config = gvpo_cases.configured(compose, task, [*machine, *layout, *words], {})
            case, mini_batches = gvpo_cases.prepared(config, rows, 1, {})
            cases.append((f"gvpo, {full_name}", case, expected.of(rows, mini_batches, config)))
    return cases


def _dagrpo(task: Path, machine: list[str]) -> list[tuple[str, Any, Any]]:
    rows, cases = dagrpo_cases.rows_of_groups(), []
    for name, words in DAGRPO.items():
        expected = None  # the same for every layout
        for full_name, layout in _layouts(name):
            config, _ = compose(*dagrpo_cases.SETTINGS, *machine, *layout, *words, f"task.directory={task}")
            expected = expected or dagrpo_cases.expected(task, rows, config)[0]
            cases.append((f"dagrpo, {full_name}", dagrpo_cases.case(config, rows, 1, False), expected))
    return cases
