"""What the project's studies found about the settings of a run. Results and their limits are in docs/studies.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.charts import Notice, Section
from verl_gsd.estimators import ESTIMATOR
from verl_gsd.report.advice import accepted_overrides
from verl_gsd.report.extensions import remedies
from verl_gsd.report.findings.finding import (
    KL_IN_REWARD,
    Finder,
    Finding,
    has_every_acc,
    numeric_value,
    percent,
    recent_mean,
)
from verl_gsd.report.findings.lengths import OVERLONG
from verl_gsd.report.reading import Columns
from verl_gsd.report.sections.view import Views

_DYNAMIC_SAMPLING = "algorithm.filter_groups.enable"
_ALPHA = "algorithm.gsd.alpha"
#: Share of groups with partial credit above which a run counts as one with such rewards.
_GRADED = 0.2
#: The study compared this alpha, and 0, with 1.
_SMALLER_ALPHA = 0.5


def studies_section(views: Views) -> Section | None:
    """One notice per run and result of a study that is about the run's settings; None if there is no such result."""
    notices = []
    for name, view in views.items():
        prefix = f"{name}: " if len(views) > 1 else ""
        rated = has_every_acc(view.table)
        for note in (note for find in NOTES for note in find(view.table, view.run.config)):
            overrides = accepted_overrides(note.overrides, view.run.config, view.run.words, is_rated=rated)
            notices.append(Notice(prefix + note.title, note.text, overrides))
    if not notices:
        return None
    text = (
        "These are no problems of this run. Our studies trained a model with one million parameters on sums, with 16 "
        "seeds per setting. Their results are a reason to compare, not a promise: docs/studies.md has the figures."
    )
    return Section("studies", "What our studies say about these settings", [text], notices=notices)


def dynamic_sampling(_: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Dynamic sampling is on."""
    if config.get(_DYNAMIC_SAMPLING) is True:
        yield Finding(
            "Dynamic sampling learned less per generated token",
            "In the study methods, DAPO had a lower accuracy than GRPO after the same number of generated tokens, on "
            "all three tasks, because it evicts many of its groups. It needs fewer updates. Turn it off if rollouts "
            "cost you more than updates.",
            (f"{_DYNAMIC_SAMPLING}=false  # if rollouts cost more than updates (study methods)",),
        )


def partial_credit(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Rewards give partial credit, and the advantage divides by their standard deviation (alpha above 1/2)."""
    graded, alpha = recent_mean(table, "graded"), numeric_value(config, _ALPHA)
    if config.get(ESTIMATOR) != "gsd" or alpha is None or alpha <= _SMALLER_ALPHA:
        return
    if config.get(OVERLONG) is True or config.get(KL_IN_REWARD) is True:
        return  # rewards of equal verdicts differ by a penalty
    if graded > _GRADED:
        yield Finding(
            "With partial credit, a smaller alpha learned more",
            f"Rewards differ by more than right and wrong in {percent(graded)} of the groups. With "
            f"{_ALPHA}={alpha:g}, a group whose rewards differ little has nearly as large a part in the update as one "
            "whose rewards differ much. In the study methods, alpha 0 and 0.5 gained over alpha 1 with such rewards, "
            "and made no difference with rewards of 0 and 1. They also averaged the loss in another way.",
            (f"{_ALPHA}=0  # follows how much rewards differ (study methods)", *remedies("partial_credit", config)),
        )


#: In the order of the section.
NOTES: tuple[Finder, ...] = (dynamic_sampling, partial_credit)
