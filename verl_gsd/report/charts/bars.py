"""Bars: by accuracy, and parts of a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS
from verl_gsd.report.charts.axes import NUMBER, SHARE, colours, run_colours, short, tooltip
from verl_gsd.report.reading import Columns


def bars(
    tables: Mapping[str, Columns], series: Mapping[str, str], x: str, y: str, number: str = NUMBER
) -> alt.Chart | None:
    """Columns by bins from ``low`` to ``high``, side by side: of several runs one column each, of one run several.

    None where no run has any.
    """
    rows = [
        {"run": run, "series": called, "bin": f"{100 * low:.0f}-{100 * high:.0f}", "value": short(value)}
        for run, table in tables.items()
        for called, name in series.items()
        for low, high, value in zip(table["low"], table["high"], table[name], strict=True)
        if not np.isnan(value)
    ]
    if not rows:
        return None
    some = next(iter(tables.values()))
    bins = [f"{100 * low:.0f}-{100 * high:.0f}" for low, high in zip(some["low"], some["high"], strict=True)]
    encodings: dict[str, Any] = {}
    if len(tables) > 1:
        encodings = {"color": run_colours(tables), "xOffset": alt.XOffset("run:N", sort=list(tables))}
    elif len(series) > 1:
        encodings = {
            "color": colours("series", list(series), COLOURS),
            "xOffset": alt.XOffset("series:N", sort=list(series)),
        }
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(color=COLOURS[0])
        .encode(
            x=alt.X("bin:O", title=x, sort=bins, scale=alt.Scale(domain=bins), axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("value:Q", title=y, axis=alt.Axis(format=number) if number else alt.Axis()),
            tooltip=tooltip(tables, series, y, number),
            **encodings,
        )
    )


def shares_of(parts: Mapping[str, Mapping[str, float]], palette: Mapping[str, str], x: str) -> alt.Chart | None:
    """A bar a row, divided by parts; None where there is nothing to divide.

    Args:
        parts: a row's name -> a part's name -> its amount.
        palette: a part's name -> its colour, in the order of the bar.
    """
    rows = [
        {"row": row, "part": part, "amount": amounts[part], "share": short(amounts[part] / sum(amounts.values()))}
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
            color=colours("part", list(palette), list(palette.values())),
            order="order:O",
            tooltip=["row:N", "part:N", alt.Tooltip("amount:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
        )
    )
