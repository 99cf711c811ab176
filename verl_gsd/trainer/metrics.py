"""The numbers of one step's groups, whatever became of them.

verl's reducers go by substrings of a name (max, min, sum, total): none of these has one by accident.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.records import EASY, FATES, HARD


def with_prediction(table: pa.Table, prompts: PromptStore, step: int, prior: tuple[float, float]) -> pa.Table:
    """One step's records with their column ``silent_predicted``.

    Args:
        table: of ``records.step_records``.
        prompts: what earlier steps knew of the prompts; not yet told of this one.
        step: the trainer step of the records.
        prior: Beta(a, b) of a solve rate before a prompt's first visit.
    """
    keys = list(zip(table["data_source"].to_pylist(), table["index"].to_pylist(), strict=True))
    size = table["size"].to_numpy()
    _, counted, visited = prompts.counts(keys)
    # The prediction is for a rate of right and wrong, all of this visit: accuracies between them have none.
    known = (visited > 0) & (counted == np.rint(counted)) & (table["total"].to_numpy() == size) & (size > 0)
    predicted = np.zeros(len(table))
    if known.any():
        correct, total = prompts.recent([key for key, is_known in zip(keys, known, strict=True) if is_known], step)
        predicted[known] = posterior_silent_rate(correct, total, size[known], prior)
    name = "silent_predicted"
    column = pa.array(predicted, mask=~known)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


def group_metrics(table: pa.Table) -> dict[str, float]:
    """``group/*`` and ``dial/*`` of one step.

    Args:
        table: the step's records, ``with_prediction``.

    Returns:
        ``group/count/<fate>`` and ``group/count/one_sample`` (groups of one, which have no baseline and teach nothing);
        of groups with responses: ``group/frac_{mixed,all_correct,all_wrong}``, ``group/std/{mean,p10,p50,p90}``,
        ``group/frac_tokens_silent`` (tokens spent on unanimous groups); of groups whose prompt was visited before:
        ``group/silent/{observed,predicted}``, the second from earlier visits alone: a lasting gap means rollouts that
        are not independent or a noisy verifier; where the config is an operation on sigma ``dial/gain/mean`` and
        ``dial/gain_share/{hard,between,easy}``, by the group's accuracy; where the verifier says what it could not
        verify ``verifier/unverified``, its share of the responses with a verdict.
    """
    fate = np.array(table["fate"].to_pylist(), dtype=object)
    metrics = {f"group/count/{name}": float((fate == name).sum()) for name in FATES}
    size = table["size"].to_numpy()
    metrics["group/count/one_sample"] = float((size == 1).sum())
    table = table.filter(pa.array(size > 0))
    if len(table) == 0:
        return metrics
    size, std = table["size"].to_numpy(), table["std"].to_numpy()
    kind = np.array(table["kind"].to_pylist(), dtype=object)
    for name, of_kind in (("mixed", "mixed"), ("all_correct", "all_right"), ("all_wrong", "all_wrong")):
        metrics[f"group/frac_{name}"] = float((kind == of_kind).mean())
    metrics["group/std/mean"] = float(std.mean())
    for percent in (10, 50, 90):
        metrics[f"group/std/p{percent}"] = float(np.percentile(std, percent))
    silent = kind != "mixed"
    tokens = table["tokens"].to_numpy()
    metrics["group/frac_tokens_silent"] = float(tokens[silent].sum() / max(tokens.sum(), 1))
    predicted = table["silent_predicted"].to_numpy()  # NaN for null
    known = ~np.isnan(predicted)
    if known.any():
        metrics["group/silent/observed"] = float(silent[known].mean())
        metrics["group/silent/predicted"] = float(predicted[known].mean())
    return metrics | _gain(table) | _verifier(table)


def _verifier(table: pa.Table) -> dict[str, float]:
    table = table.filter(table["unverified"].is_valid())
    verdicts = table["total"].to_numpy().sum()
    return {"verifier/unverified": float(table["unverified"].to_numpy().sum() / verdicts)} if verdicts else {}


def _gain(table: pa.Table) -> dict[str, float]:
    if table["gain"].null_count:
        return {}
    gain = table["gain"].to_numpy()
    metrics = {"dial/gain/mean": float(gain.mean())}
    rated = table["total"].to_numpy() > 0
    if 0 < gain[rated].sum() < np.inf:
        rate, share = table["correct"].to_numpy()[rated] / table["total"].to_numpy()[rated], gain[rated]
        share = share / share.sum()
        metrics["dial/gain_share/hard"] = float(share[rate <= HARD].sum())
        metrics["dial/gain_share/easy"] = float(share[rate >= EASY].sum())
        metrics["dial/gain_share/between"] = float(share[(rate > HARD) & (rate < EASY)].sum())
    return metrics


def own_names(metrics: Mapping[str, Any], extensions: Collection[str]) -> dict[str, Any]:
    """``metrics`` by our names: ``<extension>/...`` for what verl calls ``actor/<extension>/...``, because a worker
    reported it.

    Args:
        extensions: names of the run's.
    """
    ours = tuple(f"actor/{name}/" for name in extensions)
    return {name.removeprefix("actor/") if name.startswith(ours) else name: of for name, of in metrics.items()}
