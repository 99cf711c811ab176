"""The kinds of charts in a report."""

from verl_gsd.report.charts.axes import LARGE, NUMBER, SHARE
from verl_gsd.report.charts.bars import bar_chart, share_bars
from verl_gsd.report.charts.over_steps import MAX_DOTS, heat_map, line_chart, stacked_chart

__all__ = ["LARGE", "MAX_DOTS", "NUMBER", "SHARE", "bar_chart", "heat_map", "line_chart", "share_bars", "stacked_chart"]
