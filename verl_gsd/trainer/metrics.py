"""Metrics of all groups that left the buffer in a step, whatever their fate.

verl reduces a metric by its name if the name contains max, min, sum or total. The names here avoid these words.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_gsd.base_names import PASS_KS
from verl_gsd.extension import RowStore
from verl_gsd.groups import Group
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.planning.pass_at_k import pass_at_k_of_groups
from verl_gsd.prompts import PromptStore, independent_prompts
from verl_gsd.records import (
    EASY,
    FATES,
    HARD,
    float_column,
    gradient_mass,
    is_graded,
    is_silent,
    rated_sources,
    valid_accuracies,
)
from verl_gsd.rundir import ENTROPY, GENERATED_REWARD, HELD_OUT_INDEPENDENT, HELD_OUT_OUTSIDE, HELD_OUT_PROMPTS
from verl_gsd.scalars import without_rounding
from verl_gsd.trainer.rows import as_number


def with_prediction(table: pa.Table, prompts: PromptStore, step: int, prior: tuple[float, float]) -> pa.Table:
    """Fill the column ``silent_predicted`` in the records of one step.

    Args:
        table: the records, from ``records.step_records``.
        prompts: the memory of prompts from earlier steps, without this step.
        step: the trainer step of the records.
        prior: (a, b) of the Beta prior of a solve rate before a prompt's first visit.
    """
    keys = list(zip(table["data_source"].to_pylist(), table["index"].to_pylist(), strict=True))
    size = table["size"].to_numpy()
    _, counted, visited = prompts.counts(keys)
    # The prediction needs responses that are right or wrong, and all of them from this visit. Prompts with accuracies
    # between 0 and 1 have no prediction. Checkpoints of older versions know only the sum of the accuracies.
    is_binary = (prompts.recent_partial(keys, step) == 0) & (counted == np.rint(counted))
    is_predictable = (visited > 0) & is_binary & (table["total"].to_numpy() == size) & (size > 0)
    predicted = np.zeros(len(table))
    if is_predictable.any():
        correct, total = prompts.recent(list(itertools.compress(keys, is_predictable)), step)
        predicted[is_predictable] = posterior_silent_rate(correct, total, size[is_predictable], prior)
    name = "silent_predicted"
    column = pa.array(predicted, mask=~is_predictable)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


def entropy_metric(rows: RowStore, keys: Sequence[str]) -> dict[str, float]:
    """``policy/entropy``: the mean entropy of the policy at a token of a response, in nats.

    verl's ``actor/entropy`` averages as the loss does. Under ``seq-mean-token-sum-norm``, which Dr. GRPO has, it is
    this mean times the responses' mean length, divided by the maximum length.

    Args:
        rows: have the columns ``entropy`` and ``response_mask``, (j,) per row.
        keys: the rows that the policy generated in this step.

    Returns:
        Empty if no token counts.
    """
    found = rows.read(keys, ["entropy", "response_mask"])
    total = sum(float((row["entropy"].double() * row["response_mask"]).sum()) for row in found)
    tokens = sum(int(row["response_mask"].sum()) for row in found)
    return {ENTROPY: total / tokens} if tokens else {}


def group_metrics(table: pa.Table) -> dict[str, float]:
    """Metrics of one step: ``group/*``, ``dial/*`` and ``verifier/*``.

    Args:
        table: the step's records from ``with_prediction``.

    Returns:
        For all groups:

        - ``group/count/<fate>``: number of groups by fate.
        - ``group/count/one_sample``: number of groups of one response, which have no baseline and no learning signal.

        For groups with responses:

        - ``group/frac_{mixed,all_correct,all_wrong,equal}``: shares of groups, by the verifier's verdicts (``kind``).
          ``all_correct`` and ``all_wrong`` are absent if no data source of the step has accuracies, and ``equal`` if
          all have and no group is equal.
        - ``group/std/{mean,p10,p50,p90}``: standard deviation of the rewards.
        - ``group/frac_tokens_silent``: share of tokens in groups that teach nothing (``records.is_silent``).
        - ``group/reward/generated``: mean reward of all responses, if some groups were not trained on or have a
          demonstration, and no response is of an earlier visit.

        For groups whose prompt was visited before:

        - ``group/silent/observed``: share of groups that are all right or all wrong.
        - ``group/silent/predicted``: the share predicted from earlier visits. After few visits, or if visits are
          forgotten before the next one, the prior makes it smaller than the observed share. A lasting gap otherwise
          means that the policy has changed, that rollouts are not independent, or that the verifier is noisy.

        If the config is an operation on sigma:

        - ``dial/gain/mean``: mean gain. Absent if verl subtracts a KL penalty from the rewards.
        - ``dial/gain_share/{hard,between,easy}``: shares of the gradient mass of the groups that were trained on, by
          the group's accuracy. See ``records.gradient_mass``.

        If all accuracies are 0 or 1, for each k up to the size of the smallest group:

        - ``group/pass@<k>``: mean over the groups of the unbiased estimate of pass@k.

        If the verifier returns the final answers:

        - ``group/answers/distinct``: mean number of different final answers of a group.

        If the verifier reports which responses it could not verify:

        - ``verifier/unverified``: their share of the responses with a verdict.
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
    is_rated = table["total"].to_numpy() > 0
    names = {"mixed": "mixed"}
    names |= {"all_right": "all_correct", "all_wrong": "all_wrong"} if is_rated.any() else {}
    names |= {} if (is_rated & (kind != "equal")).all() else {"equal": "equal"}
    for kind_name, name in names.items():
        metrics[f"group/frac_{name}"] = float((kind == kind_name).mean())
    metrics["group/std/mean"] = float(std.mean())
    for percent in (10, 50, 90):
        metrics[f"group/std/p{percent}"] = float(np.percentile(std, percent))
    # A demonstration can replace a response, which verl's mean over the batch then lacks. The rewards of earlier
    # responses are in the group's mean, but they were not generated in this step.
    is_incomplete = {"trained"} < set(table["fate"].to_pylist()) or (float_column(table, "demonstrations") > 0).any()
    if is_incomplete and not table["earlier"].to_numpy().any():
        metrics[GENERATED_REWARD] = float(np.average(table["mean"].to_numpy(), weights=size))
    tokens = table["tokens"].to_numpy()
    metrics["group/frac_tokens_silent"] = float(tokens[is_silent(table)].sum() / max(tokens.sum(), 1))
    predicted = table["silent_predicted"].to_numpy()  # null becomes NaN
    has_prediction = ~np.isnan(predicted)
    if has_prediction.any():
        metrics["group/silent/observed"] = float((kind[has_prediction] != "mixed").mean())
        metrics["group/silent/predicted"] = float(predicted[has_prediction].mean())
    return metrics | _gain(table) | _diversity(table) | _verifier(table)


def _diversity(table: pa.Table) -> dict[str, float]:
    metrics = {}
    correct, rated, graded = table["correct"].to_numpy(), table["total"].to_numpy(), is_graded(table)
    for k in PASS_KS:
        estimates = pass_at_k_of_groups(correct, rated, graded, k)
        if not np.isnan(estimates).all():
            metrics[f"group/pass@{k}"] = float(np.nanmean(estimates))
    distinct = table["distinct_answers"].drop_null().to_numpy()
    if len(distinct):
        metrics["group/answers/distinct"] = float(distinct.mean())
    return metrics


def _verifier(table: pa.Table) -> dict[str, float]:
    table = table.filter(pc.and_(table["unverified"].is_valid(), pc.greater(table["total"], 0)))
    verdicts = table["total"].to_numpy().sum()
    return {"verifier/unverified": float(table["unverified"].to_numpy().sum() / verdicts)} if verdicts else {}


def doubt(groups: Sequence[Group]) -> dict[str, float]:
    """``verifier/doubtful``: the share of the responses with a verdict that count as wrong without a rule being sure.

    Only groups whose verifier reports this count. The dict is empty if there is none.
    """
    reported = [group for group in groups if group.doubtful is not None]
    rated = rated_sources(reported)
    verdicts = sum(len(valid_accuracies(group, rated)) for group in reported)
    return {"verifier/doubtful": sum(group.doubtful or 0 for group in reported) / verdicts} if verdicts else {}


def _gain(table: pa.Table) -> dict[str, float]:
    metrics = {}
    if not table["gain"].null_count:
        metrics["dial/gain/mean"] = float(table["gain"].to_numpy().mean())
    mass, rated = gradient_mass(table), table["total"].to_numpy() > 0
    counted = rated & ~np.isnan(mass)
    if 0 < mass[counted].sum() < np.inf:
        rate = table["correct"].to_numpy()[counted] / table["total"].to_numpy()[counted]
        share = mass[counted] / mass[counted].sum()
        metrics["dial/gain_share/hard"] = float(share[rate <= HARD].sum())
        metrics["dial/gain_share/easy"] = float(share[rate >= EASY].sum())
        metrics["dial/gain_share/between"] = float(share[(rate > HARD) & (rate < EASY)].sum())
    return metrics


def held_out_counts(sources: Sequence[str], labels: Sequence[int] | None) -> dict[str, float]:
    """Metrics ``val/prompts/<source>``, and ``val/independent/<source>`` if prompts of the source are repeated.

    Args:
        sources: the data source of each held-out prompt.
        labels: ``prompts.question_labels`` of the prompts; None if they are not known.
    """
    metrics = {HELD_OUT_PROMPTS + source: float(count) for source, count in Counter(sources).items()}
    labels_of: dict[str, list[int]] = {}
    for source, label in zip(sources, labels or (), strict=labels is not None):
        labels_of.setdefault(source, []).append(label)
    for source, of_source in labels_of.items():
        if len(set(of_source)) < len(of_source):
            metrics[HELD_OUT_INDEPENDENT + source] = float(independent_prompts(of_source))
    return metrics


def held_out_outside(sources: Sequence[Any], accuracies: Sequence[Any]) -> dict[str, float]:
    """Metrics ``val/outside/<source>``: the number of held-out responses whose ``acc`` lies outside [0, 1].

    Sources without such a response have no metric.

    Args:
        sources: the data source of each response.
        accuracies: the ``acc`` of each response, as its verifier returned it. What is not a number does not count.
    """
    outside = Counter(
        str(source)
        for source, accuracy in zip(sources, map(as_number, accuracies), strict=True)
        if without_rounding(accuracy) < 0 or without_rounding(accuracy) > 1
    )
    return {HELD_OUT_OUTSIDE + source: float(count) for source, count in outside.items()}


def strip_actor_prefix(metrics: Mapping[str, Any], extensions: Collection[str]) -> dict[str, Any]:
    """Rename the metrics of extensions from ``actor/<extension>/...`` to ``<extension>/...``.

    verl adds the prefix to the metrics that a worker reports.

    Args:
        extensions: names of the run's extensions.
    """
    prefixed = tuple(f"actor/{name}/" for name in extensions)
    return {
        name.removeprefix("actor/") if name.startswith(prefixed) else name: value for name, value in metrics.items()
    }
