"""Where groups disagree, and what the others cost."""

from __future__ import annotations

import numpy as np

from verl_gsd.charts import COLOURS, KINDS, Section
from verl_gsd.report.charts import SHARE, bars, heat_map, lines, shares_of, stacked
from verl_gsd.report.figures import by_accuracy, by_use, sigma_cells
from verl_gsd.report.reading import Columns
from verl_gsd.report.sections.view import Views, has, section, tables, with_records
from verl_gsd.report.steps import column

_OF_GROUPS = "share of the groups"
#: What a rollout was spent on (``steps.USES``), as a page says it, and its colour.
_USES = {
    "taught": ("taught", KINDS["mixed"]),
    "silent": ("trained on, silent", KINDS["all_wrong"]),
    "filtered": ("filtered", COLOURS[5]),
    "surplus": ("surplus", COLOURS[4]),
    "stale": ("stale", COLOURS[3]),
    "failed": ("failed", COLOURS[6]),
}


def disagreement(views: Views) -> Section | None:
    text = [
        "sigma is the standard deviation of a group's rewards, and the gain of its gradient under GRPO. Each column of "
        "the map is a few steps, each row a range of sigma, the lowest one silent groups alone."
    ]
    maps = []
    for number, (name, view) in enumerate(with_records(views).items(), start=1):
        cells = sigma_cells(view.run.records)
        title = "Sigma of the groups" + (f": {name}" if len(views) > 1 else "")
        maps.append((f"map-{number}", title, heat_map(cells, "sigma") if len(cells["low"]) else None))
    mean = ("mean", "Mean sigma", lines(tables(views), {"mean": "sigma"}, "mean sigma"))
    return section("sigma", "Disagreement", text, [*maps, mean])


def silence(views: Views) -> Section | None:
    of = tables(views)
    text = [
        "A silent group's responses are all right or all wrong, and it has no gradient. All groups count, evicted too."
    ]
    if len(views) == 1:
        layers = {"all wrong": ("all_wrong", KINDS["all_wrong"]), "all right": ("all_right", KINDS["all_right"])}
        kinds = [("kinds", "Silent groups", stacked(next(iter(of.values())), layers, _OF_GROUPS))]
    else:
        kinds = [
            ("silent", "Silent", lines(of, {"silent": "silent"}, _OF_GROUPS, SHARE)),
            ("wrong", "All wrong", lines(of, {"all wrong": "all_wrong"}, _OF_GROUPS, SHARE)),
            ("right", "All right", lines(of, {"all right": "all_right"}, _OF_GROUPS, SHARE)),
        ]
    seen = {"observed": "seen_silent", "predicted": "seen_predicted"}
    if not has(views, "seen_predicted"):  # an older run's records have none, its metrics may
        seen = {"observed": "group/silent/observed", "predicted": "group/silent/predicted"}
    again = lines(of, seen, "share of those groups", SHARE)
    if again is not None:
        text.append(
            "What earlier visits to a prompt predict is for independent responses and the policy of those visits."
        )
    return section("silence", "Silence", text, [*kinds, ("seen", "Silent, of prompts seen before", again)])


def difficulty(views: Views) -> Section | None:
    of = {name: by_accuracy(view.run.records) for name, view in views.items()}
    text = [
        "The gain is sigma^(2 - alpha), what a group's gradient is multiplied by; the gradient mass of an accuracy is "
        "the share of all gain that its groups have. Groups that were trained on, by their own accuracy."
    ]
    axis = "accuracy of the group, %"
    if len(of) == 1:
        shares = {"gradient mass": "gain_share", "groups": "groups"}
        panels = [("mass", "Gradient mass and groups", bars(of, shares, axis, "share", SHARE))]
    else:
        panels = [
            ("mass", "Gradient mass", bars(of, {"mass": "gain_share"}, axis, "share of the gain", SHARE)),
            ("groups", "Groups", bars(of, {"groups": "groups"}, axis, _OF_GROUPS, SHARE)),
        ]
    panels.append(("gain", "Mean gain", bars(of, {"gain": "gain"}, axis, "mean gain")))
    places = {"hard, up to 25 %": "gain_hard", "between": "gain_between", "easy, from 75 %": "gain_easy"}
    if len(views) == 1:
        panels.append(("places", "Gradient mass over steps", lines(tables(views), places, "share of the gain", SHARE)))
    else:
        for called, name in places.items():
            chart = lines(tables(views), {called: name}, "share of the gain", SHARE)
            panels.append((name.replace("_", "-"), f"Gradient mass: {called}", chart))
    if not has(views, "gain_between") and not has(views, "gain_hard") and not has(views, "gain_easy"):
        return None
    return section("difficulty", "Difficulty", text, panels)


def waste(views: Views) -> Section | None:
    uses = {name: by_use(view.table) for name, view in views.items()}
    palette = {called: colour for called, colour in _USES.values()}
    named = {
        unit: {name: {_USES[use][0]: amount for use, amount in of[unit].items()} for name, of in uses.items()}
        for unit in ("rollouts", "tokens")
    }
    if len(uses) == 1:
        parts = {unit: next(iter(of.values())) for unit, of in named.items()}
        panels = [("uses", "What was generated", shares_of(parts, palette, "share"))]
    else:
        panels = [(unit, f"{unit.capitalize()}", shares_of(of, palette, "share")) for unit, of in named.items()]
    wasted = {name: _wasted(view.table) for name, view in views.items()}
    panels.append(("wasted", "Rollouts that taught nothing", lines(wasted, {"wasted": "wasted"}, "share", SHARE)))
    text = [
        "Taught: in a mixed group, or one with a demonstration, that was trained on. The others by what became of them."
    ]
    return section("waste", "Waste", text, panels)


def _wasted(table: Columns) -> Columns:
    with np.errstate(divide="ignore", invalid="ignore"):  # a step whose groups all failed has no rollouts
        return {"step": table["step"], "wasted": 1 - column(table, "rollouts_taught") / column(table, "rollouts")}
