"""A report in a real browser, as large as a desktop and a phone: every chart is drawn, and text from data never runs.

Without a browser, these tests are skipped. With VERL_GSD_BROWSER=required, they fail instead.
"""

import csv
import functools
import io
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import altair as alt
import pytest
from report_runs import HOSTILE, everything, metrics, records

from verl_gsd.charts import Section, write_page
from verl_gsd.report import watch
from verl_gsd.report.build import build_sections, page_title, read_runs

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
DRAWN = "performance.getEntriesByName('drawn').length > 0"
#: Minimum number of coloured pixels in a chart, without its legends. A single point has more.
COLOURED = 20


@pytest.fixture(params=SIZES)
def visit(request, browser):
    """(address) -> the page, after its charts are drawn. Console output and network requests of the page are errors."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height})
    problems = []

    def go(address):
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.append(request.url) if request.url != address else None)
        page.goto(address)
        page.wait_for_function(DRAWN, timeout=120_000)
        return page

    yield go
    context.close()
    assert [line for line in problems if not line.startswith(("data:", "blob:"))] == []


def everything_of_a_run(folder):
    return [everything(folder / "run")]


def one_step(folder):
    records(folder / "run", 1, ([0, 1, 1, 1], "trained"), ([0, 0, 0, 0], "trained"), ([1, 1, 1, 1], "filtered"))
    return [folder / "run"]


LONG = "a_run_with_a_name_as_long_as_those_that_people_give_to_their_runs_2026_07_30"
#: A folder's name has no slash, but the name of a run has one if two folders have the same name.
HOSTILE_NAME = "script><img src=x onerror=window.hostile=1>"


def runs_together(folder):
    hostile = everything(folder / "a<" / HOSTILE_NAME, source=HOSTILE)
    runs = [hostile, everything(folder / "b" / HOSTILE_NAME, steps=5, seed=1), folder / LONG]
    metrics(runs[2], [(step, {"actor/entropy": 0.5}) for step in range(1, 60)])
    return runs


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(scenario) -> (address, sections) of the page of its runs, which is written once for all sizes."""

    @functools.cache
    def write(scenario):
        folder = tmp_path_factory.mktemp("runs")
        read = read_runs(scenario(folder))
        sections = build_sections(read)
        write_page(folder / "page.html", page_title(read), sections)
        return (folder / "page.html").as_uri(), sections

    return write


#: For every chart: its name, the number of its drawings, and its position on the page.
CHARTS = """[...document.querySelectorAll(".chart")].map(chart => {
  const { left, top, right, bottom } = chart.getBoundingClientRect();
  const place = [left + scrollX, top + scrollY, right + scrollX, bottom + scrollY];
  return [chart.dataset.of, chart.querySelectorAll("svg").length, place];
})"""


def check_page(page, sections):
    """Check that the page has every section, that every chart is drawn, and that the page fits its width."""
    from PIL import Image

    for section in sections:
        assert page.locator(f"section#{section.name} > h2").inner_text() == section.title
    page.add_style_tag(content=".role-legend { visibility: hidden }")
    charts = page.evaluate(CHARTS)
    assert len(charts) == sum(len(section.panels) for section in sections)
    seen = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    for name, drawings, place in charts:
        assert drawings == 1, name
        picture = seen.crop(tuple(map(round, place)))
        found = picture.getcolors(picture.width * picture.height)
        assert len(found) > 8, f"{name}: blank"  # edges of letters and axes alone have as many greys
        coloured = sum(count for count, colour in found if max(colour) - min(colour) > 40)
        assert coloured >= COLOURED, f"{name}: axes without content"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"


@pytest.mark.parametrize(
    ("scenario", "visit"),
    [(everything_of_a_run, "desk"), (everything_of_a_run, "phone"), (one_step, "desk")],
    indirect=["visit"],
)
def test_everything_is_drawn(visit, written, scenario):
    address, sections = written(scenario)
    assert len(sections) == 15 or scenario is one_step
    check_page(visit(address), sections)


def test_several_runs_are_drawn_and_text_from_data_is_shown_and_does_not_run(visit, written):
    address, sections = written(runs_together)
    page = visit(address)
    assert page.evaluate("window.hostile") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("section#accuracy").inner_text()
    title = page.locator("h1").inner_text()
    assert f"a</{HOSTILE_NAME}" in title and LONG in title
    check_page(page, sections)


