"""Self-contained pages. test_report_browser.py tests them in a browser."""

import base64
import hashlib
import itertools
import re
from pathlib import Path

import altair as alt
import pytest

from verl_gsd.charts import (
    COLOURS,
    Entry,
    KeyFigure,
    KeyFigureRow,
    Notice,
    Panel,
    Quote,
    QuoteColumn,
    Section,
    Table,
    page,
    render_page,
    write_page,
    write_png,
)
from verl_gsd.charts.theme import PAGE_COLOURS

POINTS = alt.Chart(alt.Data(values=[{"step": 1, "rate": 0.5}, {"step": 2, "rate": 0.25}])).mark_line()
CHART = POINTS.encode(x="step:Q", y="rate:Q")


def test_page_loads_nothing_and_runs_no_script_but_its_own():
    written = render_page("A run", [Section("rate", "Rate", ["In words."], CHART)])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', written)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules.keys() == {"default-src", "img-src", "style-src", "script-src"}
    scripts = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [*(f"'sha256-{value}'" for value in hashes), "'unsafe-eval'"]
    assert len(hashes) == 3
    assert "<script src" not in written and '<link rel="stylesheet"' not in written


def test_policy_text_is_escaped_everywhere():
    hostile = "</script><script>alert(1)</script><!--"
    chart = alt.Chart(alt.Data(values=[{"step": hostile, "rate": 1}])).mark_bar().encode(x="step:N", y="rate:Q")
    empty = chart.properties(data=alt.Data(values=[]))

    def with_text(text, drawn):
        parts = {"notices": [Notice(text, text, [text])], "panels": [Panel("b", text, drawn)]}
        parts["figures"] = [KeyFigureRow(text, [KeyFigure(text, text, text)])]
        parts["entries"] = [Entry(text, text, text, [QuoteColumn(text, [Quote(text, text)])])]
        return render_page(
            text, [Section("a", text, [text], drawn, Table([text], [[text]]), **parts), Section("c", text)]
        )

    with_it, without = with_text(hostile, chart), with_text("text", empty)
    for mark in ("<script>", "</script>", "<!--", "alert(1)</script"):
        assert with_it.count(mark) == without.count(mark)


def test_section_names_must_be_unique():
    with pytest.raises(ValueError, match=r"\['a', 'a'\]"):
        render_page("", [Section("a", ""), Section("a", "")])
    with pytest.raises(ValueError, match=r"\['a', 'a'\]"):
        render_page("", [Section("a", "", panels=[Panel("a", "", CHART)])])


def test_files_are_written_atomically(tmp_path):
    write_png(CHART, tmp_path / "new" / "rate.png")
    assert (tmp_path / "new" / "rate.png").read_bytes().startswith(b"\x89PNG")
    write_page(tmp_path / "page.html", "A run", [Section("rate", "Rate", chart=CHART)], refresh=5)
    assert 'http-equiv="refresh" content="5"' in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError):
        write_page(
            tmp_path / "nan.html",
            "",
            [Section("a", "", chart=CHART.properties(data=alt.Data(values=[{"x": float("nan")}])))],
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "page.html"]


def test_page_of_several_sections_links_to_them():
    assert 'href="#b"' in render_page("", [Section(name, "A title") for name in "abc"])
    assert "<nav" not in render_page("", [Section("a", "A title")])


# Colours


def in_scheme(value, scheme):
    """The colour #RRGGBB of ``value``: a colour, a light-dark(), or a variable of page.css."""
    if variable := re.fullmatch(r"var\((--[a-z-]+)\)", value):
        style = Path(page.__file__).with_name("page.css").read_text()
        (value,) = re.findall(rf"{variable[1]}: (light-dark\(.*?\));", style)
    if pair := re.fullmatch(r"light-dark\((#\w{6}), (#\w{6})\)", value):
        return pair[1 if scheme == "light" else 2]
    assert re.fullmatch(r"#\w{6}", value), value
    return value


def contrast(first, second):
    """The ratio of WCAG 2: 1 for equal colours, 21 for black on white."""

    def luminance(colour):
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(luminance(colour) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme):
    for text, behind in itertools.product(("--ink", "--faint", "--link"), ("--paper", "--raised", "--alert")):
        assert contrast(*(in_scheme(f"var({name})", scheme) for name in (text, behind))) >= 4.5, (text, behind)


def test_every_line_of_a_chart_can_be_seen_on_dark_pages_and_the_first_four_on_light_ones():
    for scheme, seen in (("dark", COLOURS), ("light", COLOURS[:4])):
        paper = in_scheme("var(--paper)", scheme)
        for colour in seen:
            assert contrast(in_scheme(PAGE_COLOURS.get(colour, colour), scheme), paper) >= 2.9, (scheme, colour)
