"""Charts over steps. One colour a run; within a run, series differ in dash, and in colour if it is alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS
from verl_gsd.report.charts.axes import NUMBER, SHARE, colours, legend, place, run_colours, short, step_axis, tooltip
from verl_gsd.report.figures import ACROSS, thinned
from verl_gsd.report.reading import Columns

_DASHES = ([1, 0], [5, 3], [2, 2])
#: Lines with no more points than this show them.
_SHOWN = 40


def lines(
    tables: Mapping[str, Columns], series: Mapping[str, str], y: str, number: str = NUMBER, *, zero: bool = True
) -> alt.Chart | None:
    """Columns over steps; None where no run has any.

    Args:
        tables: by the run's name, in the order of their colours.
        series: what a line is called -> its column. Three at most.
        y: the axis' title, with its unit.
    """
    rows: list[dict[str, Any]] = []
    most = 0
    for run, table in tables.items():
        for called, name in series.items():
            thin = thinned(table, [name])
            whose = ({"run": run} if len(tables) > 1 else {}) | ({"series": called} if len(series) > 1 else {})
            rows += [
                whose | {"step": place(step), "value": short(value)}
                for step, value in zip(thin["step"], thin[name], strict=True)
            ]
            most = max(most, len(thin["step"]))
    if not rows:
        return None
    points = alt.OverlayMarkDef(size=25 if most > 1 else 60) if most <= _SHOWN else False
    chart = alt.Chart(alt.Data(values=rows)).mark_line(color=COLOURS[0], point=points)
    flat = not any(row["value"] for row in rows)  # an axis of nothing but 0 has no scale
    scale = alt.Scale(domain=[0, 1]) if flat else alt.Scale(zero=zero)
    encodings: dict[str, Any] = {
        "x": step_axis([row["step"] for row in rows]),
        "y": alt.Y("value:Q", title=y, axis=alt.Axis(format=number) if number else alt.Axis(), scale=scale),
    }
    if len(tables) > 1:
        encodings["color"] = run_colours(tables)
    if len(series) > 1:
        dashes = alt.Scale(domain=list(series), range=list(_DASHES[: len(series)]))
        encodings["strokeDash"] = alt.StrokeDash(
            "series:N", title=None, scale=dashes, sort=list(series), legend=legend(symbolType="stroke", symbolSize=300)
        )
        if len(tables) == 1:
            encodings["color"] = colours("series", list(series), COLOURS, symbolType="stroke", symbolSize=300)
    if points:  # a line without them would say what is at its first step, wherever it is pointed at
        encodings["tooltip"] = tooltip(tables, series, y, number)
    return chart.encode(**encodings)


def stacked(table: Columns, series: Mapping[str, tuple[str, str]], y: str) -> alt.Chart | None:
    """Shares of one run over steps, one upon the other; None where it has none.

    Args:
        series: what a layer is called -> (its column, its colour).
    """
    thin = thinned(table, [name for name, _ in series.values()], ACROSS)
    rows, base = [], np.zeros(len(thin["step"]))
    for called, (name, _) in series.items():
        top = base + np.nan_to_num(thin[name])
        rows += [
            {"low": place(low), "high": place(high), "series": called, "from": short(start), "to": short(end)}
            | {"value": short(end - start)}
            for low, high, start, end in zip(thin["low"], thin["high"], base, top, strict=True)
            if end > start
        ]
        base = top
    if not len(base):
        return None
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=step_axis([*thin["low"], *thin["high"]], "low"),
            x2="high:Q",
            y=alt.Y("from:Q", title=y, axis=alt.Axis(format=SHARE), scale=alt.Scale(domain=[0, 1])),
            y2="to:Q",
            color=colours("series", list(series), [colour for _, colour in series.values()]),
            tooltip=[alt.Tooltip("series:N", title=" "), alt.Tooltip("value:Q", title=y, format=".1%")],
        )
    )


def heat_map(cells: Columns, y: str) -> alt.Chart:
    """Cells of ``figures.sigma_cells``, the darker the more groups are there."""
    rows = [
        {name: (place if name in ("low", "high") else short)(value) for name, value in zip(cells, values, strict=True)}
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
