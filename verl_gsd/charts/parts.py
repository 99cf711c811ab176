"""The parts of a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt


@dataclass(frozen=True)
class Table:
    """Rows of cells. The page shows ``str(cell)``."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Notice:
    """A highlighted message: a sentence as its title, an explanation, and config overrides that would help."""

    title: str
    text: str = ""
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One of several small charts, which the page puts side by side if there is room.

    Attributes:
        name: the chart's id in the page, as for a ``Section``.
    """

    name: str
    title: str
    chart: alt.TopLevelMixin


@dataclass(frozen=True)
class Section:
    """A heading, followed by paragraphs, notices, a chart, panels and a table, in this order. All of them are optional.

    Attributes:
        name: the section's id in links and the id of its chart. It has letters, digits and hyphens, and must be unique
            in the page.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    chart: alt.TopLevelMixin | None = None
    table: Table | None = None
    notices: Sequence[Notice] = ()
    panels: Sequence[Panel] = ()
