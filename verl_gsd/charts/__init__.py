"""Pictures: one look for every chart, one self-contained page, PNGs without a browser. Knows nothing of training."""

from verl_gsd.charts.page import page, write_page
from verl_gsd.charts.parts import Notice, Panel, Section, Table
from verl_gsd.charts.theme import COLOURS, KINDS, styled, write_png

__all__ = ["COLOURS", "KINDS", "Notice", "Panel", "Section", "Table", "page", "styled", "write_page", "write_png"]
