"""Charts: one theme for all of them, self-contained HTML pages, and PNGs without a browser. Independent of training."""

from verl_gsd.charts.page import render_page, write_page
from verl_gsd.charts.parts import Notice, Panel, Section, Table
from verl_gsd.charts.theme import COLOURS, KINDS, styled, write_png

__all__ = [
    "COLOURS",
    "KINDS",
    "Notice",
    "Panel",
    "Section",
    "Table",
    "render_page",
    "styled",
    "write_page",
    "write_png",
]
