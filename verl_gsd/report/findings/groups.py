"""Findings about groups: groups that have no gradient, and rollouts that are not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from verl_gsd.dynamic_sampling import GRADED_VERIFIERS
from verl_gsd.estimators import ESTIMATOR, has_group_baseline
from verl_gsd.extension import ROLLOUTS
from verl_gsd.report.extensions import in_report_order, remedies, takes_part
from verl_gsd.report.findings.finding import (
    KL_IN_REWARD,
    THRESHOLDS,
    Finder,
    Finding,
    about_sources,
    assigned,
    errors_in_parts,
    numeric_value,
    percent,
    recent_count,
    recent_mean,
    recent_sum,
    scaled,
)
from verl_gsd.report.findings.lengths import OVERLONG
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import USES, column, source_column, sources_of
from verl_gsd.rundir import SIZES_IN_DATA

_GROUP_SIZE = "actor_rollout_ref.rollout.n"
_TEMPERATURE = "actor_rollout_ref.rollout.temperature"
_DYNAMIC_SAMPLING = "algorithm.filter_groups.enable"
_REPLACE_FAILED = "trainer.v1.sampler.sync_refill_failed_groups"
_MODE = "trainer.v1.trainer_mode"


class _Kinds(NamedTuple):
    """What the groups of the last ``steps`` steps are like, of all data sources or of one: shares, and their number."""

    of: str
    steps: int
    groups: float
    silent: float
    wrong: float
    right: float
    equal: float


def silent(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """More than half of the groups, of all or of a source, have rewards without a gradient (``records.is_silent``).

    An estimator without a group baseline learns from groups whose rewards are equal, too. So does every estimator if
    verl subtracts a KL penalty from the rewards, after they were recorded. If all groups have one response, that is
    what is wrong (``alone``), and dynamic sampling would evict them all.
    """
    if not has_group_baseline(config.get(ESTIMATOR)) or config.get(KL_IN_REWARD) is True:
        return
    if numeric_value(config, _GROUP_SIZE) == 1 and not _has_sizes_in_data(table):
        return
    names = ("silent", "all_wrong", "all_right", "equal")
    pooled = _Kinds(
        "", recent_count(table, "silent"), recent_sum(table, "groups"), *(recent_mean(table, name) for name in names)
    )
    of_sources = _kinds_of_sources(table)
    found = [pooled] if _is_mostly_silent(pooled, 1) else []
    found += [kinds for kinds in of_sources if _is_mostly_silent(kinds, len(of_sources))]
    if not found:
        return
    some_are_wrong = any(kinds.wrong >= kinds.right and kinds.wrong > 0 for kinds in found)
    is_filtered = config.get(_DYNAMIC_SAMPLING) is True
    overrides: list[str] = []
    if not is_filtered:
        metric = _filter_metric(table, config)
        # From equal tokens, DAPO learned less than GRPO in the study ``methods`` (docs/studies.md).
        why = "replaces silent groups, which saves steps and costs rollouts (study methods)"
        overrides.append(f"{_DYNAMIC_SAMPLING}=true algorithm.filter_groups.metric={metric}  # {why}")
    overrides += _larger_groups(table, config, "larger groups are less often silent")
    overrides += remedies("all_wrong", config) if some_are_wrong else []
    overrides += remedies("silent", config)
    cost = (
        "Dynamic sampling evicts these groups, so their rollouts are wasted."
        if is_filtered
        else "These groups take up space in the batch."
    )
    # A small majority would advise harder data to a run with nearly as many prompts that the policy never solves.
    are_mostly_right = all(kinds.right > 2 * (kinds.wrong + np.nan_to_num(kinds.equal)) for kinds in found)
    advice = " The policy solves most of these prompts. Harder prompts help most." if are_mostly_right else ""
    yield Finding(
        f"{percent(found[0].silent)} of the groups{found[0].of} are silent",
        f"{about_sources([_verdicts_of(kinds) for kinds in found])} The rewards of a silent group give no gradient. "
        f"{cost}{advice}",
        tuple(overrides),
    )


def _verdicts_of(kinds: _Kinds) -> str:
    sentences = []
    if not kinds.equal > 0 or kinds.wrong + kinds.right > 0:
        sentences.append(
            f"all responses were wrong in {percent(kinds.wrong)} of the groups{kinds.of} and all right in "
            f"{percent(kinds.right)}."
        )
    if kinds.equal > 0:
        sentences.append(
            f"all verdicts were equal in {percent(kinds.equal)} of the groups{kinds.of}, and nothing tells whether "
            "the responses were right, because their data source has no accuracies, or all their accuracies are the "
            "same number between 0 and 1."
        )
    span = "In the last step" if kinds.steps == 1 else f"In the last {kinds.steps} steps"
    return " ".join(f"{span}, {sentence}" for sentence in sentences)


def _kinds_of_sources(table: Columns) -> list[_Kinds]:
    """Of each data source that has groups in the recent steps."""
    result = []
    for source in sources_of(table):
        groups, *kinds = (
            recent_sum(table, source_column(f"groups_{name}", source))
            for name in ("answered", "silent", "all_wrong", "all_right", "equal")
        )
        if groups:
            steps = recent_count(table, source_column("groups_answered", source))
            result.append(_Kinds(f" of {source}", steps, groups, *(number / groups for number in kinds)))
    return result


def _is_mostly_silent(kinds: _Kinds, n_parts: int) -> bool:
    """Whether chance does not explain that the share of silent groups lies above its threshold."""
    error = np.sqrt(kinds.silent * (1 - kinds.silent) / kinds.groups) if kinds.groups else 0.0
    return bool(kinds.silent - errors_in_parts(THRESHOLDS.silent_errors, n_parts) * error > THRESHOLDS.silent)


def _filter_metric(table: Columns, config: Mapping[str, Any]) -> str:
    """The value by which dynamic sampling finds silent groups. verl fails at a response that lacks it.

    The reward exists for every response. It has DAPO's overlong penalty, which makes the rewards of settled groups
    differ. A function that returns a dict returns ``score``, without that penalty. A plain number is stored as ``acc``,
    without ``score``, and a function can do one for some data sources and the other for others.
    """
    if np.nansum(column(table, "without_acc")):
        return "score" if config.get(OVERLONG) is True else "reward"
    if _is_graded(config):
        return "score"
    return "reward" if _has_partial_credit(table, config) else "acc"


def _larger_groups(table: Columns, config: Mapping[str, Any], why: str) -> tuple[str, ...]:
    """An override that doubles the sizes of groups, or names what sets them if they are in the data."""
    if _has_sizes_in_data(table):
        return (
            f"data.train_files=...  # {why}; the column {ROLLOUTS} of the data sets their sizes: run `verl-gsd plan "
            "--allocate` with a larger --group-size",
        )
    return scaled(config, _GROUP_SIZE, 2, why)


def _has_sizes_in_data(table: Columns) -> bool:
    return recent_mean(table, SIZES_IN_DATA) > 0


def _has_partial_credit(table: Columns, config: Mapping[str, Any]) -> bool:
    """Whether scores differ in groups whose verdicts agree, so that a filter by verdict would evict a gradient.

    DAPO's overlong penalty makes rewards differ, and not the scores.
    """
    return _is_graded(config) or (
        config.get(OVERLONG) is not True and recent_mean(table, "shaped") > THRESHOLDS.partial
    )


def _is_graded(config: Mapping[str, Any]) -> bool:
    """Whether the verifier is one of ours that give partial credit. Its scores have no overlong penalty."""
    return str(config.get("reward.custom_reward_function.path")) in GRADED_VERIFIERS


def noisy(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """More groups are silent than the numbers of right responses to their prompts explain.

    Given these numbers, the probability of a silent group needs no law of solve rates (``steps._given_totals``). A
    policy that learns makes groups all right, and nothing is wrong with that. Therefore only groups without a right
    response are compared with their expectation. The standard error is that of independent groups. Each data source is
    looked at, too: its verifier may fail alone. A run whose budget or sampler follows earlier responses is left out.
    """
    if any(declared.follows_responses and takes_part(declared, config) for declared in in_report_order()):
        return
    sources = sources_of(table)
    parts = [(None, 1), *((source, len(sources)) for source in sources)]
    sentences = [sentence for part in parts if (sentence := _unpredicted(table, *part))]
    if sentences:
        temperature = numeric_value(config, _TEMPERATURE)
        yield Finding(
            "More groups are silent than the visits to their prompts explain",
            f"{about_sources(sentences)} Learning does not explain groups without a right response. Possible causes: "
            "responses to one prompt depend on each other (a low temperature, shared seeds); the verifier fails for "
            "whole groups (timeouts, answers that it cannot parse); or the policy has changed much since the last "
            "visit.",
            (
                *(() if temperature is not None and temperature >= 1 else (f"{_TEMPERATURE}=1.0  # if it is lower",)),
                "reward.custom_reward_function.path=...  # a verifier that gives equal responses equal verdicts",
            ),
        )


def _unpredicted(table: Columns, source: str | None, n_parts: int) -> str | None:
    """A sentence if more groups have no right response than expected, of one data source or of all; else None."""
    groups, silent, predicted, wrong, wrong_predicted, variance = (
        float(np.nansum(column(table, name if source is None else source_column(name, source))))
        for name in (
            f"likely_{figure}"
            for figure in ("groups", "silent", "predicted", "wrong", "wrong_predicted", "wrong_variance")
        )
    )
    if groups < THRESHOLDS.noise_groups or (wrong - wrong_predicted) / groups <= THRESHOLDS.noise:
        return None
    if wrong - wrong_predicted <= errors_in_parts(THRESHOLDS.noise_errors, n_parts) * np.sqrt(variance):
        return None
    of = "" if source is None else f" of {source}"
    return (
        f"{groups:.0f} groups{of} were likely to be mixed, by the right responses to their prompts so far. "
        f"{percent(silent / groups)} of them were silent, and {percent(predicted / groups)} were expected. "
        f"{percent(wrong / groups)} had no right response, and {percent(wrong_predicted / groups)} were expected."
    )


def alone(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups of one response have no baseline. Some estimators need none."""
    share = recent_mean(table, "alone")
    if not share > THRESHOLDS.alone or not has_group_baseline(config.get(ESTIMATOR)):  # the share may be NaN
        return
    if _has_sizes_in_data(table):
        overrides = _larger_groups(table, config, "responses per prompt")
    elif (numeric_value(config, _GROUP_SIZE) or 1) == 1:
        overrides = (f"{_GROUP_SIZE}=8  # responses per prompt",)
    else:
        overrides = scaled(config, _GROUP_SIZE, 2, "responses per prompt, because sessions of these groups failed")
    # Some estimators of verl, such as grpo, take the reward itself for the advantage of such a response.
    zero = " Its advantage is 0." if config.get(ESTIMATOR) == "gsd" else ""
    yield Finding(
        f"{percent(share)} of the groups have one response",
        f"Such a response has no others to be compared with.{zero}",
        overrides,
    )


