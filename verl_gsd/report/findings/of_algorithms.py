"""HA-DW's anchor, GVPO's pull, a budget's expectations, DaGRPO's demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.findings.finding import LIMITS, Finder, Finding, now, number_of, percent, scaled
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

_PRESET = "algorithm.gsd.hadw.preset"


def frozen(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """HA-DW's anchor stands still, far from the accuracy that it is to follow; not where it is fixed by choice."""
    if config.get(_PRESET) == "fixed" or number_of(config, _PRESET) is not None:
        return
    known = ~np.isnan(column(table, "anchor"))
    anchor, accuracy = (column(table, name)[known][-LIMITS.frozen_steps :] for name in ("anchor", "accuracy"))
    if len(anchor) < LIMITS.frozen_steps or np.ptp(anchor) > LIMITS.frozen_span:
        return
    if abs(accuracy.mean() - anchor.mean()) > LIMITS.frozen_distance:
        yield Finding(
            "HA-DW's anchor is frozen",
            f"It stands at {anchor[-1]:.3f} for {len(anchor)} steps or more, where accuracy is {accuracy.mean():.3f}: "
            "what counts as a hard prompt is that of an earlier policy.",
            (f"{_PRESET}=hard  # the mean of the last ten steps; or soft, whose rate cannot reach 0",),
        )


def pulled(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """GVPO's log-ratios go further than the rewards ask for."""
    pull = now(table, "gvpo/pull_over_push")
    if pull > LIMITS.pull:
        yield Finding(
            f"GVPO pulls {pull:.1f} times as hard as the rewards push",
            "Within a step the policy moves further than the rewards call for, and the loss spends its updates on "
            "getting it back.",
            (
                *scaled(config, "actor_rollout_ref.actor.optim.lr", 0.5, "smaller steps"),
                *scaled(config, "actor_rollout_ref.actor.policy_loss.beta", 0.5, "a looser pull"),
            ),
        )


def budgeted(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """A budget expects more mixed groups than it gets, of prompts that it knows."""
    known = column(table, "budget/share/known") >= LIMITS.budget_known
    of_known = {"step": table["step"][known]} | {
        name: column(table, name)[known] for name in ("budget/mixed/expected", "mixed")
    }
    expected, got = now(of_known, "budget/mixed/expected"), now(of_known, "mixed")
    if expected - got > LIMITS.budget:
        yield Finding(
            "The budget is spent on rates that no longer hold",
            f"It expects {percent(expected)} of the groups to be mixed, and {percent(got)} are. Earlier visits tell "
            "less of the policy than it takes them to.",
            (
                *scaled(config, "algorithm.gsd.budget.half_life", 0.5, "steps after which a visit counts half"),
                "budget=uniform  # equal groups",
            ),
        )


def undemonstrated(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups call for demonstrations that nobody has."""
    wanted, found = (now(table, f"dagrpo/demonstrations/{name}") for name in ("wanted", "found"))
    if not (wanted > 0 and found / wanted < LIMITS.demonstrations):
        return
    prefix = "dagrpo/demonstrations/rejected/"
    reasons = {name.removeprefix(prefix): now(table, name) for name in table if name.startswith(prefix)}
    why = max(reasons, key=lambda reason: reasons[reason], default=None)
    most = f" Most were refused as {why}." if why and reasons[why] > 0 else ""
    yield Finding(
        f"Of the groups that call for a demonstration {percent(found / wanted)} get one",
        f"{wanted:.0f} groups a step call for one.{most}",
        (
            "algorithm.gsd.dagrpo.demonstrations.source=expert_or_self  # else the policy's own successes",
            "algorithm.gsd.dagrpo.demonstrations.column=...  # where the data have them",
        ),
    )


FINDERS: tuple[Finder, ...] = (frozen, pulled, budgeted, undemonstrated)
