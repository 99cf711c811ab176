"""Pictures: one look for every chart, one self-contained page, PNGs without a browser. Knows nothing of training."""

from verl_gsd.charts.page import Section, Table, page, write_page
from verl_gsd.charts.theme import COLOURS, KINDS, styled, write_png

__all__ = ["COLOURS", "KINDS", "Section", "Table", "page", "styled", "write_page", "write_png"]
