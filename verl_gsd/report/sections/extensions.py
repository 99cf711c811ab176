"""Builds the sections that extensions declare."""

from __future__ import annotations

import altair as alt

from verl_gsd.charts import Section
from verl_gsd.declaration import ReportChart, ReportSection, ValueFormat
from verl_gsd.report.charts import LARGE, NUMBER, SHARE, line_chart
from verl_gsd.report.extensions import in_report_order
from verl_gsd.report.sections.view import Views, has_nonzero, section_of_panels, step_tables

_AXIS_FORMATS: dict[ValueFormat, str] = {"number": NUMBER, "share": SHARE, "large": LARGE}


def extension_sections(views: Views) -> list[Section]:
    """Build the section of each extension for which any run has data."""
    sections = [
        _section(declaration.report, views) for declaration in in_report_order() if declaration.report is not None
    ]
    return [section for section in sections if section is not None]


def _section(declared: ReportSection, views: Views) -> Section | None:
    if declared.needs and not has_nonzero(views, declared.needs):
        return None
    panels = [(chart.name, chart.title, _chart(chart, views, declared.needs)) for chart in declared.charts]
    return section_of_panels(declared.name, declared.title, [declared.text], panels)


def _chart(declared: ReportChart, views: Views, needed_by_section: str) -> alt.TopLevelMixin | None:
    if declared.hide_zeros and not any(has_nonzero(views, name) for name in declared.lines.values()):
        return None
    tables = step_tables(views, having=[name for name in (needed_by_section, declared.needs) if name])
    return line_chart(
        tables, declared.lines, declared.unit, _AXIS_FORMATS[declared.values], starts_at_zero=declared.from_zero
    )
