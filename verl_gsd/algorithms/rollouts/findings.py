"""A budget whose expectations do not come true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import Finder, Finding, percent, recent_mean, scaled
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

#: Share of mixed groups that a budget expects, less the share that it got, above which its rates no longer hold. It
#: counts at steps of whose prompts at least the share ``KNOWN`` was visited before.
EXCESS, KNOWN = 0.15, 0.9


def budgeted(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """A budget expects more mixed groups than it gets, of prompts that it knows."""
    known = column(table, "budget/share/known") >= KNOWN
    of_known = {"step": table["step"][known]} | {
        name: column(table, name)[known] for name in ("budget/mixed/expected", "mixed")
    }
    expected, got = recent_mean(of_known, "budget/mixed/expected"), recent_mean(of_known, "mixed")
    if expected - got > EXCESS:
        yield Finding(
            "The budget is spent on rates that no longer hold",
            f"It expects {percent(expected)} of the groups to be mixed, and {percent(got)} are. Earlier visits tell "
            "less of the policy than it takes them to.",
            (
                *scaled(config, "algorithm.gsd.budget.half_life", 0.5, "steps after which a visit counts half"),
                "budget=uniform  # equal groups",
            ),
        )


FINDERS: tuple[Finder, ...] = (budgeted,)
