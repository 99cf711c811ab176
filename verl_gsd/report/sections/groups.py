"""Sections about groups: how much their rewards differ, how many are silent, and what rollouts were used for."""

from __future__ import annotations

import numpy as np

from verl_gsd.base_names import PASS_KS
from verl_gsd.charts import COLOURS, KINDS, Section
from verl_gsd.estimators import ESTIMATOR, has_group_baseline
from verl_gsd.report.chart_data import accuracy_bins, sigma_cells, totals_by_use
from verl_gsd.report.charts import SHARE, bar_chart, heat_map, line_chart, share_bars, stacked_chart
from verl_gsd.report.findings.finding import KL_IN_REWARD
from verl_gsd.report.reading import Columns
from verl_gsd.report.sections.view import Views, has_nonzero, section_of_panels, step_tables, views_with_records
from verl_gsd.report.steps import column

_OF_GROUPS = "share of the groups"
#: Use of a rollout (``steps.USES``) -> (label, colour).
_USES = {
    "taught": ("taught", KINDS["mixed"]),
    "silent": ("trained on, silent", KINDS["all_wrong"]),
    "filtered": ("filtered", COLOURS[5]),
    "surplus": ("surplus", COLOURS[4]),
    "stale": ("stale", COLOURS[3]),
    "failed": ("failed", COLOURS[6]),
}


