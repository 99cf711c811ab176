"""A report in a real browser, as large as a desktop and a phone: every chart is drawn, and text from data never runs.

Without a browser, these tests are skipped. With VERL_GSD_BROWSER=required, they fail instead.
"""

import functools
import io
import threading
from http.server import ThreadingHTTPServer

import pytest
from report_runs import HOSTILE, everything, metrics, records

from verl_gsd.charts import write_page
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
    assert [line for line in problems if not line.startswith("data:")] == []


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
    assert len(sections) == 13 or scenario is one_step
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
