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

#: A cause explains an error if the error would be smaller by more than this part of it.
MIN_EXPLAINED = 0.1

_HALF_LIFE, _PRIOR = "algorithm.gsd.budget.half_life", "algorithm.gsd.budget.prior"


def wrong_rates(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Among prompts with earlier visits, a budget expects clearly more mixed groups than there are.

    There are three causes, of which the one is named that explains most:

    - The budget forgets too fast. What it knows of a prompt is then little more than the prior, under which most groups
      are mixed. This happens if a pass over the data takes more steps than the half-life. Visits that all count the
      same predict the observed share better.
    - The prior does not fit the data: most prompts are rarely solved, nearly always, or either. Under a prior that is
      fitted to the first visits, such visits predict the share still better.
    - Solve rates have changed since the visits. Neither predicts it better.
    """
    seen = ("silent", "predicted", "predicted_without_forgetting", "predicted_by_law")
    names = ("budget/mixed/expected", "mixed", "law_a", "law_b", *(f"seen_{name}" for name in seen))
    mostly_known = column(table, "budget/share/known") >= MIN_KNOWN
    steps = {"step": table["step"][mostly_known]} | {name: column(table, name)[mostly_known] for name in names}
    expected, observed, a, b, silent, *predicted = (recent_mean(steps, name) for name in names)
    if not expected - observed > MAX_EXCESS:
        return
    error, error_without_forgetting, error_of_law = (abs(share - silent) for share in predicted)
    what = f"It expects {percent(expected)} of the groups to be mixed, but {percent(observed)} are."
    by_memory, by_prior = error - error_without_forgetting, error_without_forgetting - error_of_law
    least = MIN_EXPLAINED * error
    change: tuple[str, ...]
    if by_prior > max(by_memory, least):
        title, cause = (
            "has a prior that does not fit the data",
            "One that is fitted to the solve rates predicts better.",
        )
        change = (f"'{_PRIOR}=[{a:.2g},{b:.2g}]'  # Beta [a, b], fitted to first visits of this run",)
    elif by_memory > least:
        title, cause = "forgets solve rates too fast", "Visits of all ages, counted the same, would predict better."
        change = scaled(config, _HALF_LIFE, 2, "steps after which a visit counts half; null for no forgetting")
    elif by_memory <= least:
        title, cause = "relies on outdated solve rates", "Solve rates have changed since earlier visits."
        change = scaled(config, _HALF_LIFE, 0.5, "steps after which a visit counts half")
    else:  # an error is NaN: the records are of an older version
        title, cause = "relies on wrong solve rates", "It forgets too fast, or solve rates have changed."
        change = ()
    yield Finding(f"The budget {title}", f"{what} {cause}", (*change, "budget=uniform  # equal groups"))


FINDERS: tuple[Finder, ...] = (wrong_rates,)
