"""What charts of a report share: axes, colours, digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS

#: Formats of an axis.
SHARE, NUMBER, LARGE = "~%", "", "~s"
#: Steps that a phone has room to name.
_FEW = 8


def step_axis(steps: Sequence[float], name: str = "step") -> alt.X:
    """Of the field ``name``, with whole numbers alone: ``steps`` are those it shows."""
    first, last = math.ceil(min(steps)), math.floor(max(steps))
    # Vega halves the steps of a short axis, whatever tickMinStep says.
    few = {"values": list(range(first, last + 1))} if last - first <= _FEW else {}
    axis = alt.Axis(format="d", tickMinStep=1, grid=False, **few)
    return alt.X(f"{name}:Q", title="step", axis=axis, scale=alt.Scale(nice=False, zero=False))


def run_colours(tables: Mapping[str, Any]) -> alt.Color:
    return colours("run", list(tables), COLOURS)


def colours(field: str, names: Sequence[str], palette: Sequence[str], **symbol: Any) -> alt.Color:
    """A colour of ``palette`` for each name; ``symbol`` says how its legend's look."""
    scale = alt.Scale(domain=list(names), range=list(palette[: len(names)]))
    return alt.Color(f"{field}:N", title=None, scale=scale, sort=list(names), legend=legend(**symbol))


def legend(**symbol: Any) -> alt.Legend:
    """One that a phone has room for."""
    return alt.Legend(columns=2, labelLimit=150, **symbol)


def short(value: float) -> float | None:
    """Four digits of it, which no eye tells from all: a page stays small. None, a gap, where it is no finite number."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


def place(step: float) -> float:
    """A step, or the middle of several, or the border of one."""
    return round(float(step), 1)


def tooltip(tables: Mapping[str, Any], series: Mapping[str, str], y: str, number: str) -> list[Any]:
    names = (["run:N"] if len(tables) > 1 else []) + (["series:N"] if len(series) > 1 else [])
    return [*names, alt.Tooltip("value:Q", title=y, format=".1%" if number == SHARE else ".4g")]
