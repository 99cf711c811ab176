"""Charts: one theme for all of them, self-contained HTML pages, and PNGs without a browser. Independent of training."""

from verl_gsd.charts.page import render_page, write_page
from verl_gsd.charts.parts import (
    Entry,
    KeyFigure,
    KeyFigureRow,
    Notice,
    Panel,
    Quote,
    QuoteColumn,
    Section,
    Table,
)
from verl_gsd.charts.theme import COLOURS, INK, KINDS, PAPER, RULE, styled, write_png

__all__ = [
    "COLOURS",
    "INK",
    "KINDS",
    "PAPER",
    "RULE",
    "Entry",
    "KeyFigure",
    "KeyFigureRow",
    "Notice",
    "Panel",
    "Quote",
    "QuoteColumn",
    "Section",
    "Table",
    "render_page",
    "styled",
    "write_page",
    "write_png",
]
