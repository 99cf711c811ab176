"""How well the policy does, and how it changes."""

from __future__ import annotations

import numpy as np

from verl_gsd.charts import Section
from verl_gsd.report.charts import LARGE, SHARE, lines
from verl_gsd.report.findings.of_policy import ENTROPY, cut_off, held_out, source_of
from verl_gsd.report.sections.view import Views, has, section, tables

#: Held-out data sources shown at most.
SOURCES = 8


def accuracy(views: Views) -> Section | None:
    of = tables(views)
    names = list(dict.fromkeys(name for table in of.values() for name in held_out(table)))
    shown = [
        (f"held-out-{number}", f"Held out: {source_of(name)}", lines(of, {"held out": name}, "accuracy", SHARE))
        for number, name in enumerate(names[:SOURCES], start=1)
    ]
    text = ["Held out: verl's validation. Of rollouts: all that the step generated, whatever became of their group."]
    if len(names) > SOURCES:
        text.append(f"{len(names) - SOURCES} further data sources are not shown.")
    if has(views, "accuracy"):
        trained = ("rollouts", "Of rollouts", lines(of, {"accuracy": "accuracy"}, "accuracy", SHARE))
    else:
        trained = ("score", "Mean score of the batch", lines(of, {"score": "critic/score/mean"}, "score"))
    return section("accuracy", "Accuracy", text, [*shown, trained])


def entropy_and_length(views: Views) -> Section | None:
    of = tables(views)
    tokens = "tokens_per_response" if has(views, "tokens_per_response") else "response_length/mean"
    cut = {
        name: {"step": view.table["step"], "cut": cut_off(view.table, view.run.config)} for name, view in views.items()
    }
    cut = cut if any(np.nansum(table["cut"]) for table in cut.values()) else {}
    panels = [
        ("entropy", "Entropy of the policy", lines(of, {"entropy": ENTROPY}, "nats a token")),
        ("length", "Length of a response", lines(of, {"tokens": tokens}, "tokens, mean")),
        ("cut", "Cut off at the longest length allowed", lines(cut, {"cut": "cut"}, "share of the responses", SHARE)),
        ("tokens", "Tokens generated in a step", lines(of, {"tokens": "tokens"}, "tokens", LARGE)),
    ]
    return section("policy", "Entropy and length", [], panels)
