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
class KeyFigure:
    """A number that the page shows large, such as ``0.43 to 0.55``, with its name and a remark."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class KeyFigureRow:
    """Figures side by side. The title is empty if the page has a single row."""

    title: str
    figures: Sequence[KeyFigure]


@dataclass(frozen=True)
class Quote:
    """A text with its line breaks, such as a response, and a title that says what it is."""

    title: str
    text: str


@dataclass(frozen=True)
class QuoteColumn:
    """Quotes that belong together. Columns of an entry are side by side if there is room."""

    title: str
    quotes: Sequence[Quote]


@dataclass(frozen=True)
class Entry:
    """One of many entries of a section. The page shows its title and note; the reader opens the rest.

    Attributes:
        text: shown first, with its line breaks.
    """

    title: str
    note: str
    text: str
    columns: Sequence[QuoteColumn]


@dataclass(frozen=True)
class Section:
    """A heading, followed by the parts below. All of them are optional.

    Their order is: rows of figures, paragraphs, notices, a chart, panels, a table and entries, which readers can filter
    by their text.

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
    figures: Sequence[KeyFigureRow] = ()
    entries: Sequence[Entry] = ()
