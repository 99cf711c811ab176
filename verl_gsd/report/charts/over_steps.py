"""Charts over steps.

Each run has a colour, and each series a dash pattern. If there is a single run, each series has a colour, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS
from verl_gsd.report.chart_data import MAP_COLUMNS, averaged_in_spans
from verl_gsd.report.charts.axes import (
    NUMBER,
    SHARE,
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
#: Maximum number of points of a line that are drawn as dots.
_MAX_DOTS = 40


def line_chart(
    tables: Mapping[str, Columns],
    series: Mapping[str, str],
    y: str,
    number_format: str = NUMBER,
    *,
    starts_at_zero: bool = True,
) -> alt.Chart | None:
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
            rows += [
                labels | {"step": round_step(step), "value": round_value(value)}
                for step, value in zip(points["step"], points[name], strict=True)
            ]
            max_points = max(max_points, len(points["step"]))
    if not rows:
        return None
    dots = alt.OverlayMarkDef(size=25 if max_points > 1 else 60) if max_points <= _MAX_DOTS else False
    chart = alt.Chart(alt.Data(values=rows)).mark_line(color=COLOURS[0], point=dots)
    is_zero = not any(row["value"] for row in rows)  # Vega finds no scale if all values are 0
    scale = alt.Scale(domain=[0, 1]) if is_zero else alt.Scale(zero=starts_at_zero)
    encodings: dict[str, Any] = {
        "x": step_axis([row["step"] for row in rows]),
        "y": alt.Y(
            "value:Q", title=y, axis=alt.Axis(format=number_format) if number_format else alt.Axis(), scale=scale
        ),
    }
    if len(tables) > 1:
        encodings["color"] = colour_by_run(tables)
    if len(series) > 1:
        dashes = alt.Scale(domain=list(series), range=list(_DASHES[: len(series)]))
        encodings["strokeDash"] = alt.StrokeDash(
            "series:N", title=None, scale=dashes, sort=list(series), legend=legend(symbolType="stroke", symbolSize=300)
        )
        if len(tables) == 1:
            encodings["color"] = colour_by("series", list(series), COLOURS, symbolType="stroke", symbolSize=300)
    if dots:  # without dots, a line has one tooltip, which would show the value of its first step everywhere
        encodings["tooltip"] = tooltip(tables, series, y, number_format)
    return chart.encode(**encodings)


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
        .mark_rect()
        .encode(
            x=step_axis([*spans["low"], *spans["high"]], "low"),
            x2="high:Q",
            y=alt.Y("from:Q", title=y, axis=alt.Axis(format=SHARE), scale=alt.Scale(domain=[0, 1])),
            y2="to:Q",
            color=colour_by("series", list(series), [colour for _, colour in series.values()]),
            tooltip=[alt.Tooltip("series:N", title=" "), alt.Tooltip("value:Q", title=y, format=".1%")],
        )
    )


def heat_map(cells: Columns, y: str) -> alt.Chart:
    """Draw ``chart_data.sigma_cells``. Cells with more groups are darker.

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
        .mark_rect()
        .encode(
            x=step_axis([*cells["low"], *cells["high"]], "low"),
            x2="high:Q",
            y=alt.Y("below:Q", title=y, scale=alt.Scale(nice=False)),
            y2="above:Q",
            color=alt.Color(
                "share:Q",
                title="share of the groups",
                scale=alt.Scale(type="sqrt", domain=[0, 1], scheme="blues"),
                legend=alt.Legend(format=SHARE, gradientLength=200, values=[0.05, 0.25, 1]),
            ),
            tooltip=[
                alt.Tooltip("below:Q", title="sigma from", format=".3f"),
                alt.Tooltip("above:Q", title="to", format=".3f"),
                alt.Tooltip("share:Q", title="share", format=".1%"),
            ],
        )
    )