def diversity(views: Views) -> Section | None:
    """Final answers and pass@k. Unlike accuracy, pass@k falls if the policy gives up ways to solve a prompt."""
    tables = step_tables(views)
    known = [k for k in PASS_KS if has_nonzero(views, f"pass_at_{k}")]
    shown = sorted({1, *known[len(known) // 2 : len(known) // 2 + 1], *known[-1:]}) if known else []
    text = [
        "pass@k is the probability that at least one of k responses to a prompt is right. It is estimated without bias "
        "from all groups of a step, also those that were not trained on. If accuracy grows and pass@k does not, the "
        "policy makes likely answers likelier and finds no new ones.",
    ]
    if has_nonzero(views, "distinct_answers"):
        text.append("A group in which no response has a final answer counts as 0 different answers.")
    visits = {"this visit": "answers_in_visit", "all visits so far": "answers_in_visits"}
    if has_nonzero(views, "answers_in_visit"):
        text.append(
            "The answers of a prompt are compared in equal numbers of responses, drawn from this visit or from all "
            "visits so far. With a policy that does not change, both lines agree, however often a prompt was visited. "
            "If only the lower one falls, the policy has given up answers that it used to give."
        )
    panels = [
        (
            "pass",
            "pass@k of the groups",
            line_chart(tables, {f"pass@{k}": f"pass_at_{k}" for k in shown}, "probability", SHARE) if shown else None,
        ),
        (
            "answers",
            "Different final answers per group",
            line_chart(tables, {"different": "distinct_answers"}, "answers per group"),
        ),
        (
            "answers-of-prompts",
            "Different final answers of prompts visited before",
            line_chart(tables, visits, "answers in equal numbers of responses"),
        ),
    ]
    return section_of_panels("diversity", "Diversity", text, panels)


def disagreement(views: Views) -> Section | None:
    text = [
        "sigma is the standard deviation of a group's rewards (divisor G; an advantage that is divided by it uses "
        "G - 1, unless algorithm.gsd.ddof=0). Under GRPO, it is also the gain of the group's gradient. In the map, "
        "each column is a span of steps and each row a range of sigma. The lowest row has only silent groups."
    ]
    maps = []
    for number, (name, view) in enumerate(views_with_records(views).items(), start=1):
        cells = sigma_cells(view.run.records)
        title = "Sigma of the groups" + (f": {name}" if len(views) > 1 else "")
        maps.append((f"map-{number}", title, heat_map(cells, "sigma") if len(cells["low"]) else None))
    mean = ("mean", "Mean sigma", line_chart(step_tables(views), {"mean": "sigma"}, "mean sigma"))
    return section_of_panels("sigma", "Disagreement", text, [*maps, mean])


def silence(views: Views) -> Section | None:
    tables = step_tables(views)
    text = [
        "The rewards of a silent group give no gradient: they are all equal, or dynamic sampling evicted the group. A "
        "group whose responses are all right or all wrong is silent, unless a penalty, for example on length, makes "
        "its rewards differ, or a demonstration joins it. The charts count all groups, also those that were not "
        "trained on."
    ]
    text += [
        f"{name}: {KL_IN_REWARD}=true adds a KL penalty that makes equal rewards differ, so that such a group is not "
        "silent. If an older version of verl-gsd made this run, the charts count it as silent nevertheless. To see the "
        "true share, train again with this version."
        for name, view in views.items()
        if view.run.config.get(KL_IN_REWARD) is True
    ]
    text += [
        f"{name}: the estimator {view.run.config[ESTIMATOR]} does not compare the responses of a group, so groups that "
        "are all right or all wrong are not silent."
        for name, view in views.items()
        if not has_group_baseline(view.run.config.get(ESTIMATOR))
    ]
    has_equal = has_nonzero(views, "equal")
    if has_equal:
        text.append(
            "Groups of data sources without accuracies are equal instead of all right or all wrong, because nothing "
            "tells whether their responses are right. Return acc from the reward function to see it. Groups are equal, "
            "too, if all their accuracies are the same number between 0 and 1, such as the share of tests passed."
        )
    if len(views) == 1:
        layers = {"all wrong": ("all_wrong", KINDS["all_wrong"]), "all right": ("all_right", KINDS["all_right"])}
        layers |= {"equal": ("equal", KINDS["equal"])} if has_equal else {}
        kinds = [
            (
                "kinds",
                "Groups that are all right or all wrong",
                stacked_chart(next(iter(tables.values())), layers, _OF_GROUPS),
            )
        ]
    else:
        kinds = [
            ("silent", "Silent", line_chart(tables, {"silent": "silent"}, _OF_GROUPS, SHARE)),
            ("wrong", "All wrong", line_chart(tables, {"all wrong": "all_wrong"}, _OF_GROUPS, SHARE)),
            ("right", "All right", line_chart(tables, {"all right": "all_right"}, _OF_GROUPS, SHARE)),
        ]
        if has_equal:
            equal = line_chart(tables, {"equal": "equal"}, _OF_GROUPS, SHARE)
            kinds.append(("equal", "Equal, neither all right nor all wrong", equal))
    seen = {"observed": "seen_silent", "predicted": "seen_predicted"}
    if not has_nonzero(views, "seen_predicted"):  # older versions have predictions in the metrics, not in the records
        seen = {"observed": "group/silent/observed", "predicted": "group/silent/predicted"}
    seen_chart = line_chart(tables, seen, "share of these groups", SHARE)
    if seen_chart is not None:
        text.append(
            "The prediction comes from earlier visits to a prompt. It assumes independent responses and the policy of "
            "those visits."
        )
    return section_of_panels(
        "silence", "Silence", text, [*kinds, ("seen", "All right or all wrong, of prompts visited before", seen_chart)]
    )


def difficulty(views: Views) -> Section | None:
    bins = {name: accuracy_bins(view.run.records) for name, view in views.items()}
    text = [
        "A group's gradient is multiplied by its gain sigma^(2 - alpha). Its gradient mass is the sum of its positive "
        "advantages: the gain times the number of its rows, with all weights, masks and demonstrations of the run. The "
        "charts show groups that were trained on, by their accuracy."
    ]
    axis = "accuracy of the group, %"
    if len(bins) == 1:
        shares = {"gradient mass": "gain_share", "groups": "groups"}
        panels = [("mass", "Gradient mass and groups", bar_chart(bins, shares, axis, "share", SHARE))]
    else:
        panels = [
            ("mass", "Gradient mass", bar_chart(bins, {"mass": "gain_share"}, axis, "share of the mass", SHARE)),
            ("groups", "Groups", bar_chart(bins, {"groups": "groups"}, axis, _OF_GROUPS, SHARE)),
        ]
    panels.append(("gain", "Mean gain", bar_chart(bins, {"gain": "gain"}, axis, "mean gain")))
    ranges = {"hard, up to 25%": "gain_hard", "between": "gain_between", "easy, from 75%": "gain_easy"}
    if len(views) == 1:
        chart = line_chart(step_tables(views), ranges, "share of the mass", SHARE)
        panels.append(("places", "Gradient mass over steps", chart))
    else:
        for label, name in ranges.items():
            chart = line_chart(step_tables(views), {label: name}, "share of the mass", SHARE)
            panels.append((name.replace("_", "-"), f"Gradient mass: {label}", chart))
    if not any(has_nonzero(views, name) for name in ranges.values()):
        return None
    return section_of_panels("difficulty", "Difficulty", text, panels)


def waste(views: Views) -> Section | None:
    totals = {name: totals_by_use(view.table) for name, view in views.items()}
    palette = dict(_USES.values())
    labelled = {
        unit: {name: {_USES[use][0]: amount for use, amount in of_run[unit].items()} for name, of_run in totals.items()}
        for unit in ("rollouts", "tokens")
    }
    if len(totals) == 1:
        parts = {unit: next(iter(by_run.values())) for unit, by_run in labelled.items()}
        panels = [("uses", "What was generated", share_bars(parts, palette, "share"))]
    else:
        panels = [(unit, unit.capitalize(), share_bars(by_run, palette, "share")) for unit, by_run in labelled.items()]
    wasted = {name: _wasted_share(view.table) for name, view in views.items()}
    panels.append(("wasted", "Rollouts that taught nothing", line_chart(wasted, {"wasted": "wasted"}, "share", SHARE)))
    text = [
        "A rollout taught something if its group was trained on and was not silent. The other rollouts are shown by "
        "what happened to their group. Filtered: dynamic sampling evicted the group. Surplus: the batch was full. "
        "Stale: the group was too old. Failed: its sessions or rewards failed."
    ]
    return section_of_panels("waste", "Waste", text, panels)


def _wasted_share(table: Columns) -> Columns:
    with np.errstate(divide="ignore", invalid="ignore"):  # a step whose groups all failed has no rollouts
        return {"step": table["step"], "wasted": 1 - column(table, "rollouts_taught") / column(table, "rollouts")}
