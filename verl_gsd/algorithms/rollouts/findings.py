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

#: Visits that all count the same predict better if their error is smaller by more than this.
MIN_IMPROVEMENT = 0.01

_HALF_LIFE, _PRIOR = "algorithm.gsd.budget.half_life", "algorithm.gsd.budget.prior"


def wrong_rates(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Among prompts with earlier visits, a budget expects clearly more mixed groups than there are.

    There are three causes:

    - The prior expects too much of prompts that are rarely solved. The law of the run's own solve rates predicts the
      observed share much better.
    - The budget forgets too fast. What it knows of a prompt is then little more than the prior, under which most groups
      are mixed. This happens if a pass over the data takes more steps than the half-life. Visits that all count the
      same predict the observed share better.
    - Solve rates have changed since the visits. Visits that all count the same do not predict it better.
    """
    seen = ("silent", "predicted", "predicted_without_forgetting", "predicted_by_law")
    names = ("budget/mixed/expected", "mixed", *(f"seen_{name}" for name in seen))
    mostly_known = column(table, "budget/share/known") >= MIN_KNOWN
    steps = {"step": table["step"][mostly_known]} | {name: column(table, name)[mostly_known] for name in names}
    expected, observed, silent, *predicted = (recent_mean(steps, name) for name in names)
    if not expected - observed > MAX_EXCESS:
        return
    error, error_without_forgetting, error_of_law = (abs(share - silent) for share in predicted)
    what = f"It expects {percent(expected)} of the groups to be mixed, but {percent(observed)} are."
    if error_of_law < error_without_forgetting / 2 and error_without_forgetting > error / 2:
        title, cause = "expects too much of hard prompts", "Its prior is above the solve rates of this data."
        change: tuple[str, ...] = (f"{_PRIOR}=...  # Beta [a, b] with the mean of the solve rates; see verl-gsd plan",)
    elif error_without_forgetting < error - MIN_IMPROVEMENT:
        title, cause = "forgets solve rates too fast", "Visits of all ages, counted the same, would predict better."
        change = scaled(config, _HALF_LIFE, 2, "steps after which a visit counts half; null for no forgetting")
    elif error_without_forgetting >= error - MIN_IMPROVEMENT:
        title, cause = "relies on outdated solve rates", "Solve rates have changed since earlier visits."
        change = scaled(config, _HALF_LIFE, 0.5, "steps after which a visit counts half")
    else:  # an error is NaN: the records are of an older version
        title, cause = "relies on wrong solve rates", "It forgets too fast, or solve rates have changed."
        change = ()
    yield Finding(f"The budget {title}", f"{what} {cause}", (*change, "budget=uniform  # equal groups"))


FINDERS: tuple[Finder, ...] = (wrong_rates,)
