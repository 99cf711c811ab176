"""The bias of the group mean as a baseline, by solve rate, and HA-DW's factors at these solve rates.

Lemma 2 of arXiv 2601.08521: with G responses to a prompt of solve rate p, and S the event that the group is mixed,

    E[p_hat | S] = (p - p^G) / (1 - (1-p)^G - p^G).

Among mixed groups, the group mean therefore exceeds the solve rate by E[p_hat | S] - p on average.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.groups import Group
from verl_gsd.records import is_graded

BINS = ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0))

CAVEATS = (
    "The bias is that of the baseline among mixed groups. Averaged over all groups, the advantage is unbiased. "
    "Conditioning on mixed groups changes the length of a prompt's gradient, not its direction.",
    "Solve rates are pooled over a prompt's visits in this run, during which the policy changed. A prompt visited once "
    "has the rate of its only group, which is listed because it was mixed. Hard prompts then look easier than they "
    "are, and their bias smaller than it is.",
    "lambda_scale multiplies all factors. Under AdamW without a KL term it has almost no effect except on clipping.",
)


@dataclass(frozen=True)
class BiasBin:
    """Mixed groups of prompts whose solve rate lies in [low, high).

    Attributes:
        groups: number of groups.
        visited_once: share of the groups whose prompt has no other visit.
        rate: mean solve rate of the groups' prompts.
        bias: mean of E[p_hat | S] - p at the groups' rates and sizes.
        factor_right, factor_wrong: mean HA-DW factors of right and of wrong responses, over the groups that already had
            an anchor; NaN if no group had one.
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
    """E[p_hat | mixed] - p for binary rewards (Lemma 2). It is NaN at p = 0 and p = 1, where no group is mixed.

    Raises:
        ValueError: p is outside [0, 1] or the group has fewer than two responses.
    """
    if not 0 <= p <= 1 or group_size < 2:
        raise ValueError(
            f"p={p}, group_size={group_size}: out of range. Use a rate in [0, 1] and a group of 2 responses or more."
        )
    # 1 - q^G computed as p * (1 + q + ... + q^(G-1)), which loses no digits for a tiny p.
    mixed = p * np.sum((1 - p) ** np.arange(group_size)) - p**group_size
    return float("nan") if mixed <= 0 else (p - p**group_size) / mixed - p


def bias_by_rate(records: pa.Table, settings: HadwSettings = HadwSettings()) -> tuple[list[BiasBin], int]:
    """The bias of the baseline in a run's records, by solve rate, and HA-DW's factors under these settings.

    The anchor is recomputed from the recorded counts, as it would have evolved in a run with HA-DW.

    Lemma 2 is about right and wrong responses. With partial credit, a group is almost always mixed, and the bias is
    near 0 whatever the solve rate. Prompts with an accuracy between 0 and 1 are therefore in no bin.

    Returns:
        The bins, and the number of mixed groups that are in none because of partial credit.
    """
    graded = is_graded(records)
    prompts = list(zip(records["data_source"].to_pylist(), records["index"].to_pylist(), strict=True))
    graded_prompts = {prompt for prompt, has_credit in zip(prompts, graded, strict=True) if has_credit}
    by_step: dict[int, list[dict]] = defaultdict(list)
    pooled: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0, 0])
    for row in records.to_pylist():
        if row["total"]:
            by_step[row["step"]].append(row)
            counts = pooled[row["data_source"], row["index"]]
            pooled[row["data_source"], row["index"]] = np.add(counts, (row["correct"], row["total"], 1)).tolist()
    figures_by_bin: list[list[tuple[float | None, ...]]] = [[] for _ in BINS]
    left_out = 0
    hadw = Hadw(settings)
    for _, rows in sorted(by_step.items()):
        groups = [_as_group(row, number) for number, row in enumerate(rows)]
        for row, group in zip(rows, groups, strict=True):
            if row["kind"] != "mixed" or not 0 < row["correct"] < row["total"]:
                continue
            if (row["data_source"], row["index"]) in graded_prompts:
                left_out += 1
            else:
                correct, total, visits = pooled[row["data_source"], row["index"]]
                rate, columns = correct / total, hadw.record(group)
                factors = [columns.get(name, np.nan) for name in ("hadw_factor_right", "hadw_factor_wrong")]
                bin_number = next(number for number, (_, high) in enumerate(BINS) if rate < high or high == 1)
                figures_by_bin[bin_number].append((visits == 1, rate, baseline_bias(rate, row["total"]), *factors))
        hadw.end_step(groups)
    filled = [(ends, np.array(figures, float)) for ends, figures in zip(BINS, figures_by_bin, strict=True) if figures]
    return [_bin(low, high, figures) for (low, high), figures in filled], left_out


def _bin(low: float, high: float, figures: np.ndarray) -> BiasBin:
    has_factors = ~np.isnan(figures[:, -1])
    factors = figures[has_factors, 3:].mean(axis=0) if has_factors.any() else np.full(2, np.nan)
    once, rate, bias, right, wrong = (float(value) for value in (*figures[:, :3].mean(axis=0), *factors))
    return BiasBin(low, high, len(figures), once, rate, bias, right, wrong)


def _as_group(row: dict, number: int) -> Group:
    """A recorded group. Records keep only the sum of accuracies, so each response gets the mean accuracy."""
    accuracies = np.full(row["total"], row["correct"] / row["total"])
    return Group(
        str(number),
        row["data_source"],
        row["index"],
        accuracies,
        accuracies,
        tokens=np.zeros(row["total"], np.int64),
        rollouts_requested=row.get("asked"),  # under a budget, every prompt has the same weight in the anchor
    )
