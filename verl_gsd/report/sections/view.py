"""What all sections are built from, and helpers to build one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from verl_gsd.charts import Panel, Section
from verl_gsd.report.reading import Columns, RunData
from verl_gsd.report.steps import column, step_table


@dataclass(frozen=True)
class RunView:
    """A run and its table with one row per step (``steps.step_table``)."""

    run: RunData
    table: Columns

    @classmethod
    def of(cls, run: RunData) -> RunView:
        return cls(run, step_table(run))


#: Name of the run -> view, in the order of the runs' colours.
Views = Mapping[str, RunView]
#: Builds one section of a page; None if no run has data for it.
SectionBuilder = Callable[[Views], Section | None]


def step_tables(views: Views, having: Sequence[str] = ()) -> dict[str, Columns]:
    """Name of the run -> its table. Runs without any value in one of the columns ``having`` get an empty table.

    They are kept, so that the other runs keep their colours.
    """
    empty: Columns = {"step": np.zeros(0, np.int64)}
    return {
        name: view.table if all((~np.isnan(column(view.table, needed))).any() for needed in having) else empty
        for name, view in views.items()
    }


def has_nonzero(views: Views, name: str) -> bool:
    """Whether any run has a value other than 0 in the column."""
    return any(bool(np.nan_to_num(column(view.table, name)).any()) for view in views.values())


def views_with_records(views: Views) -> dict[str, RunView]:
    return {name: view for name, view in views.items() if len(view.run.records)}


def section_of_panels(
    name: str, title: str, text: Sequence[str], panels: Iterable[tuple[str, str, alt.TopLevelMixin | None]]
) -> Section | None:
    """Build a section from its panels. Panels without a chart are left out; None if none has a chart.

    Args:
        panels: (name, title, chart) of each panel. ``name`` of the section precedes its name in the page.
    """
    panels_with_chart = [
        Panel(f"{name}-{panel_name}", panel_title, chart)
        for panel_name, panel_title, chart in panels
        if chart is not None
    ]
    return Section(name, title, text, panels=panels_with_chart) if panels_with_chart else None
