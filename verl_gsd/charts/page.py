"""One HTML file that needs nothing beside it: text, tables and charts, and the library that draws them.

All text is escaped, data too: what a policy or a judge wrote may stand in a page and stays text.
"""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import vl_convert

from verl_gsd.charts.theme import styled

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: white; margin: 0 auto; max-width: 1100px;
  padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 75ch; }
.chart { width: 100%; min-height: 40px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e5e5e5; }
caption { text-align: left; }
details > summary { cursor: pointer; }
"""

_DRAW = """
for (const place of document.querySelectorAll(".chart")) {
  const specification = JSON.parse(document.getElementById(place.dataset.of).textContent);
  vegaEmbed(place, specification, { actions: false, renderer: "svg" })
    .catch(error => { place.textContent = "This chart could not be drawn: " + error; console.error(error); });
}
"""


@dataclass(frozen=True)
class Table:
    """Rows of cells, each shown as ``str`` gives it."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A heading with, in this order, paragraphs, a chart and a table, each where there is one.

    Attributes:
        name: of the section in links and for its chart: letters, digits and hyphens, unique on the page.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    chart: alt.TopLevelMixin | None = None
    table: Table | None = None


def page(title: str, sections: Sequence[Section], *, refresh: int | None = None) -> str:
    """The HTML of a page.

    Args:
        refresh: seconds after which a browser asks for the page again; never where None.

    Raises:
        ValueError: two sections share a name.
    """
    names = [section.name for section in sections]
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
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
<script>{_library()}</script>
<script>{_DRAW}</script>
</body>
</html>
"""


def write_page(path: Path, title: str, sections: Sequence[Section], *, refresh: int | None = None) -> None:
    """Write ``page`` to ``path``, whole or not at all.

    Raises:
        OSError: there is no room, or no right to write.
    """
    content = page(title, sections, refresh=refresh)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".tmp")
    try:
        building.write_text(content, encoding="utf-8")
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}">', f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
    if section.chart is not None:
        label = html.escape(section.title, quote=True)
        parts.append(f'<div class="chart" role="img" aria-label="{label}" data-of="{section.name}-data"></div>')
        # In a script element only "</" and "<!--" could end the text early: no "<" is left in it.
        data = json.dumps(styled(section.chart), allow_nan=False).replace("<", "\\u003c")
        parts.append(f'<script type="application/json" id="{section.name}-data">{data}</script>')
    if section.table is not None:
        head = "".join(f'<th scope="col">{html.escape(str(cell))}</th>' for cell in section.table.header)
        rows = [
            f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in section.table.rows
        ]
        parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        )
    return "\n".join([*parts, "</section>"])


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and what puts them into a page: as text of a script element."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")
