"""Charts over steps.

Each run has a colour, and each series a dash pattern. If there is a single run, each series has a colour, too. A line
of many points is pale, with a smoothed line over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS
from verl_gsd.report.chart_data import MAP_COLUMNS, averaged_in_spans, smoothed
from verl_gsd.report.charts.axes import (
    NUMBER,
    SHARE,
    STEPS_OF_SPAN,
    colour_by,
    colour_by_run,
    legend,
    round_step,
    round_value,
    step_axis,
    tooltip,
)
from verl_gsd.report.reading import Columns

_DASHES = ([1, 0], [5, 3], [2, 2])
#: Maximum number of points of a line that are drawn as dots. A line with more is smoothed.
MAX_DOTS = 40
_PALE = 0.45


def line_chart(
    tables: Mapping[str, Columns],
    series: Mapping[str, str],
    y: str,
    number_format: str = NUMBER,
    *,
    starts_at_zero: bool = True,
) -> alt.Chart | alt.LayerChart | None:
    """Draw columns of tables as lines over steps. None if no run has a value.

    Args:
        tables: name of the run -> its table, in the order of the runs' colours.
        series: label of the line -> column. At most three.
        y: title of the vertical axis, with the unit.
    """
    rows: list[dict[str, Any]] = []
    max_points = 0
    for run, table in tables.items():
        for label, name in series.items():
            points = averaged_in_spans(table, [name])
            labels = ({"run": run} if len(tables) > 1 else {}) | ({"series": label} if len(series) > 1 else {})
            is_noisy = len(points["step"]) > MAX_DOTS
            smooth = smoothed(points["step"], points[name]) if is_noisy else points[name]
            rows += [
                labels | {"step": round_step(step), "value": round_value(value), "smooth": round_value(mean)}
                for step, value, mean in zip(points["step"], points[name], smooth, strict=True)
            ]
            max_points = max(max_points, len(points["step"]))
    if not rows:
        return None
    is_zero = not any(row["value"] for row in rows)  # Vega finds no scale if all values are 0
    scale = alt.Scale(domain=[0, 1]) if is_zero else alt.Scale(zero=starts_at_zero)
    axis = alt.Axis(format=number_format) if number_format else alt.Axis()
    encodings: dict[str, Any] = {"x": step_axis([row["step"] for row in rows])}
    if len(tables) > 1:
        encodings["color"] = colour_by_run(tables)
    if len(series) > 1:
        dashes = alt.Scale(domain=list(series), range=list(_DASHES[: len(series)]))
        encodings["strokeDash"] = alt.StrokeDash(
            "series:N", title=None, scale=dashes, sort=list(series), legend=legend(symbolType="stroke", symbolSize=300)
        )
        if len(tables) == 1:
            encodings["color"] = colour_by("series", list(series), COLOURS, symbolType="stroke", symbolSize=300)
    value, smooth = (alt.Y(f"{field}:Q", title=y, axis=axis, scale=scale) for field in ("value", "smooth"))
    if max_points > MAX_DOTS:  # without dots, a line has one tooltip, which would show the value of its first step
        return _smoothed_lines(rows, value, smooth, encodings)
    for row in rows:
        del row["smooth"]
    dots = alt.OverlayMarkDef(size=25 if max_points > 1 else 60)
    chart = alt.Chart(alt.Data(values=rows)).mark_line(color=COLOURS[0], point=dots)
    texts = tooltip(tables, series, alt.Tooltip("step:Q"), y, number_format)
    return chart.encode(y=value, tooltip=texts, **encodings)


def _smoothed_lines(
    rows: list[dict[str, Any]], value: alt.Y, smooth: alt.Y, encodings: Mapping[str, Any]
) -> alt.LayerChart:
    """Lines through the values, pale, and smoothed lines over them."""
    pale = alt.Chart().mark_line(color=COLOURS[0], opacity=_PALE, strokeWidth=1).encode(y=value)
    strong = alt.Chart().mark_line(color=COLOURS[0]).encode(y=smooth)
    return alt.layer(pale, strong, data=alt.Data(values=rows)).encode(**encodings)


def stacked_chart(table: Columns, series: Mapping[str, tuple[str, str]], y: str) -> alt.Chart | None:
    """Draw shares of one run over steps as stacked layers. None if the run has no value.

    Args:
        series: label of the layer -> (column, colour).
        y: title of the vertical axis.
    """
    spans = averaged_in_spans(table, [name for name, _ in series.values()], MAP_COLUMNS)
    rows, base = [], np.zeros(len(spans["step"]))
    for label, (name, _) in series.items():
        top = base + np.nan_to_num(spans[name])
        rows += [
            {
                "low": round_step(low),
                "high": round_step(high),
                "series": label,
                "from": round_value(start),
                "to": round_value(end),
                "value": round_value(end - start),
            }
            for low, high, start, end in zip(spans["low"], spans["high"], base, top, strict=True)
            if end > start
        ]
        base = top
    if not len(base):
        return None
    return (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(**STEPS_OF_SPAN)
        .mark_rect()
        .encode(
            x=step_axis([*spans["low"], *spans["high"]], "low"),
            x2="high:Q",
            y=alt.Y("from:Q", title=y, axis=alt.Axis(format=SHARE), scale=alt.Scale(domain=[0, 1])),
            y2="to:Q",
            color=colour_by("series", list(series), [colour for _, colour in series.values()]),
            tooltip=[
                alt.Tooltip("series:N", title=" "),
                alt.Tooltip("steps:N"),
                alt.Tooltip("value:Q", title=y, format=".1%"),
            ],
        )
    )


def heat_map(cells: Columns, y: str) -> alt.Chart:
    """Draw ``chart_data.sigma_cells``. Cells with more groups have more colour.

    Args:
        y: title of the vertical axis.
    """
    rows = [
        {
            name: (round_step if name in ("low", "high") else round_value)(value)
            for name, value in zip(cells, values, strict=True)
        }
        for values in zip(*cells.values(), strict=True)
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(**STEPS_OF_SPAN)
        .mark_rect(color=COLOURS[0])
        .encode(
            x=step_axis([*cells["low"], *cells["high"]], "low"),
            x2="high:Q",
            y=alt.Y("below:Q", title=y, scale=alt.Scale(nice=False)),
            y2="above:Q",
            # Opacity instead of a range of colours: cells with few groups are near the page's colour, light or dark.
            opacity=alt.Opacity(
                "share:Q",
                title="share of the groups",
                scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0, 1]),
                legend=alt.Legend(
                    format=SHARE,
                    values=[0.05, 0.25, 1],
                    symbolType="square",
                    symbolFillColor=COLOURS[0],
                    symbolSize=150,
                ),
            ),
            tooltip=[
                alt.Tooltip("steps:N"),
                alt.Tooltip("below:Q", title="sigma from", format=".3f"),
                alt.Tooltip("above:Q", title="to", format=".3f"),
                alt.Tooltip("share:Q", title="share", format=".1%"),
            ],
        )
    )