def test_a_served_page_shows_new_steps(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "REFRESH", 1)
    metrics(tmp_path, [(1, {"actor/entropy": 0.5})])
    with ThreadingHTTPServer(("127.0.0.1", 0), watch.request_handler(watch.PageCache([tmp_path]))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            steps = page.locator("section#runs td").nth(1)
            assert steps.inner_text() == "1"
            metrics(tmp_path, [(step, {"actor/entropy": 0.5}) for step in (1, 2)])
            page.wait_for_function(
                "document.querySelectorAll('section#runs td')[1]?.innerText === '2'", timeout=120_000
            )
            page.close()
        finally:
            server.shutdown()
            thread.join()


# What the page does for its reader


def colour_of(page, selector, name="color"):
    return page.locator(selector).first.evaluate(f"element => getComputedStyle(element)['{name}']")


def lightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def colours(page):
    """Lightness, 0 to 765, of the page, its text, the text in charts and lines of series that are black on white."""
    page.evaluate("document.querySelector('.chart svg').innerHTML += '<path id=black stroke=#000000></path>'")
    seen = [("body", "background-color"), ("body", "color"), (".chart text", "fill"), ("#black", "stroke")]
    return [lightness(colour_of(page, *where)) for where in seen]


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_charts_and_text_follow_the_colours_of_the_system_and_the_choice_of_the_reader(visit, written):
    page = visit(written(everything_of_a_run)[0])
    for scheme, choice, is_dark in (
        ("light", "", False),
        ("dark", "", True),
        ("dark", "light", False),
        ("light", "dark", True),
    ):
        page.emulate_media(color_scheme=scheme)
        page.locator("#scheme").select_option(choice)
        paper, *ink = colours(page)
        assert (paper < 150 and min(ink) > 500) if is_dark else (paper > 700 and max(ink) < 200), (scheme, choice)
    page.reload()
    page.wait_for_function(DRAWN, timeout=120_000)
    assert page.locator("#scheme").input_value() == "dark" and colours(page)[0] < 150, "the choice is remembered"


@pytest.mark.parametrize("visit", SIZES, indirect=True)
def test_the_table_of_contents_stays_in_view_and_marks_the_section(visit, written):
    address, sections = written(everything_of_a_run)
    page = visit(address)
    links = page.locator("nav a")
    assert links.all_inner_texts() == [section.title for section in sections]
    page.locator("nav a[href='#waste']").click()
    page.wait_for_function("document.querySelector('nav a[aria-current]').hash === '#waste'")
    assert page.locator("nav").evaluate("nav => nav.getBoundingClientRect().top") >= 0
    assert page.locator("nav a[aria-current='location']").all_inner_texts() == ["Waste"]
    title, nav, link = (
        page.locator(name).bounding_box() for name in ("section#waste > h2", "nav", "nav a[href='#waste']")
    )
    assert nav["x"] <= link["x"] and link["x"] + link["width"] <= nav["x"] + nav["width"], "the link is in view"
    is_beside = nav["x"] + nav["width"] <= title["x"]
    assert is_beside or nav["y"] + nav["height"] <= title["y"], "it hides no title"


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_the_data_of_charts_can_be_downloaded_as_csv(visit, written, tmp_path):
    address, sections = written(everything_of_a_run)
    page = visit(address)
    panels = [panel for section in sections for panel in section.panels]
    assert page.locator("button[data-of]").count() == len(panels)
    of_each_kind = {str(panel.chart.to_dict().get("mark")): panel for panel in panels}
    assert 4 <= len(of_each_kind) <= 10, "Chromium allows a page no more downloads in a row"
    for panel in of_each_kind.values():
        with page.expect_download() as started:
            page.locator(f"button[data-of='{panel.name}-data']").click()
        assert started.value.suggested_filename == f"{panel.name}.csv"
        started.value.save_as(tmp_path / "data.csv")
        rows = list(csv.DictReader((tmp_path / "data.csv").open(encoding="utf-8", newline="")))
        drawn = panel.chart.to_dict()["data"]["values"]
        assert [{name: "" if value is None else value for name, value in row.items()} for row in drawn] == [
            {name: type(row[name])(value) if value else value for name, value in written_row.items()}
            for row, written_row in zip(drawn, rows, strict=True)
        ]


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_cells_of_csv_are_quoted_and_a_spreadsheet_computes_none(visit, tmp_path):
    names = ['=1+1, "a"', "@x", "-1", "line\rbreak"]
    points = [{"name": name, "value": value} for name, value in zip(names, (1.5, -2, None, 0), strict=True)]
    bars = alt.Chart(alt.Data(values=points)).mark_bar().encode(x="name:N", y="value:Q")
    line_at_zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule().encode(y="zero:Q")
    chart = alt.layer(line_at_zero, bars)
    write_page(tmp_path / "page.html", "A page", [Section("a", "A", chart=chart)])
    page = visit((tmp_path / "page.html").as_uri())
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV").click()
    started.value.save_as(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            *(["name", "value"], ['\'=1+1, "a"', "1.5"], ["'@x", "-2"], ["'-1", ""], [r"line\rbreak", "0"])
        ]


@pytest.mark.parametrize("visit", ["desk"], indirect=True)
def test_entries_are_opened_filtered_and_stay_open_when_the_page_is_loaded_again(visit, written):
    page = visit(written(everything_of_a_run)[0])
    entries = page.locator("section#prompts details")
    assert entries.count() == 9
    response = entries.nth(2).locator(".quotes pre").first
    assert not response.is_visible()
    entries.nth(2).locator("summary").click()
    assert response.is_visible()
    page.reload()
    page.wait_for_function(DRAWN, timeout=120_000)
    assert response.is_visible() and not entries.nth(1).locator(".quotes pre").first.is_visible()
    page.get_by_role("searchbox").fill("MATH 7")
    assert [entry.is_visible() for entry in entries.all()].count(True) == 1
    page.get_by_role("searchbox").fill("")
    assert all(entry.is_visible() for entry in entries.all())


def test_no_script_of_others_runs_even_if_it_is_in_the_page(browser, written, tmp_path):
    """Escaping is tested elsewhere. This is what the security policy adds."""
    address, _ = written(everything_of_a_run)
    text = Path(address.removeprefix("file://")).read_text()
    script = "<script>window.hostile = 1</script><img src=data:, onerror='window.hostile = 1'><main>"
    (tmp_path / "page.html").write_text(text.replace("<main>", script))
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function(DRAWN, timeout=120_000)
    assert page.evaluate("window.hostile") is None
    page.close()
