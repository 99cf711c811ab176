"""The sections that extensions declare."""

from __future__ import annotations

import altair as alt

from verl_gsd.charts import Section
from verl_gsd.declaration import ReportChart, ReportSection, ValueFormat
from verl_gsd.report.charts import LARGE, NUMBER, SHARE, lines
from verl_gsd.report.extensions import in_report_order
from verl_gsd.report.sections.view import Views, has, section, tables

_FORMATS: dict[ValueFormat, str] = {"number": NUMBER, "share": SHARE, "large": LARGE}


def of_extensions(views: Views) -> list[Section]:
    """The section of each extension of which a run has something to show."""
    sections = [_section(declared.report, views) for declared in in_report_order() if declared.report is not None]
    return [section for section in sections if section is not None]


def _section(declared: ReportSection, views: Views) -> Section | None:
    if declared.needs and not has(views, declared.needs):
        return None
    charts = [(chart.name, chart.title, _chart(chart, views, declared.needs)) for chart in declared.charts]
    return section(declared.name, declared.title, [declared.text], charts)


def _chart(declared: ReportChart, views: Views, needed: str) -> alt.Chart | None:
    if declared.hide_zeros and not any(has(views, name) for name in declared.lines.values()):
        return None
    runs = tables(views, having=[name for name in (needed, declared.needs) if name])
    return lines(runs, declared.lines, declared.unit, _FORMATS[declared.values], zero=declared.from_zero)
