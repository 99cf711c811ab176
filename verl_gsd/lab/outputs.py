"""What the commands of the laboratory print and write: tables, a page and PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from verl_gsd.console import fail, out

if TYPE_CHECKING:
    import altair as alt

    from verl_gsd.charts import Section


def check_outputs(output: Path | None, png: Path | None) -> None:
    """End the command with an error if ``--output`` is not a file FILE.html, or ``--png`` is not a folder."""
    if output is not None and (output.suffix != ".html" or output.is_dir()):
        fail(f"--output {output}: not an HTML file. Use a file name that ends in .html.")
    if png is not None and png.exists() and not png.is_dir():
        fail(f"--png {png}: this is a file. Use a folder.")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to the console."""
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def print_lines(lines: Sequence[str], bullet: str = "") -> None:
    """Print sentences as they are, without markup."""
    for line in lines:
        out.print(f"{bullet}{escape(line)}", highlight=False)


def write_outputs(
    title: str,
    sections: Sequence[Section],
    charts: Mapping[str, alt.TopLevelMixin],
    output: Path | None,
    png: Path | None,
) -> None:
    """Write the page and the charts. If the disk does not accept them, the command ends with an error."""
    from verl_gsd.charts import write_page, write_png

    try:
        if output is not None:
            write_page(output, title, sections)
            out.print(f"Page: {escape(str(output))}", highlight=False)
        if png is not None:
            for name, chart in charts.items():
                write_png(chart, png / f"{name}.png")
            out.print(f"{len(charts)} charts: {escape(str(png))}", highlight=False)
    except OSError as error:
        fail(f"The page or the charts could not be written: {error}", code=1)