def unused(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Many rollouts are not trained on because their groups were surplus or stale."""
    total = recent_mean(table, "rollouts")
    shares = {use: recent_mean(table, f"rollouts_{use}") / total for use in USES} if total > 0 else {}
    if shares.get("surplus", 0) > THRESHOLDS.surplus:
        yield Finding(
            f"{percent(shares['surplus'])} of the rollouts were surplus",
            "Their groups were mixed, but the batch was full. verl starts two prompts for each silent group that it "
            "evicts.",
            (
                *scaled(config, "algorithm.filter_groups.max_inflight_gen_batches", 0.5, "fewer batches at once"),
                *_larger_groups(table, config, "larger groups are less often silent, so fewer are replaced"),
                *remedies("silent", config),
            ),
        )
    if shares.get("stale", 0) > THRESHOLDS.stale:
        yield Finding(
            f"{percent(shares['stale'])} of the rollouts were stale when their group was complete",
            "The policy had been updated more often since they were started than the config allows. They were dropped.",
            (
                *assigned(config, "trainer.v1.sampler.max_off_policy_strategy", "wait", "waits for them instead"),
                *scaled(config, "trainer.v1.sampler.max_off_policy_threshold", 2, "policy versions per response"),
            ),
        )


def failed(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups in which no session returned a usable response, or in the asynchronous modes at least one did not.

    The asynchronous modes replace such groups in any case, and do not read the key.
    """
    if recent_mean(table, "failed") > THRESHOLDS.failed:
        is_async = str(config.get(_MODE)).endswith("async")
        is_replaced = config.get(_REPLACE_FAILED) is True or is_async
        cause = "an agent loop or a verifier raised an error, or a server stopped"
        lost = (
            f"At least one session of each of them failed: {cause}. In this trainer mode, verl drops the whole group "
            "then, also the responses of its other sessions."
            if is_async
            else f"None of their sessions returned a usable response: {cause}."
        )
        yield Finding(
            f"{percent(recent_mean(table, 'failed'))} of the groups failed",
            f"{lost}{' verl replaces them by other prompts.' if is_replaced else ''} RUN/logs has the errors.",
            () if is_replaced else (f"{_REPLACE_FAILED}=true data.gen_batch_size=1  # other prompts replace them",),
        )


FINDERS: tuple[Finder, ...] = (silent, noisy, failed, unused, alone)
