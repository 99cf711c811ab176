"""The finding of a budget: it expects more mixed groups than the run has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import Finder, Finding, percent, recent_mean, scaled
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

#: Threshold for the expected share of mixed groups minus the observed share.
MAX_EXCESS = 0.15
#: Only steps count in which at least this share of the prompts was visited before.
MIN_KNOWN = 0.9


def outdated_rates(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Among prompts with earlier visits, a budget expects clearly more mixed groups than there are."""
    mostly_known = column(table, "budget/share/known") >= MIN_KNOWN
    steps = {"step": table["step"][mostly_known]} | {
        name: column(table, name)[mostly_known] for name in ("budget/mixed/expected", "mixed")
    }
    expected, observed = recent_mean(steps, "budget/mixed/expected"), recent_mean(steps, "mixed")
    if expected - observed > MAX_EXCESS:
        yield Finding(
            "The budget relies on outdated solve rates",
            f"It expects {percent(expected)} of the groups to be mixed, but {percent(observed)} are. Earlier visits "
            "say less about the current policy than the budget assumes.",
            (
                *scaled(config, "algorithm.gsd.budget.half_life", 0.5, "steps after which a visit counts half"),
                "budget=uniform  # equal groups",
            ),
        )


FINDERS: tuple[Finder, ...] = (outdated_rates,)
