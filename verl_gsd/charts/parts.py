"""What a page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt


@dataclass(frozen=True)
class Table:
    """Rows of cells, each shown as ``str`` gives it."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Notice:
    """What a reader must not miss: a sentence as its title, what is behind it, and lines to write somewhere."""

    title: str
    text: str = ""
    write: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One of several charts that stand side by side where there is room.

    Attributes:
        name: as a section's.
    """

    name: str
    title: str
    chart: alt.TopLevelMixin


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs, notices, a chart, panels and a table, each where there is one.

    Attributes:
        name: of the section in links and for its chart: letters, digits and hyphens, unique on the page.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    chart: alt.TopLevelMixin | None = None
    table: Table | None = None
    notices: Sequence[Notice] = ()
    panels: Sequence[Panel] = ()
