"""What the parts of a page are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from verl_gsd.charts import Panel, Section
from verl_gsd.report.reading import Columns, Run
from verl_gsd.report.steps import by_step, column


@dataclass(frozen=True)
class View:
    """A run and its table with a row a step (``steps.by_step``)."""

    run: Run
    table: Columns

    @classmethod
    def of(cls, run: Run) -> View:
        return cls(run, by_step(run))


#: By the run's name, in the order of their colours.
Views = Mapping[str, View]
#: The part of a page that it makes, or None where no run has anything of it.
Part = Callable[[Views], Section | None]


def tables(views: Views, having: Sequence[str] = ()) -> dict[str, Columns]:
    """By the run's name. A run without a value in one of ``having`` has no rows, so that others keep their colours."""
    nothing: Columns = {"step": np.zeros(0, np.int64)}
    return {
        name: view.table if all((~np.isnan(column(view.table, needed))).any() for needed in having) else nothing
        for name, view in views.items()
    }


def has(views: Views, name: str) -> bool:
    """Whether a run has a value other than 0 in the column."""
    return any(bool(np.nan_to_num(column(view.table, name)).any()) for view in views.values())


def with_records(views: Views) -> dict[str, View]:
    return {name: view for name, view in views.items() if len(view.run.records)}


def section(
    name: str, title: str, text: Sequence[str], panels: Iterable[tuple[str, str, alt.Chart | None]]
) -> Section | None:
    """With the panels (name, title, chart) that have a chart; None where none has."""
    drawn = [Panel(f"{name}-{of}", called, chart) for of, called, chart in panels if chart is not None]
    return Section(name, title, text, panels=drawn) if drawn else None
