"""Sections about the policy: its accuracy, entropy and response lengths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from verl_gsd.charts import Section
from verl_gsd.report.charts import LARGE, SHARE, line_chart
from verl_gsd.report.findings.policy import ENTROPY, cut_off, figure_of, held_out, source_of
from verl_gsd.report.reading import Columns
from verl_gsd.report.sections.view import Views, has_nonzero, section_of_panels, step_tables
from verl_gsd.rundir import EXACT

#: Maximum number of held-out data sources with a chart.
MAX_SOURCES = 8


def accuracy(views: Views) -> Section | None:
    tables = step_tables(views)
    names = list(dict.fromkeys(name for table in tables.values() for name in held_out(table)))
    figures = {name: _figure(tables, name) for name in names}
    panels = [
        (
            f"held-out-{number}",
            f"Held out: {source_of(name)}",
            line_chart(tables, {"held out": name}, figures[name], *((SHARE,) if figures[name] == "accuracy" else ())),
        )
        for number, name in enumerate(names[:MAX_SOURCES], start=1)
    ]
    if has_nonzero(views, EXACT):
        panels.append(("exact", "Held out, exact", line_chart(tables, {"exact": EXACT}, "accuracy", SHARE)))
    text = [
        "Held-out accuracy is from the run's validations. The accuracy of rollouts is over all prompts of a step, also "
        "those that were not trained on. Each prompt counts once, whatever its number of rollouts."
    ]
    reasons = {"acc": "the verifier returned an acc outside [0, 1]", "reward": "the verifier returned no acc"}
    for figure, reason in reasons.items():
        if sources := sorted({source_of(name) for name in names if figures[name] == figure}):
            text.append(f"The held-out values of {', '.join(sources)} are no accuracies, because {reason}.")
    if len(names) > MAX_SOURCES:
        text.append(f"{len(names) - MAX_SOURCES} other data sources are not shown.")
    if has_nonzero(views, EXACT):
        text.append("The laboratory's exact accuracy is computed from solve rates instead of sampled responses.")
    if has_nonzero(views, "accuracy"):
        training = ("rollouts", "Rollouts", line_chart(tables, {"accuracy": "accuracy"}, "accuracy", SHARE))
    elif has_nonzero(views, "reward"):
        text.append("The mean reward counts each prompt once, too.")
        training = ("rewards", "Rollouts", line_chart(tables, {"reward": "reward"}, "mean reward"))
    else:
        training = ("score", "Mean score of the batch", line_chart(tables, {"score": "critic/score/mean"}, "score"))
    return section_of_panels("accuracy", "Accuracy", text, [*panels, training])


def _figure(tables: Mapping[str, Columns], name: str) -> str:
    """``figure_of`` the column ``name``. It is no accuracy if it is none in one of the runs."""
    figures = {figure_of(table, name) for table in tables.values() if name in table}
    return min(figures - {"accuracy"}, default="accuracy")


def entropy_and_length(views: Views) -> Section | None:
    tables = step_tables(views)
    length = "tokens_per_response" if has_nonzero(views, "tokens_per_response") else "response_length/mean"
    cut_tables = {
        name: {"step": view.table["step"], "cut": cut_off(view.table, view.run.config)} for name, view in views.items()
    }
    if not any(np.nansum(table["cut"]) for table in cut_tables.values()):
        cut_tables = {}
    panels = [
        ("entropy", "Entropy of the policy", line_chart(tables, {"entropy": ENTROPY}, "nats per token")),
        ("length", "Mean response length", line_chart(tables, {"tokens": length}, "tokens")),
        (
            "cut",
            "Responses cut off at the maximum length",
            line_chart(cut_tables, {"cut": "cut"}, "share of the responses", SHARE),
        ),
        ("tokens", "Tokens generated per step", line_chart(tables, {"tokens": "tokens"}, "tokens", LARGE)),
    ]
    text = ["A lower entropy means that the policy's responses to one prompt become more alike."]
    return section_of_panels("policy", "Entropy and length", text, panels)
