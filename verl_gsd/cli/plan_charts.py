"""The charts of ``verl-gsd plan``, on one HTML page or in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import numpy as np

from verl_gsd.charts import COLOURS, PAPER, Section, Table, write_page, write_png
from verl_gsd.cli.plan_tables import (
    algorithm_name,
    by_group_size,
    by_group_size_notes,
    by_solve_rate,
    by_target,
    source_sentences,
)
from verl_gsd.planning.summary import BINS, GroupSizeSummary, Target, gradient_mass, share_by_bin, summarize
from verl_gsd.solve_rates import SolveRates

_SILENT = "Silent groups contribute no gradient."
_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
#: Number of histogram bars. Prompts are usually sampled a power of two times, so a power of two spreads their possible
#: rates evenly over the bars.
_BARS = 16
#: Color of the bars that show prompts instead of an algorithm.
_GREY = "#8c8c8c"


def draw(
    path: Path,
    rates: SolveRates,
    summaries: Sequence[GroupSizeSummary],
    alphas: Sequence[float],
    targets: Sequence[Target],
) -> None:
    """Draw the solve rates, the silent groups by group size, and the gradient shares to ``path``, .html or .png.

    Raises:
        OSError: the disk is full, or the process may not write there.
    """
    size = summaries[-1].group_size
    histogram, silence, mass = _histogram(rates), _silence(rates, summaries), _mass(rates, alphas, size)
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
    figures = by_group_size(rates, summaries, alphas, targets)
    large, *finite = by_solve_rate(rates, summaries, alphas)
    sections = [
        Section("solve-rates", titles[0], source_sentences(rates), histogram),
        Section(
            "silence",
            titles[1],
            [_SILENT, *by_group_size_notes(rates, summaries)],
            silence,
            Table(*figures),
        ),
        Section(
            "gradient",
            titles[2],
            ["Shares of each algorithm's update, next to the shares of the prompts."],
            mass,
        ),
        *(
            Section(f"gradient-{position}", title, table=Table(header, rows))
            for position, (title, header, rows) in enumerate([*finite, large])
        ),
    ]
    if targets:
        sections.append(
            Section(
                "targets",
                "Group sizes that are large enough for a share of the prompts",
                table=Table(*by_target(targets)),
            )
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
        .mark_bar(stroke=PAPER, color=COLOURS[0])
        .encode(
            x=alt.X("from:Q", bin="binned", title="solve rate", axis=alt.Axis(tickCount=5, format=".1f")),
            x2="to:Q",
            y=alt.Y("prompts:Q", title="prompts"),
            tooltip=["from:Q", "to:Q", "prompts:Q"],
        )
    )


def _silence(rates: SolveRates, summaries: Sequence[GroupSizeSummary]) -> alt.Chart:
    points = []
    for size in sorted({*_SIZES, *(each.group_size for each in summaries)}):
        figures = summarize(rates.rate, *rates.unbiased_counts, size)
        points.append({"size": size, "silent": figures.silent, "estimate": "exact rates"})
        if figures.unbiased is not None and figures.unbiased.prompts == len(rates):
            points.append({"size": size, "silent": figures.unbiased.silent, "estimate": "unbiased"})
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("size:Q", title="group size", scale=alt.Scale(type="log", base=2)),
            y=alt.Y("silent:Q", title="silent groups", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("estimate:N", title=None, sort=["exact rates", "unbiased"]),
            tooltip=["estimate:N", "size:Q", alt.Tooltip("silent:Q", format=".2%")],
        )
    )


def _mass(rates: SolveRates, alphas: Sequence[float], size: int) -> alt.Chart:
    shares = {"prompts": share_by_bin(rates.rate)}
    shares |= {
        algorithm_name(alpha): share_by_bin(rates.rate, gradient_mass(rates.rate, alpha, size)) for alpha in alphas
    }
    bars = [
        {"rate": name, "of": series, "share": float(share)}
        for series, series_shares in shares.items()
        for name, share in zip(BINS, np.nan_to_num(series_shares), strict=True)
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
