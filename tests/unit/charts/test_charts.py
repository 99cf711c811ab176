"""Self-contained pages. test_report_browser.py tests them in a browser."""

import altair as alt
import pytest

from verl_gsd.charts import Notice, Panel, Section, Table, render_page, write_page, write_png

POINTS = alt.Chart(alt.Data(values=[{"step": 1, "rate": 0.5}, {"step": 2, "rate": 0.25}])).mark_line()
CHART = POINTS.encode(x="step:Q", y="rate:Q")


def test_page_loads_nothing():
    written = render_page("A run", [Section("rate", "Rate", ["In words."], CHART)])
    assert "default-src 'none'" in written
    assert "<script src" not in written and '<link rel="stylesheet"' not in written


def test_policy_text_is_escaped_everywhere():
    hostile = "</script><script>alert(1)</script><!--"
    chart = alt.Chart(alt.Data(values=[{"step": hostile, "rate": 1}])).mark_bar().encode(x="step:N", y="rate:Q")
    empty = chart.properties(data=alt.Data(values=[]))

    def with_text(text, drawn):
        parts = {"notices": [Notice(text, text, [text])], "panels": [Panel("b", text, drawn)]}
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
    assert "<nav>" not in render_page("", [Section("a", "A title")])
