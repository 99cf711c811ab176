"""How far a group's baseline is off among the groups that teach, by solve rate, and what HA-DW would do about it.

Lemma 2 of arXiv 2601.08521: with G responses to a prompt of solve rate p and S the event of a mixed group,

    E[p_hat | S] = (p - p^G) / (1 - (1-p)^G - p^G),    so a right response's advantage is off by E[p_hat | S] - p.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from verl_gsd.algorithms.hadw import HadwMemory
from verl_gsd.groups import Group

BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0))

CAVEATS = (
    "The bias is that of the baseline among mixed groups. Averaged over all groups the advantage is unbiased, and "
    "conditioning on mixed groups rescales a prompt's gradient, it does not turn it.",
    "Solve rates are pooled over a prompt's visits in this run, while the policy moved; a prompt visited once has the "
    "rate of its one group.",
    "lambda_scale multiplies every factor alike: under AdamW without a KL term it is nearly inert but for clipping.",
)


@dataclass(frozen=True)
class Bin:
    """Mixed groups of prompts whose solve rate lies in [low, high).

    Attributes:
        groups: how many.
        rate: their prompts' mean solve rate.
        bias: mean of E[p_hat | S] - p at their rates and sizes.
        factor_right, factor_wrong: mean HA-DW factors for right and for wrong responses.
    """

    low: float
    high: float
    groups: int
    rate: float
    bias: float
    factor_right: float
    factor_wrong: float


def baseline_bias(p: float, group_size: int) -> float:
    """E[p_hat | mixed] - p for binary rewards (Lemma 2); NaN at p = 0 and 1, where no group is mixed.

    Raises:
        ValueError: p is outside [0, 1] or the group has fewer than two responses.
    """
    if not 0 <= p <= 1 or group_size < 2:
        raise ValueError(f"p={p}, group_size={group_size}: write a rate in [0, 1] and 2 responses or more")
    # 1 - q^G as p * (1 + q + ... + q^(G-1)): nothing cancels where p is tiny.
    mixed = p * np.sum((1 - p) ** np.arange(group_size)) - p**group_size
    return float("nan") if mixed <= 0 else (p - p**group_size) / mixed - p


def bias_by_rate(records: pa.Table, preset: str | float = "hard") -> list[Bin]:
    """The bias in a run's records, by solve rate, and what HA-DW with ``preset`` would have done.

    The anchor is replayed from the recorded counts, as a run with HA-DW would have moved it.
    """
    rows = [row for row in records.to_pylist() if row["total"]]
    pooled: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0])
    for row in rows:
        counts = pooled[row["data_source"], row["index"]]
        counts[0] += row["correct"]
        counts[1] += row["total"]
    found: list[list[tuple[float | None, ...]]] = [[] for _ in BINS]
    memory = HadwMemory({"preset": preset})
    for step in sorted({row["step"] for row in rows}):
        left = [(row, _as_group(row, number)) for number, row in enumerate(rows) if row["step"] == step]
        for row, group in left:
            met = memory.record(group)
            if row["kind"] != "mixed" or not 0 < row["correct"] < row["total"] or not met:
                continue
            correct, total = pooled[row["data_source"], row["index"]]
            rate = correct / total
            place = next(number for number, (_, high) in enumerate(BINS) if rate < high or high == 1)
            factors = (met["hadw_factor_right"], met["hadw_factor_wrong"])
            found[place].append((rate, baseline_bias(rate, row["size"]), *factors))
        memory.commit([group for _, group in left])
    return [
        Bin(low, high, len(figures), *(float(value) for value in np.mean(figures, axis=0)))
        for (low, high), figures in zip(BINS, found, strict=True)
        if figures
    ]


def _as_group(row: dict, number: int) -> Group:
    """A group of which the records keep the sum of accuracies: each response is given their mean."""
    accuracies = np.full(row["total"], row["correct"] / row["total"])
    tokens = np.zeros(row["total"], np.int64)
    return Group(str(number), row["data_source"], row["index"], accuracies, accuracies, tokens)
