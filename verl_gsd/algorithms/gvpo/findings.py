"""Log-ratios that go further than the rewards ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import Finder, Finding, recent_mean, scaled
from verl_gsd.report.reading import Columns

#: Pull of the reference over push of the rewards, above which the pull dominates.
PULL = 2.0


def pulled(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """GVPO's log-ratios go further than the rewards ask for."""
    pull = recent_mean(table, "gvpo/pull_over_push")
    if pull > PULL:
        yield Finding(
            f"GVPO pulls {pull:.1f} times as hard as the rewards push",
            "Within a step the policy moves further than the rewards call for, and the loss spends its updates on "
            "getting it back.",
            (
                *scaled(config, "actor_rollout_ref.actor.optim.lr", 0.5, "smaller steps"),
                *scaled(config, "actor_rollout_ref.actor.policy_loss.beta", 0.5, "a looser pull"),
            ),
        )


FINDERS: tuple[Finder, ...] = (pulled,)
