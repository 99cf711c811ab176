"""The kinds of chart a report has."""

from verl_gsd.report.charts.axes import LARGE, NUMBER, SHARE
from verl_gsd.report.charts.bars import bars, shares_of
from verl_gsd.report.charts.over_steps import heat_map, lines, stacked

__all__ = ["LARGE", "NUMBER", "SHARE", "bars", "heat_map", "lines", "shares_of", "stacked"]
