"""``verl-gsd report RUN [RUN ...]``: one page of charts and findings about runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.run_folders import pattern_of, runs_in
from verl_gsd.console import fail, out

PORT = 8787


def _check_not_of_runs(folder: Path) -> None:
    """Reject a folder that has runs in it, such as the runs of all seeds.

    Raises:
        ValueError: the folder is not a run, and has runs in it. The message names some of them.
    """
    if inner := runs_in(folder):
        first = " ".join(shlex.quote(str(path)) for path in inner[:2])
        raise ValueError(
            f"{folder}: this folder is not a run, but has {len(inner)} of them. Use the folders of runs, for example "
            f"`verl-gsd report {first}`. To compare labels over all of their seeds, use "
            f"`verl-gsd compare {pattern_of(folder, inner)}`"
        )


def show_report_command(run: Path) -> None:
    """Print the command that reports on the run in the folder ``run``, on a line of its own."""
    out.print("For charts and findings, run:", highlight=False)
    out.print(f"verl-gsd report {shlex.quote(str(run))}", soft_wrap=True, markup=False, highlight=False)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories. Several runs share each chart.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The page to write. Default: RUN/report.html, or comparison.html in the first of several RUNs.",
        ),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every chart as a PNG to this folder.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine until Ctrl-C, and write no files.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=f"Port for --watch. Default: {PORT}; 0: any free port.")
    ] = None,
) -> None:
    """Write a self-contained page of charts, with findings in words and the keys to change.

    RUN is the folder that a run prints. The report reads RUN/records and RUN/metrics. A run with one of verl's own
    trainer modes has only the metrics.
    With trainer.rollout_data_dir=RUN/rollouts, a run stores its responses, and the page shows some of them.
    Damaged files are left out, and the page names them.

    Examples:
        verl-gsd report RUN
        verl-gsd report runs/lab/grpo/seed_1 runs/lab/dr_grpo/seed_1 --output both.html
        verl-gsd report RUN --watch
    """
    from verl_gsd.charts import write_page
    from verl_gsd.report.build import build_sections, check_not_empty, page_title, read_runs, write_pngs
    from verl_gsd.report.watch import serve
    from verl_gsd.run.trust import distrust, real_run

    if port is not None and not watch:
        fail("--port: has no effect without --watch. Add --watch or remove --port")
    if watch and (output or png):
        fail("--watch serves the page and writes no files. Remove --watch, or remove --output and --png")
    page = output or runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
    if page.suffix != ".html" or page.is_dir():
        fail(f"--output {page}: not an .html file. Use a file name that ends in .html")
    try:
        for run in runs:
            real_run(run)
            _check_not_of_runs(run)
        if watch:
            serve(
                runs,
                PORT if port is None else port,
                on_start=lambda url: out.print(f"{url}  (stop with Ctrl-C)"),
                distrust=distrust,
            )
            return
        run_data = read_runs(runs, distrust=distrust)
        check_not_empty(run_data)
    except (OSError, ValueError) as error:
        fail(str(error))
    sections = build_sections(run_data)
    try:
        write_page(page, page_title(run_data), sections)
        pngs = write_pngs(png, sections) if png else []
    except OSError as error:
        fail(f"{error}. Use --output and --png with a writable folder that has free space")
    for notice in (notice for section in sections for notice in section.notices):
        out.print(f"- {escape(notice.title)}", highlight=False)
    out.print(escape(str(page)), soft_wrap=True, highlight=False)
    if pngs:
        out.print(f"{len(pngs)} PNGs in {escape(str(png))}", soft_wrap=True, highlight=False)
