"""How far a group's baseline is off among the groups that teach, by solve rate, and what HA-DW would do about it.

Lemma 2 of arXiv 2601.08521: with G responses to a prompt of solve rate p and S the event of a mixed group,

    E[p_hat | S] = (p - p^G) / (1 - (1-p)^G - p^G),    so a right response's advantage is off by E[p_hat | S] - p.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.groups import Group

BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0))

CAVEATS = (
    "The bias is that of the baseline among mixed groups. Averaged over all groups the advantage is unbiased, and "
    "conditioning on mixed groups rescales a prompt's gradient, it does not turn it.",
    "Solve rates are pooled over a prompt's visits in this run, while the policy moved. A prompt visited once has the "
    "rate of its one group, which stands here because it was mixed: hard prompts then look easier than they are, and "
    "their bias smaller than it is.",
    "lambda_scale multiplies every factor alike: under AdamW without a KL term it is nearly inert but for clipping.",
)


@dataclass(frozen=True)
class Bin:
    """Mixed groups of prompts whose solve rate lies in [low, high).

    Attributes:
        groups: how many.
        visited_once: share of them whose prompt has no other visit.
        rate: their prompts' mean solve rate.
        bias: mean of E[p_hat | S] - p at their rates and sizes.
        factor_right, factor_wrong: mean HA-DW factors for right and for wrong responses where there was an anchor
            already; NaN where there was none.
    """

    low: float
    high: float
    groups: int
    visited_once: float
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


def bias_by_rate(records: pa.Table, settings: HadwSettings = HadwSettings()) -> list[Bin]:
    """The bias in a run's records, by solve rate, and what HA-DW would have done with these settings.

    The anchor is replayed from the recorded counts, as a run with HA-DW would have moved it.
    """
    by_step: dict[int, list[dict]] = defaultdict(list)
    pooled: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for row in records.to_pylist():
        if row["total"]:
            by_step[row["step"]].append(row)
            counts = pooled[row["data_source"], row["index"]]
            pooled[row["data_source"], row["index"]] = np.add(counts, (row["correct"], row["total"], 1)).tolist()
    found: list[list[tuple[float | None, ...]]] = [[] for _ in BINS]
    hadw = Hadw(settings)
    for _, rows in sorted(by_step.items()):
        groups = [_as_group(row, number) for number, row in enumerate(rows)]
        for row, group in zip(rows, groups, strict=True):
            if row["kind"] == "mixed" and 0 < row["correct"] < row["total"]:
                correct, total, visits = pooled[row["data_source"], row["index"]]
                rate, met = correct / total, hadw.record(group)
                factors = [met.get(name, np.nan) for name in ("hadw_factor_right", "hadw_factor_wrong")]
                place = next(number for number, (_, high) in enumerate(BINS) if rate < high or high == 1)
                found[place].append((visits == 1, rate, baseline_bias(rate, row["size"]), *factors))
        hadw.end_step(groups)
    filled = [(ends, np.array(figures, float)) for ends, figures in zip(BINS, found, strict=True) if figures]
    return [_bin(low, high, figures) for (low, high), figures in filled]


def _bin(low: float, high: float, figures: np.ndarray) -> Bin:
    met = ~np.isnan(figures[:, -1])
    factors = figures[met, 3:].mean(axis=0) if met.any() else np.full(2, np.nan)
    once, rate, bias, right, wrong = (float(value) for value in (*figures[:, :3].mean(axis=0), *factors))
    return Bin(low, high, len(figures), once, rate, bias, right, wrong)


def _as_group(row: dict, number: int) -> Group:
    """A group of which the records keep the sum of accuracies: each response is given their mean."""
    accuracies = np.full(row["total"], row["correct"] / row["total"])
    tokens = np.zeros(row["total"], np.int64)
    return Group(str(number), row["data_source"], row["index"], accuracies, accuracies, tokens)
