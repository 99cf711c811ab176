"""Parts that several charts share: axes, colours, legends, tooltips and rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS

#: Number formats of an axis: percent, plain, and with a prefix (12k).
SHARE, NUMBER, LARGE = "~%", "", "~s"
#: Maximum number of steps at which every step has a tick. More labels do not fit on a phone.
_MAX_TICKS = 8


def step_axis(steps: Sequence[float], name: str = "step") -> alt.X:
    """The horizontal axis of the field ``name``, with integer ticks.

    Args:
        steps: the steps that the chart shows.
    """
    first, last = math.ceil(min(steps)), math.floor(max(steps))
    # On a short axis, Vega puts ticks between integers despite tickMinStep.
    ticks = {"values": list(range(first, last + 1))} if last - first <= _MAX_TICKS else {}
    axis = alt.Axis(format="d", tickMinStep=1, grid=False, **ticks)
    return alt.X(f"{name}:Q", title="step", axis=axis, scale=alt.Scale(nice=False, zero=False))


def colour_by_run(tables: Mapping[str, Any]) -> alt.Color:
    return colour_by("run", list(tables), COLOURS)


def colour_by(field: str, names: Sequence[str], palette: Sequence[str], **symbol: Any) -> alt.Color:
    """One colour of ``palette`` per name of the field. ``symbol`` sets the symbols of the legend."""
    scale = alt.Scale(domain=list(names), range=list(palette[: len(names)]))
    return alt.Color(f"{field}:N", title=None, scale=scale, sort=list(names), legend=legend(**symbol))


def legend(**symbol: Any) -> alt.Legend:
    """A legend that fits on a phone. Its symbols are not pale where the first layer of a chart is."""
    return alt.Legend(columns=2, labelLimit=150, symbolOpacity=1, symbolStrokeWidth=2, **symbol)


def round_value(value: float) -> float | None:
    """Round to four significant digits, which keeps the page small. None, a gap in the chart, if it is not finite."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def round_step(step: float) -> float:
    """Round a step, the middle of a span of steps, or a bound of one."""
    return round(float(step), 1)


def tooltip(
    tables: Mapping[str, Any], series: Mapping[str, str], place: alt.Tooltip, y: str, number_format: str
) -> list[Any]:
    """The run and the series of a mark, if there are several, its ``place`` on the horizontal axis, and its value."""
    names = (["run:N"] if len(tables) > 1 else []) + (["series:N"] if len(series) > 1 else [])
    return [*names, place, alt.Tooltip("value:Q", title=y, format=".1%" if number_format == SHARE else ".4g")]


#: The steps of a mark that reaches from the field ``low`` to ``high``, which lie half a step outside of them.
STEPS_OF_SPAN = {
    "steps": "ceil(datum.low) < floor(datum.high) ? ceil(datum.low) + ' to ' + floor(datum.high) : ceil(datum.low)"
}
