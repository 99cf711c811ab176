"""Groups that teach nothing, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.extensions import remedies
from verl_gsd.report.findings.finding import LIMITS, Finder, Finding, now, number_of, percent, scaled
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import USES, column

_SIZE = "actor_rollout_ref.rollout.n"


def silent(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """More than half of the groups agree."""
    share = now(table, "silent")
    if not share > LIMITS.silent:
        return
    wrong, right = now(table, "all_wrong"), now(table, "all_right")
    filtered = config.get("algorithm.filter_groups.enable") is True
    write: list[str] = []
    # A budget refuses dynamic sampling.
    if not filtered and config.get("algorithm.gsd.budget.objective") is None:
        write.append("algo=dapo  # or algorithm.filter_groups.enable=true with metric=acc: others take their places")
    write += scaled(config, _SIZE, 2, "a larger group agrees less often")
    write += remedies("all_wrong", config) if wrong >= right else []
    write += remedies("silent", config)
    cost = (
        "Dynamic sampling evicts them, so that they cost rollouts."
        if filtered
        else "They are in the batch all the same."
    )
    harder = "" if wrong >= right else " Most are mastered: harder prompts would teach more than any setting."
    yield Finding(
        f"{percent(share)} of the groups are silent",
        f"Of late all responses were wrong in {percent(wrong)} of the groups and all right in {percent(right)}. "
        f"Such a group has no gradient. {cost}{harder}",
        tuple(write),
    )


def noisy(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups agree where earlier visits to their prompts say they should not.

    Of groups that were predicted to be mixed rather than silent: there a prior weighs little. The error is that of as
    many independent groups.
    """
    groups, observed, predicted, variance = (
        float(np.nansum(column(table, f"likely_{name}"))) for name in ("groups", "silent", "predicted", "variance")
    )
    if groups < LIMITS.noise_groups or (observed - predicted) / groups <= LIMITS.noise:
        return
    if observed - predicted > LIMITS.noise_errors * np.sqrt(variance):
        yield Finding(
            "Groups agree more often than their prompts' history allows",
            f"Of {groups:.0f} groups whose prompt had divided the policy before, {percent(observed / groups)} were "
            f"silent, where {percent(predicted / groups)} were to be expected. Either responses to one prompt depend "
            "on each other (a low temperature, shared seeds), or the verifier fails for whole groups (timeouts, "
            "answers that it cannot parse), or the policy has changed much since the last visit.",
            (
                "actor_rollout_ref.rollout.temperature=1.0  # if it is lower"
                + (
                    f"; it is {now_is:g}"
                    if (now_is := number_of(config, "actor_rollout_ref.rollout.temperature"))
                    else ""
                ),
                "reward.custom_reward_function.path=...  # a verifier that gives the same response the same verdict",
            ),
        )


def alone(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups of one response have no baseline."""
    if now(table, "alone") > LIMITS.alone:
        yield Finding(
            f"{percent(now(table, 'alone'))} of the groups have one response",
            "It has no sibling to be compared with, and its advantage is 0.",
            (f"{_SIZE}=8  # responses a prompt",),
        )


def unused(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Rollouts whose group never reached an update, other than filtered ones."""
    total = now(table, "rollouts")
    shares = {use: now(table, f"rollouts_{use}") / total for use in USES} if total > 0 else {}
    if shares.get("surplus", 0) > LIMITS.surplus:
        yield Finding(
            f"{percent(shares['surplus'])} of the rollouts were left over",
            "Their groups were mixed, and the batch was full.",
            (
                "data.gen_batch_size=...  # fewer prompts each time the batch is refilled",
                *scaled(config, "algorithm.filter_groups.max_inflight_gen_batches", 0.5, "fewer batches at once"),
            ),
        )
    if shares.get("stale", 0) > LIMITS.stale:
        yield Finding(
            f"{percent(shares['stale'])} of the rollouts were too old when they were whole",
            "The policy had moved on by more versions than are allowed, and they were dropped.",
            (
                "trainer.v1.sampler.max_off_policy_strategy=wait  # waits for them instead",
                *scaled(config, "trainer.v1.sampler.max_off_policy_threshold", 2, "versions a response may span"),
            ),
        )


def failed(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups none of whose sessions gave anything."""
    if now(table, "failed") > LIMITS.failed:
        yield Finding(
            f"{percent(now(table, 'failed'))} of the groups failed",
            "No session of theirs gave a response that could be used: an agent loop or a verifier raised, or a server "
            "went away. RUN/logs says which.",
            ()
            if config.get("algorithm.gsd.budget.objective") is not None  # which refuses that
            else ("trainer.v1.sampler.sync_refill_failed_groups=true  # and data.gen_batch_size=1: others step in",),
        )


FINDERS: tuple[Finder, ...] = (silent, noisy, failed, unused, alone)
