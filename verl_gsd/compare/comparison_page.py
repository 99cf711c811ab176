"""The HTML page of a comparison: the curves, and the same tables as on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, Panel, Section, Table
from verl_gsd.compare import comparison_words as words
from verl_gsd.compare.comparison import Comparison, mean_over_seeds
from verl_gsd.compare.curves import Curve

TITLE = "Methods at equal generated tokens"
#: Number of points at which a mean and its band are drawn.
_POINTS = 40
_GREY = "#8c8c8c"


def sections(comparison: Comparison, notices: Sequence[str] = ()) -> list[Section]:
    """Return the sections of the page, from top to bottom.

    Args:
        notices: further information for the reader, such as runs that were left out.

    Raises:
        ValueError: there are more labels than distinguishable colours.
    """
    baseline = comparison.baseline
    labels = [row.label for row in comparison.rows]
    if len(labels) > len(COLOURS):
        raise ValueError(
            f"{len(labels)} methods: only {len(COLOURS)} colours are distinguishable. Use fewer methods with --page"
        )
    panels = [
        Panel(f"seeds-{index}", label, _panel(comparison, label, colour))
        for index, (label, colour) in enumerate(zip(labels, COLOURS, strict=False))
    ]
    page = [
        Section(
            "accuracy",
            "Accuracy by generated tokens",
            [
                words.describe_setup(comparison),
                "Means over seeds. The dashed line marks the largest budget. The columns of the table are numbers of "
                "generated tokens.",
                *notices,
            ],
            _chart(comparison),
            Table(*words.accuracy_table(comparison)),
        ),
        Section("against", words.against_title(comparison), table=Table(*words.against_table(comparison))),
        Section(
            "seeds",
            "Each seed",
            [f"The mean, its interval and each run. The mean of {baseline} is grey."],
            panels=panels,
        ),
        Section(
            "ends",
            "Last validation of each run, at unequal numbers of tokens",
            table=Table(*words.end_table(comparison)),
        ),
        Section("caveats", "What the numbers cannot show", words.caveats(comparison)),
    ]
    return page if len(comparison.rows) > 1 else [section for section in page if section.name != "against"]


def _chart(comparison: Comparison) -> alt.TopLevelMixin:
    """Return a chart of the mean of every label, with a line at the largest budget."""
    labels = [row.label for row in comparison.rows]
    colour = alt.Color(
        "method:N",
        title=None,
        scale=alt.Scale(domain=labels, range=list(COLOURS[: len(labels)])),
        legend=alt.Legend(columns=2, labelLimit=150),
    )
    means = [point for label in labels for point in _mean(label, comparison.curves)]
    tooltip = [alt.Tooltip("method:N"), alt.Tooltip("tokens:Q", format=","), alt.Tooltip("accuracy:Q", format=".1%")]
    end = alt.Chart(alt.Data(values=[{"tokens": comparison.budgets[-1]}]))
    layers: list[Any] = [
        alt.Chart(alt.Data(values=means)).mark_line().encode(**_axes(comparison), color=colour, tooltip=tooltip),
        end.mark_rule(strokeDash=[4, 4], color=_GREY).encode(x=_axes(comparison)["x"]),
    ]
    return alt.layer(*layers).properties(height=340)


def _panel(comparison: Comparison, label: str, colour: str) -> alt.TopLevelMixin:
    """Return a chart of one label: its mean, the band, a faint line per seed, and the baseline's mean in grey."""
    axes = _axes(comparison)
    seeds = [
        {"seed": curve.seed, "tokens": tokens, "accuracy": round(accuracy, 4)}
        for curve in comparison.curves
        if curve.label == label
        for tokens, accuracy in zip(curve.tokens, curve.accuracy, strict=True)
    ]
    own = alt.Chart(alt.Data(values=_mean(label, comparison.curves)))
    single = alt.Chart(alt.Data(values=seeds)).mark_line(opacity=0.4, strokeWidth=1, color=colour)
    tooltip = [alt.Tooltip("seed:N"), alt.Tooltip("tokens:Q", format=","), alt.Tooltip("accuracy:Q", format=".1%")]
    band = own.mark_area(opacity=0.15, color=colour, clip=True)  # with few seeds, intervals are wider than the axis
    layers: list[Any] = [
        band.encode(**_axes(comparison, "low"), y2="high:Q"),
        single.encode(**axes, detail="seed:N", tooltip=tooltip),
        own.mark_line(color=colour).encode(**axes),
    ]
    if label != comparison.baseline:
        baseline = alt.Chart(alt.Data(values=_mean(comparison.baseline, comparison.curves)))
        layers.insert(0, baseline.mark_line(color=_GREY).encode(**axes))
    return alt.layer(*layers).properties(height=200)


def _axes(comparison: Comparison, y: str = "accuracy") -> dict[str, Any]:
    """Return axes with the same scales for every chart, so that charts can be compared."""
    tokens = [entry for curve in comparison.curves for entry in curve.tokens]
    accuracies = [entry for curve in comparison.curves for entry in curve.accuracy]
    x_scale, y_scale = (alt.Scale(domain=[min(values), max(values)], zero=False) for values in (tokens, accuracies))
    return {
        "x": alt.X("tokens:Q", title="generated tokens", axis=alt.Axis(format="~s", grid=False), scale=x_scale),
        "y": alt.Y(f"{y}:Q", title="held-out accuracy", axis=alt.Axis(format="~%"), scale=y_scale),
    }


def _mean(label: str, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return the mean and interval of a label, over the range of tokens that all its seeds cover."""
    own = [curve for curve in curves if curve.label == label]
    first, last = max(curve.tokens[0] for curve in own), min(curve.tokens[-1] for curve in own)
    points = []
    for tokens in np.unique(np.linspace(first, last, _POINTS).round()) if first < last else ():
        estimate = mean_over_seeds(own, [curve.at(tokens) for curve in own])
        # Without an interval, as with one seed, its ends are infinite: draw a band of width 0.
        low, high = np.nan_to_num([estimate.low, estimate.high], posinf=estimate.value, neginf=estimate.value)
        point = {"accuracy": estimate.value, "low": float(low), "high": float(high)}
        points.append(
            {"method": label, "tokens": int(tokens)} | {name: round(value, 4) for name, value in point.items()}
        )
    return points
