"""A comparison as a page: the curves, and the tables that a terminal has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, Section, Table
from verl_gsd.evaluation import comparison_words as words
from verl_gsd.evaluation.comparison import Comparison
from verl_gsd.evaluation.curves import Curve
from verl_gsd.evaluation.intervals import bootstrap_mean

TITLE = "Methods at equal generated tokens"
#: Places at which a mean and its band are drawn.
_POINTS = 40


def sections(comparison: Comparison, notices: Sequence[str] = ()) -> list[Section]:
    """The page from top to bottom.

    Args:
        notices: what a reader must know beside the comparison, such as runs that were left out.

    Raises:
        ValueError: there are more labels than colours can tell apart.
    """
    baseline, budget = comparison.baseline, f"{comparison.budgets[-1]:,}"
    found = [
        Section(
            "accuracy",
            "Accuracy by generated tokens",
            [words.setting(comparison), *notices],
            _chart(comparison),
            Table(*words.accuracy_table(comparison)),
        ),
        Section("against", f"Against {baseline}, at {budget} tokens", table=Table(*words.against_table(comparison))),
        Section("ends", "Where runs ended, at unequal tokens", table=Table(*words.end_table(comparison))),
        Section("caveats", "What this cannot say", words.caveats(comparison)),
    ]
    return found if len(comparison.rows) > 1 else [section for section in found if section.name != "against"]


def _chart(comparison: Comparison) -> alt.TopLevelMixin:
    labels = [row.label for row in comparison.rows]
    if len(labels) > len(COLOURS):
        raise ValueError(f"{len(labels)} methods: colours tell {len(COLOURS)} apart. Name fewer for a page")
    colour = alt.Color(
        "method:N",
        title=None,
        scale=alt.Scale(domain=labels, range=list(COLOURS[: len(labels)])),
        legend=alt.Legend(columns=2, labelLimit=150),
    )
    x = alt.X("tokens:Q", title="generated tokens", axis=alt.Axis(format="~s", grid=False), scale=alt.Scale(nice=False))
    y = alt.Y("accuracy:Q", title="held-out accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format="~%"))
    means = [point for label in labels for point in _mean(label, comparison.curves)]
    seeds = [
        {"method": curve.label, "seed": curve.seed, "tokens": tokens, "accuracy": round(accuracy, 4)}
        for curve in comparison.curves
        for tokens, accuracy in zip(curve.tokens, curve.accuracy, strict=True)
    ]
    single = alt.Chart(alt.Data(values=seeds)).encode(x=x, y=y, color=colour, detail="seed:N")
    mean = alt.Chart(alt.Data(values=means)).encode(x=x, color=colour)
    shown = [alt.Tooltip("method:N"), alt.Tooltip("tokens:Q", format=","), alt.Tooltip("accuracy:Q", format=".1%")]
    layers: list[Any] = [
        mean.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=None), y2="high:Q"),
        single.mark_line(opacity=0.3, strokeWidth=1),
        mean.mark_line(strokeWidth=3).encode(y=y, tooltip=shown),
    ]
    return alt.layer(*layers).properties(height=360)


def _mean(label: str, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A label's mean and interval over the tokens that all its seeds have."""
    own = [curve for curve in curves if curve.label == label]
    first, last = max(curve.tokens[0] for curve in own), min(curve.tokens[-1] for curve in own)
    found = []
    for tokens in np.unique(np.linspace(first, last, _POINTS).round()) if first < last else ():
        estimate = bootstrap_mean(np.array([curve.at(tokens) for curve in own]))
        # Of one seed there is no band.
        low, high = np.nan_to_num([estimate.low, estimate.high], posinf=estimate.value, neginf=estimate.value)
        point = {"accuracy": estimate.value, "low": float(low), "high": float(high)}
        found.append(
            {"method": label, "tokens": int(tokens)} | {name: round(value, 4) for name, value in point.items()}
        )
    return found
