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

#: Forgetting is the main cause if visits that all count the same have at most this part of the error. In simulations it
#: was 0.7 or less with forgetting as the main cause, 0.77 to 0.83 with the prior, and above 1 where rates had changed.
FORGETTING = 0.73
#: The law of the run's solve rates explains the error if less than this part is left.
MAX_UNEXPLAINED = 0.85

_HALF_LIFE, _PRIOR = "algorithm.gsd.budget.half_life", "algorithm.gsd.budget.prior"


def wrong_rates(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Among prompts with earlier visits, a budget expects clearly more mixed groups than there are.

    There are three causes:

    - The budget forgets too fast. What it knows of a prompt is then little more than the prior, under which most groups
      are mixed. This happens if a pass over the data takes more steps than the half-life. Visits that all count the
      same predict the observed share much better (``FORGETTING``).
    - The prior expects too much of prompts that are rarely solved. More groups are all wrong than all right, and such
      visits predict the share a little better, or they do under the law of the run's own solve rates.
    - Solve rates have changed since the visits. Neither predicts it better.
    """
    seen = ("silent", "predicted", "predicted_without_forgetting", "predicted_by_law")
    names = ("budget/mixed/expected", "mixed", "all_wrong", "all_right", *(f"seen_{name}" for name in seen))
    mostly_known = column(table, "budget/share/known") >= MIN_KNOWN
    steps = {"step": table["step"][mostly_known]} | {name: column(table, name)[mostly_known] for name in names}
    expected, observed, all_wrong, all_right, silent, *predicted = (recent_mean(steps, name) for name in names)
    if not expected - observed > MAX_EXCESS:
        return
    error, error_without_forgetting, error_of_law = (abs(share - silent) for share in predicted)
    what = f"It expects {percent(expected)} of the groups to be mixed, but {percent(observed)} are."
    law_explains = error_of_law < MAX_UNEXPLAINED * error_without_forgetting
    forgetting_explains = error_without_forgetting < error - MIN_IMPROVEMENT
    is_hard = all_wrong > all_right
    if error_without_forgetting <= FORGETTING * error or (forgetting_explains and not is_hard):
        title, cause = "forgets solve rates too fast", "Visits of all ages, counted the same, would predict better."
        change = scaled(config, _HALF_LIFE, 2, "steps after which a visit counts half; null for no forgetting")
    elif is_hard and (law_explains or forgetting_explains):
        title, cause = "expects too much of hard prompts", "Its prior is above the solve rates of this data."
        change = (f"{_PRIOR}=...  # Beta [a, b] with the mean of the solve rates; see verl-gsd plan",)
    elif error_without_forgetting >= error - MIN_IMPROVEMENT:
        title, cause = "relies on outdated solve rates", "Solve rates have changed since earlier visits."
        change = scaled(config, _HALF_LIFE, 0.5, "steps after which a visit counts half")
    else:  # an error is NaN: the records are of an older version
        title, cause = "relies on wrong solve rates", "It forgets too fast, or solve rates have changed."
        change = ()
    yield Finding(f"The budget {title}", f"{what} {cause}", (*change, "budget=uniform  # equal groups"))


FINDERS: tuple[Finder, ...] = (wrong_rates,)
