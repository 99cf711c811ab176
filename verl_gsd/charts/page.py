"""One HTML file that needs nothing beside it: text, tables and charts, and the library that draws them.

All text is escaped, data too: what a policy or a judge wrote may stand in a page and stays text.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import vl_convert

from verl_gsd.charts.assets import DRAW, STYLE, library
from verl_gsd.charts.parts import Notice, Section, Table
from verl_gsd.charts.theme import styled
from verl_gsd.writing import atomic_write

#: What an axis and its title take below a chart's own height, in pixels.
_AXES = 40


def page(title: str, sections: Sequence[Section], *, refresh: int | None = None) -> str:
    """The HTML of a page.

    Args:
        refresh: seconds after which a browser asks for the page again; never where None.

    Raises:
        ValueError: two sections or panels share a name.
    """
    names = [name for section in sections for name in (section.name, *(panel.name for panel in section.panels))]
    if len(set(names)) < len(names):
        raise ValueError(f"sections {names}: give each a name of its own")
    body = "\n".join(_section(section) for section in sections)
    again = f'<meta http-equiv="refresh" content="{int(refresh)}">\n' if refresh else ""
    # Vega compiles expressions, which a browser calls unsafe-eval; nothing may be loaded from anywhere.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
{again}<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{_links(sections)}
{body}
<script>{library()}</script>
<script>{DRAW}</script>
</body>
</html>
"""


def write_page(path: Path, title: str, sections: Sequence[Section], *, refresh: int | None = None) -> None:
    """Write ``page`` to ``path``, whole or not at all.

    Raises:
        OSError: there is no room, or no right to write.
    """
    content = page(title, sections, refresh=refresh)
    with atomic_write(path) as building:
        building.write_text(content, encoding="utf-8")


def _links(sections: Sequence[Section]) -> str:
    if len(sections) < 3:
        return ""
    links = (f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in sections)
    return f"<nav>{' '.join(links)}</nav>"


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
    parts += [_notice(notice) for notice in section.notices]
    if section.chart is not None:
        parts.append(_chart(section.name, section.title, section.chart))
    if section.panels:
        panels = (
            f'<div id="{panel.name}"><h3>{html.escape(panel.title)}</h3>'
            f"{_chart(panel.name, panel.title, panel.chart)}</div>"
            for panel in section.panels
        )
        parts.append(f'<div class="panels">{"".join(panels)}</div>')
    if section.table is not None:
        parts.append(_table(section.table))
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _notice(notice: Notice) -> str:
    text = f"<p>{html.escape(notice.text)}</p>" if notice.text else ""
    write = "<br>".join(f"<code>{html.escape(line)}</code>" for line in notice.write)
    return f'<div class="notice"><strong>{html.escape(notice.title)}</strong>{text}{write}</div>'


def _chart(name: str, title: str, chart: alt.TopLevelMixin) -> str:
    label = html.escape(title, quote=True)
    specification = styled(chart)
    # Its place is kept until it is drawn: nothing below moves, and a page that is loaded again stays where it was.
    height = specification.get("height")
    place = f' style="min-height: {height + _AXES}px"' if isinstance(height, int) else ""
    # Compiled here: a browser draws Vega in three quarters of the time that Vega-Lite takes it.
    compiled = vl_convert.vegalite_to_vega(json.dumps(specification, allow_nan=False))
    # In a script element only "</" and "<!--" could end the text early: no "<" is left in it.
    data = json.dumps(compiled).replace("<", "\\u003c")
    return (
        f'<div class="chart" role="img" aria-label="{label}" data-of="{name}-data"{place}></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )
