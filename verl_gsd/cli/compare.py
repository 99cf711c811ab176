"""``verl-gsd compare RUN...``: compare methods at equal generated tokens over seeds, with intervals and a test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from verl_gsd.cli.run_folders import pattern_of, runs_in
from verl_gsd.console import fail, out

if TYPE_CHECKING:
    from verl_gsd.compare.comparison import Comparison
    from verl_gsd.compare.curves import Curve


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Folders LABEL/seed_N, LABEL=FOLDER, or JSON files that --output wrote."),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The label to compare with. Default: that of the first RUN.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Data source of the held-out prompts, if runs have several.")
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Include unfinished runs, up to their last validation.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare exact accuracies, which runs of the laboratory have.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the results and curves to this file.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with charts and tables to this file.")
    ] = None,
) -> None:
    """Compare the held-out accuracy of methods at equal generated tokens, over seeds.

    Every run needs records and validations. A JSON file of an earlier comparison contributes the curves it contains.

    Examples:
        verl-gsd compare runs/lab/grpo/seed_* runs/lab/dr_grpo/seed_* --exact
        verl-gsd compare mine=RUN theirs=OTHER_RUN --page compare.html
    """
    for option, path, suffix in (("--output", output, ".json"), ("--page", page, ".html")):
        if path is not None and (path.suffix != suffix or path.is_dir()):
            fail(f"{option} {path}: not a {suffix} file. Use a file name that ends in {suffix}")
    from verl_gsd.charts import write_page
    from verl_gsd.compare.comparison import compare_curves
    from verl_gsd.compare.comparison_file import write_comparison
    from verl_gsd.compare.comparison_page import TITLE, sections

    try:
        curves, notices, first_label = _read_curves(runs, source, unfinished, exact)
        comparison = compare_curves(curves, baseline or first_label)
        page_sections = sections(comparison, notices) if page else []
    except (OSError, ValueError) as error:
        fail(str(error))
    _print(comparison, notices)
    try:
        if output is not None:
            write_comparison(output, comparison)
        if page is not None:
            write_page(page, TITLE, page_sections)
    except OSError as error:
        fail(f"cannot write the results: {error}", code=1)
    for path in (output, page):
        if path is not None:
            out.print(escape(str(path)), soft_wrap=True, highlight=False)


def _read_curves(
    runs: list[str], source: str | None, unfinished: bool, exact: bool
) -> tuple[list[Curve], list[str], str]:
    """Return the curves to compare, notices about runs that are left out or incomplete, and the first run's label.

    The label is returned even if the first run is left out.
    """
    from verl_gsd.compare.comparison_file import read_curves
    from verl_gsd.compare.run_curves import NoValidationYetError, read_curve
    from verl_gsd.run.trust import real_run

    curves: list[Curve] = []
    notices: list[str] = []
    first_label = ""
    words_by_path: dict[Path, str] = {}
    for word in runs:
        label, path = _split_label(word)
        real_run(path)
        if not path.exists():
            raise ValueError(f"{path}: does not exist. Use a run directory or a JSON file that --output wrote")
        if (twin := words_by_path.setdefault(path.resolve(), word)) != word:
            raise ValueError(f"{twin} and {word}: both are {path}. Remove one")
        if inner := runs_in(path):
            raise ValueError(
                f"{path}: this folder is not a run, but has {len(inner)} of them. Use the folders of runs, for example "
                f"`verl-gsd compare {pattern_of(path, inner)}`"
            )
        try:
            new_curves = [read_curve(path, label, source, exact=exact)] if path.is_dir() or label else read_curves(path)
        except NoValidationYetError as error:
            first_label = first_label or error.label
            notices.append(f"Left out: {error}.")
            continue
        for curve in new_curves:
            first_label = first_label or curve.label
            if not set(curve.validation) - {"metric"}:
                notices.append(f"{curve.run}: its validation settings are unknown; assumed to be those of the others.")
            if curve.total_steps is None:
                notices.append(f"{curve.run}: its configured number of steps is unknown; assumed to be finished.")
            if curve.finished or unfinished:
                curves.append(curve)
            if not curve.finished:
                progress = f"{curve.run}: unfinished, at step {curve.steps[-1]} of {curve.total_steps}"
                notices.append(f"{progress}." if unfinished else f"Left out: {progress}; --unfinished includes it.")
    if not curves:
        raise ValueError(" ".join(["There is no finished run to compare.", *notices]))
    if source is not None and (others := {curve.data_source for curve in curves} - {source}):
        raise ValueError(
            f"--source {source}: a JSON file has only curves of {others.pop()}. Remove the file or --source"
        )
    return curves, notices, first_label


def _split_label(word: str) -> tuple[str | None, Path]:
    """Split LABEL=FOLDER, unless a file or folder with the whole name exists."""
    label, sign, path = word.partition("=")
    if not sign or Path(word).exists():
        return None, Path(word)
    if not label or not path:
        raise ValueError(f"{word}: the label or the folder is empty. Use LABEL=FOLDER, or a folder")
    return label, Path(path)


def _print(comparison: Comparison, notices: list[str]) -> None:
    from verl_gsd.compare import comparison_words as words

    out.print(escape(words.describe_setup(comparison)), highlight=False)
    for notice in notices:
        out.print(f"- {escape(notice)}", highlight=False)
    _table(words.ACCURACY_TITLE, *words.accuracy_table(comparison))
    if len(comparison.rows) > 1:
        _table(words.against_title(comparison), *words.against_table(comparison))
    _table("Last validation of each run, at unequal numbers of tokens", *words.end_table(comparison))
    for caveat in words.caveats(comparison):
        out.print(f"- {escape(caveat)}", highlight=False)


def _table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=escape(title), title_justify="left")
    for name, width in zip(header, _widths([header, *rows], out.width), strict=True):
        table.add_column(escape(name), overflow="fold", width=width)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _widths(rows: list[list[str]], available: int) -> list[int] | list[None]:
    """Return widths of columns that break cells only between words, if the table then fits into ``available``.

    Rich would make wide columns equally narrow, and break words in one of them while another has space.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    longest_words = [max(cell_len(word) for cell in column for word in cell.split() or [""]) for column in columns]
    excess = sum(widths) + 3 * len(widths) + 1 - available  # rich's borders, and a space on both sides of a cell
    for _ in range(excess):
        shrinkable = [at for at, width in enumerate(widths) if width > longest_words[at]]
        if not shrinkable:
            return [None] * len(widths)
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths
