"""``verl-gsd compare RUN...``: methods at equal generated tokens, over seeds, with intervals and a paired test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.console import fail, out

if TYPE_CHECKING:
    from verl_gsd.compare.comparison import Comparison
    from verl_gsd.compare.curves import Curve


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="LABEL/seed_N folders, LABEL=FOLDER, or what --output wrote before."),
    ],
    baseline: Annotated[str | None, typer.Option(help="The label all are compared with; the first RUN's.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Data source of the held-out prompts, where there are some.")
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Runs before their last step take part as far as they are.")
    ] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Figures and curves.")] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE.html", help="A page with the curves.")] = None,
) -> None:
    """Held-out accuracy of methods at equal generated tokens, over seeds.

    Needs records and validations of every run. A file of earlier results takes part with the curves it has.
    """
    for option, path, suffix in (("--output", output, ".json"), ("--page", page, ".html")):
        if path is not None and (path.suffix != suffix or path.is_dir()):
            fail(f"{option} {path}: write the name of a file that ends in {suffix}")
    from verl_gsd.charts import write_page
    from verl_gsd.compare.comparison import compare as compared
    from verl_gsd.compare.comparison_file import write_comparison
    from verl_gsd.compare.comparison_page import TITLE, sections

    try:
        curves, notices, first = _curves(runs, source, unfinished)
        found = compared(curves, baseline or first)
        drawn = sections(found, notices) if page else []
    except (OSError, ValueError) as error:
        fail(str(error))
    _print(found, notices)
    try:
        if output is not None:
            write_comparison(output, found)
        if page is not None:
            write_page(page, TITLE, drawn)
    except OSError as error:
        fail(f"not written: {error}", code=1)
    for path in (output, page):
        if path is not None:
            out.print(escape(str(path)), soft_wrap=True, highlight=False)


def _curves(runs: list[str], source: str | None, unfinished: bool) -> tuple[list[Curve], list[str], str]:
    """The curves that take part, a sentence for each run that does not, or not with all its steps, and the first's
    label, whether it takes part or not."""
    from verl_gsd.compare.comparison_file import read_curves
    from verl_gsd.compare.run_curves import NothingYetError, read_curve

    curves: list[Curve] = []
    notices: list[str] = []
    first = ""
    folders: dict[Path, str] = {}
    for word in runs:
        label, place = _named(word)
        if not place.exists():
            raise ValueError(f"{place}: neither a run directory nor a file of earlier results is there")
        if (twin := folders.setdefault(place.resolve(), word)) != word:
            raise ValueError(f"{twin} and {word}: both are {place}. Leave one out")
        try:
            read = [read_curve(place, label, source)] if place.is_dir() or label else read_curves(place)
        except NothingYetError as error:
            first = first or error.label
            notices.append(f"Left out: {error}.")
            continue
        for curve in read:
            first = first or curve.label
            if not set(curve.validation) - {"metric"}:
                notices.append(f"{curve.run}: nothing says how it was validated; taken for validated as the others.")
            if curve.total_steps is None:
                notices.append(f"{curve.run}: nothing says how long it was to be; taken as far as it is.")
            if curve.finished or unfinished:
                curves.append(curve)
            if not curve.finished:
                at = f"{curve.run}: unfinished, at step {curve.steps[-1]} of {curve.total_steps}"
                notices.append(f"{at}." if unfinished else f"Left out: {at}; --unfinished takes it as far as it is.")
    if not curves:
        raise ValueError(" ".join(["no finished run to compare.", *notices]))
    if source is not None and (other := {curve.data_source for curve in curves} - {source}):
        raise ValueError(f"--source {source}: a file has curves of {other.pop()} alone. Leave it out, or --source")
    return curves, notices, first


def _named(word: str) -> tuple[str | None, Path]:
    """LABEL=FOLDER in two, unless there is something of that name."""
    label, sign, place = word.partition("=")
    if not sign or Path(word).exists():
        return None, Path(word)
    if not label or not place:
        raise ValueError(f"{word}: write LABEL=FOLDER, or a folder")
    return label, Path(place)


def _print(found: Comparison, notices: list[str]) -> None:
    from verl_gsd.compare import comparison_words as words

    out.print(escape(words.setting(found)), highlight=False)
    for notice in notices:
        out.print(f"- {escape(notice)}", highlight=False)
    _table("Accuracy", *words.accuracy_table(found))
    if len(found.rows) > 1:
        _table(f"Against {found.baseline}, at {found.budgets[-1]:,} tokens", *words.against_table(found))
    _table("Where runs ended, at unequal tokens", *words.end_table(found))
    for caveat in words.caveats(found):
        out.print(f"- {escape(caveat)}", highlight=False)


def _table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(*map(escape, header), title=escape(title), title_justify="left")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
