"""``verl-gsd report RUN [RUN ...]``: what runs amount to, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.console import fail, out

PORT = 8787


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs; several are drawn together.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page; by default report.html in the first RUN.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Every chart as a PNG there, too.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve the page to this machine until Ctrl-C.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help=f"Of --watch, by default {PORT}; 0: any.")] = None,
) -> None:
    """One page of charts, with in words what is wrong and which key to change. It needs nothing beside it.

    Reads RUN/records and RUN/metrics; a run of verl's own trainer modes has the second alone. What is damaged is left
    out, and said.
    """
    from verl_gsd.charts import write_page
    from verl_gsd.report.build import read_runs, require_content, sections_of, title_of, write_pngs
    from verl_gsd.report.watch import serve

    if port is not None and not watch:
        fail("--port: has no effect without --watch")
    if watch and (output or png):
        fail("--watch serves the page and writes nothing: leave out --output and --png, or --watch")
    page = output or runs[0] / "report.html"
    if page.suffix != ".html" or page.is_dir():
        fail(f"--output {page}: write a file that ends in .html")
    try:
        if watch:
            serve(runs, PORT if port is None else port, on_start=lambda url: out.print(f"{url}  until Ctrl-C"))
            return
        read = read_runs(runs)
        require_content(read)
    except (OSError, ValueError) as error:
        fail(str(error))
    sections = sections_of(read)
    try:
        write_page(page, title_of(read), sections)
        pngs = write_pngs(png, sections) if png else []
    except OSError as error:
        fail(f"{error}. Write --output, or --png, where there is room and a right to write")
    for notice in sections[0].notices:
        out.print(f"- {escape(notice.title)}", highlight=False)
    out.print(escape(str(page)), soft_wrap=True, highlight=False)
    if pngs:
        out.print(f"{len(pngs)} PNGs in {escape(str(png))}", soft_wrap=True, highlight=False)
