"""``benchmarks/advantages.py`` on the device: our estimator against verl's ``grpo`` and ``grpo_vectorized``."""

from __future__ import annotations

from typing import Any

import advantages

from gpu_check.device import device, is_drill
from gpu_check.record import Report

_ROUNDS, _ROUNDS_OF_DRILL = 5, 2


def check(report: Report) -> str:
    """Time the estimators on every batch size of the benchmark; in the drill on the smallest one."""
    where, found = device(), {}
    for rows, group_size in advantages.BATCHES[: 1 if is_drill() else None]:
        rounds = _ROUNDS_OF_DRILL if is_drill() else _ROUNDS
        found[f"{rows} rows"] = advantages.estimators(rows, group_size, rounds, where)
        report.write({"device": str(where), "tokens": advantages.TOKENS, "rounds": rounds, "seconds": found})
    return "; ".join(f"{name}: {_ratios(seconds)}" for name, seconds in found.items())


def _ratios(seconds: dict[str, Any]) -> str:
    parts = [
        f"{other} takes {seconds[other] / seconds['gsd']:.2f} times as long" for other in ("grpo", "grpo_vectorized")
    ]
    return f"gsd takes {1e3 * seconds['gsd']:.1f} ms, " + ", ".join(parts)
