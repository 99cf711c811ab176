"""All findings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.report.findings import of_algorithms, of_groups, of_judge, of_policy, of_rewards
from verl_gsd.report.findings.finding import Finder, Finding
from verl_gsd.report.reading import Columns

#: In the order of a page: what costs most stands first.
FINDERS: tuple[Finder, ...] = (
    *of_groups.FINDERS,
    *of_rewards.FINDERS,
    *of_policy.FINDERS,
    *of_algorithms.FINDERS,
    *of_judge.FINDERS,
)


def findings(table: Columns, config: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a run.

    Args:
        table: ``steps.by_step``.
        config: dotted key -> value; empty where it is not known.
    """
    return [finding for finder in FINDERS for finding in finder(table, config)]
