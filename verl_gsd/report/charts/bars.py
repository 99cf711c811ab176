"""Bar charts: values by bin of accuracy, and parts of a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS
from verl_gsd.report.charts.axes import NUMBER, SHARE, colour_by, colour_by_run, round_value, tooltip
from verl_gsd.report.reading import Columns


def bar_chart(
    tables: Mapping[str, Columns], series: Mapping[str, str], x: str, y: str, number_format: str = NUMBER
) -> alt.Chart | None:
    """Draw columns of tables as bars, one group of bars per bin. None if no run has a value.

    Bars have one colour per run, or one per series if there is a single run. Several runs need a single series.

    Args:
        tables: name of the run -> its table with one row per bin, from ``low`` to ``high``.
        series: label -> column.
        x, y: titles of the axes.
    """
    rows = [
        {"run": run, "series": label, "bin": f"{100 * low:.0f}-{100 * high:.0f}", "value": round_value(value)}
        for run, table in tables.items()
        for label, name in series.items()
        for low, high, value in zip(table["low"], table["high"], table[name], strict=True)
        if not np.isnan(value)
    ]
    if not rows:
        return None
    any_table = next(iter(tables.values()))
    bins = [f"{100 * low:.0f}-{100 * high:.0f}" for low, high in zip(any_table["low"], any_table["high"], strict=True)]
    encodings: dict[str, Any] = {}
    if len(tables) > 1:
        encodings = {"color": colour_by_run(tables), "xOffset": alt.XOffset("run:N", sort=list(tables))}
    elif len(series) > 1:
        encodings = {
            "color": colour_by("series", list(series), COLOURS),
            "xOffset": alt.XOffset("series:N", sort=list(series)),
        }
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X("bin:O", title=x, sort=bins, scale=alt.Scale(domain=bins), axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("value:Q", title=y, axis=alt.Axis(format=number_format) if number_format else alt.Axis()),
            tooltip=tooltip(tables, series, alt.Tooltip("bin:O", title=x), y, number_format),
            **encodings,
        )
    )


def share_bars(parts: Mapping[str, Mapping[str, float]], palette: Mapping[str, str], x: str) -> alt.Chart | None:
    """Draw one bar per row, divided into parts. None if all amounts are 0.

    Args:
        parts: row -> part -> amount.
        palette: part -> colour, in the order of the bar.
        x: title of the horizontal axis.
    """
    rows = [
        {"row": row, "part": part, "amount": amounts[part], "share": round_value(amounts[part] / sum(amounts.values()))}
        | {"order": order}
        for row, amounts in parts.items()
        for order, part in enumerate(palette)
        if amounts[part] > 0
    ]
    if not rows:
        return None
    return (
        alt.Chart(alt.Data(values=rows), height=38 * len(parts))
        .mark_bar()
        .encode(
            y=alt.Y("row:N", title=None, sort=list(parts), axis=alt.Axis(labelLimit=110)),
            x=alt.X("share:Q", title=x, axis=alt.Axis(format=SHARE), scale=alt.Scale(domain=[0, 1])),
            color=colour_by("part", list(palette), list(palette.values())),
            order="order:O",
            tooltip=["row:N", "part:N", alt.Tooltip("amount:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
        )
    )
