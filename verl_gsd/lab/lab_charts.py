"""Charts of the lab's runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, INK, RULE
from verl_gsd.lab.algorithms import algorithm, families
from verl_gsd.lab.simulation import QUARTERS, SimulatedRun
from verl_gsd.lab.summary import FINAL_EDGES, START_EDGES, shares

#: The line of the first, second, ... member of a family. From the fifth on they repeat.
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
_QUARTER_COLOURS = (COLOURS[1], COLOURS[5], COLOURS[4], COLOURS[0])
_GREY = "#b0b0b0"
#: Points per line, at most.
_POINTS = 75
_ROW = 24


def first_update(start: np.ndarray, updates: Mapping[str, np.ndarray]) -> alt.TopLevelMixin:
    """Shares of each algorithm's update at the start, by solve rate, below the shares of the prompts themselves."""
    rows = {"(prompts)": shares(start, START_EDGES)}
    rows |= {name: shares(start, START_EDGES, update) for name, update in updates.items()}
    return _cells(rows, START_EDGES, "solve rate at the start")


def final_rates(runs: Mapping[str, SimulatedRun]) -> alt.TopLevelMixin:
    """The distribution of solve rates after each run, below their distribution at the start."""
    start = next(iter(runs.values())).start
    rows = {"(start)": shares(start, FINAL_EDGES)}
    rows |= {name: shares(run.final, FINAL_EDGES) for name, run in runs.items()}
    return _cells(rows, FINAL_EDGES, "solve rate at the end")


def hardest_by_rollouts(runs: Mapping[str, SimulatedRun]) -> alt.TopLevelMixin:
    """The hardest quarter's solve rate by generated rollouts, up to those of the run that generated least."""
    points = [
        {"algorithm": name, "rollouts": round(float(run.rollouts[step])), "rate": _rounded(run.quarters[step, 0])}
        for name, run in runs.items()
        for step in _steps(run)[1:]
    ]
    first = next(iter(runs.values()))
    ends = [min(int(run.rollouts[step]) for run in runs.values()) for step in (_steps(first)[1], -1)]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    x = alt.X("rollouts:Q", title="rollouts per prompt so far (log)", scale=scale)
    return _lines(points, list(runs), x)


def by_quarter(run: SimulatedRun, reference: SimulatedRun | None = None) -> alt.TopLevelMixin:
    """Solve rate of each quarter over the steps; those of ``reference`` are in grey."""
    layers = [
        _quarters(run, "this algorithm").encode(color=_quarter_colour(), tooltip=["quarter:N", "step:Q", "rate:Q"])
    ]
    if reference is not None:
        layers.insert(0, _quarters(reference, "grey").encode(detail="quarter:N", color=alt.value(_GREY)))
    return alt.layer(*layers).properties(height=190)


def _quarter_colour() -> alt.Color:
    scale = alt.Scale(domain=list(QUARTERS), range=list(_QUARTER_COLOURS))
    return alt.Color("quarter:N", title=None, scale=scale, legend=alt.Legend(columns=4))


def _quarters(run: SimulatedRun, line: str) -> alt.Chart:
    points = [
        {"line": line, "quarter": quarter, "step": step, "rate": _rounded(run.quarters[step, number])}
        for number, quarter in enumerate(QUARTERS)
        for step in _steps(run)
    ]
    rate = alt.Y("rate:Q", title="solve rate", scale=alt.Scale(domain=[0, 1]))
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line()
        .encode(x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)), y=rate)
    )


def _lines(points: list[dict[str, Any]], names: Sequence[str], x: alt.X) -> alt.TopLevelMixin:
    """The hardest quarter's rate, one line per algorithm. A family has a colour; its members have different dashes."""
    all_families, shown = families(), [algorithm(name).family for name in names]
    colours = [COLOURS[all_families.index(family) % len(COLOURS)] for family in shown]
    dashes = [_DASHES[shown[:place].count(family) % len(_DASHES)] for place, family in enumerate(shown)]
    rate = alt.Y("rate:Q", title="hardest quarter's solve rate", scale=alt.Scale(domain=[0, 1]))
    legend = alt.Legend(columns=3, symbolSize=300)
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(clip=True)
        .encode(
            x=x,
            y=rate,
            color=alt.Color(
                "algorithm:N", title=None, scale=alt.Scale(domain=list(names), range=colours), legend=legend
            ),
            strokeDash=alt.StrokeDash(
                "algorithm:N", title=None, scale=alt.Scale(domain=list(names), range=dashes), legend=legend
            ),
            tooltip=["algorithm:N", x.shorthand, "rate:Q"],
        )
        .properties(height=340)
    )


def _cells(rows: Mapping[str, np.ndarray], edges: Sequence[float], title: str) -> alt.TopLevelMixin:
    """Shares in percent: a row per algorithm, a column per interval of solve rates. Larger shares have more colour."""
    cells = [
        {
            "algorithm": name,
            "from": f"{low:g}",
            "interval": f"{low:g} to {high:g}",
            "share": round(100 * float(share), 1),
        }
        for name, row_shares in rows.items()
        for (low, high), share in zip(itertools.pairwise(edges), row_shares, strict=True)
    ]
    axis = alt.Axis(labelAngle=0, orient="top", labelOverlap=False)  # only lower edges: a phone has no room for more
    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("from:N", title=f"{title}: from ... to the next", sort=[f"{low:g}" for low in edges[:-1]], axis=axis),
        y=alt.Y("algorithm:N", title=None, sort=list(rows)),
        tooltip=["algorithm:N", "interval:N", "share:Q"],
    )
    shades = alt.Scale(range=[0, 1], domain=[0, 60], clamp=True)
    ink = alt.condition("datum.share > 55", alt.value("white"), alt.value(INK))
    tiles = base.mark_rect(color=COLOURS[0], stroke=RULE).encode(fillOpacity=alt.FillOpacity("share:Q", scale=shades))
    figures = base.mark_text(fontSize=12).encode(text=alt.Text("share:Q", format=".1f"), color=ink)
    return alt.layer(tiles, figures).properties(height=_ROW * len(rows))


def _steps(run: SimulatedRun) -> list[int]:
    last = len(run.quarters) - 1
    return sorted({round(step) for step in np.linspace(0, last, min(last, _POINTS) + 1)})


def _rounded(value: np.ndarray | float) -> float:
    return round(float(value), 4)
