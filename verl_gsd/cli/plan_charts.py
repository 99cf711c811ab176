"""The pictures of ``verl-gsd plan``: one page, or one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, Section, Table, write_page, write_png
from verl_gsd.cli.plan_tables import by_group_size, by_solve_rate, by_target, meanings, name_of, sentences
from verl_gsd.planning.summary import BINS, Promise, Target, by_bin, gradient_mass, promise
from verl_gsd.solve_rates import SolveRates

_SILENT = "A group is silent when all its rewards agree: it teaches nothing."
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
#: Powers of two suit how often prompts are usually sampled: no bar has more of their rates than its neighbours.
_BARS = 16
#: What is no algorithm, beside the colours that are.
_GREY = "#8c8c8c"


def draw(
    path: Path,
    rates: SolveRates,
    promises: Sequence[Promise],
    alphas: Sequence[float],
    targets: Sequence[Target],
) -> None:
    """Draw solve rates, silence by group size and the gradient's sources into ``path``, .html or .png.

    Raises:
        OSError: there is no room, or no right to write.
    """
    size = promises[-1].group_size
    histogram, silence, mass = _histogram(rates), _silence(rates, promises), _mass(rates, alphas, size)
    titles = (
        "Prompts by solve rate",
        "Silent groups by group size",
        f"Where the gradient comes from, groups of {size}",
    )
    if path.suffix == ".png":
        charts = [
            chart.properties(width=560, height=200, title=alt.Title(title, anchor="start"))
            for chart, title in zip((histogram, silence, mass), titles, strict=True)
        ]
        write_png(alt.vconcat(*charts).resolve_scale(color="independent"), path)
        return
    figures = by_group_size(rates, promises, alphas, targets)
    large, *finite = by_solve_rate(rates, promises, alphas)
    sections = [
        Section("solve-rates", titles[0], sentences(rates), histogram),
        Section("silence", titles[1], [_SILENT, *meanings(promises)], silence, Table(*figures)),
        Section(
            "gradient",
            titles[2],
            ["Shares of each algorithm's update, beside shares of the prompts."],
            mass,
        ),
        *(
            Section(f"gradient-{place}", title, table=Table(header, rows))
            for place, (title, header, rows) in enumerate([*finite, large])
        ),
    ]
    if targets:
        sections.append(
            Section("targets", "Group sizes enough for a share of the prompts", table=Table(*by_target(targets)))
        )
    write_page(path, f"Plan of {rates.path.name}", sections)


def _histogram(rates: SolveRates) -> alt.Chart:
    counts, edges = np.histogram(rates.rate, bins=_BARS, range=(0, 1))
    bars = [
        {"from": round(low, 3), "to": round(high, 3), "prompts": int(count)}
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    ]
    return (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(stroke="white", color=COLOURS[0])
        .encode(
            x=alt.X("from:Q", bin="binned", title="solve rate", axis=alt.Axis(tickCount=5, format=".1f")),
            x2="to:Q",
            y=alt.Y("prompts:Q", title="prompts"),
            tooltip=["from:Q", "to:Q", "prompts:Q"],
        )
    )


def _silence(rates: SolveRates, promises: Sequence[Promise]) -> alt.Chart:
    points = []
    for size in sorted({*_SIZES, *(one.group_size for one in promises)}):
        found = promise(rates.rate, rates.correct, rates.total, size)
        points.append({"size": size, "silent": found.silent, "estimate": "plug-in"})
        if found.unbiased is not None and found.unbiased.prompts == len(rates):
            points.append({"size": size, "silent": found.unbiased.silent, "estimate": "unbiased"})
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("size:Q", title="group size", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("silent:Q", title="silent groups", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("estimate:N", title=None, sort=["plug-in", "unbiased"]),
            tooltip=["estimate:N", "size:Q", alt.Tooltip("silent:Q", format=".2%")],
        )
    )


def _mass(rates: SolveRates, alphas: Sequence[float], size: int) -> alt.Chart:
    shares = {"prompts": by_bin(rates.rate)}
    shares |= {name_of(alpha): by_bin(rates.rate, gradient_mass(rates.rate, alpha, size)) for alpha in alphas}
    bars = [
        {"rate": name, "of": series, "share": float(share)}
        for series, by in shares.items()
        for name, share in zip(BINS, np.nan_to_num(by), strict=True)
    ]
    return (
        alt.Chart(alt.Data(values=bars))
        .mark_bar()
        .encode(
            x=alt.X("rate:N", title="solve rate", sort=list(BINS), axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("of:N", sort=list(shares)),
            y=alt.Y("share:Q", title="share", axis=alt.Axis(format="%")),
            color=alt.Color("of:N", title=None, scale=alt.Scale(domain=list(shares), range=[_GREY, *COLOURS])),
            tooltip=["of:N", "rate:N", alt.Tooltip("share:Q", format=".1%")],
        )
    )
