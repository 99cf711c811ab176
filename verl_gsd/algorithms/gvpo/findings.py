"""The finding of GVPO: log-ratios that grow further than the rewards call for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import Finder, Finding, recent_mean, scaled
from verl_gsd.report.reading import Columns

#: Threshold for the pull of the reference policy divided by the push of the rewards.
MAX_PULL_OVER_PUSH = 2.0


def strong_pull(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """GVPO's log-ratios grow further than the rewards call for."""
    pull = recent_mean(table, "gvpo/pull_over_push")
    if pull > MAX_PULL_OVER_PUSH:
        yield Finding(
            f"GVPO's pull to the reference policy is {pull:.1f} times as strong as the push of the rewards",
            "Within a step, the policy moves further than the rewards call for. The loss then spends its updates on "
            "moving it back.",
            (
                *scaled(config, "actor_rollout_ref.actor.optim.lr", 0.5, "smaller steps", is_count=False),
                *scaled(config, "actor_rollout_ref.actor.policy_loss.beta", 0.5, "a weaker pull", is_count=False),
            ),
        )


FINDERS: tuple[Finder, ...] = (strong_pull,)
