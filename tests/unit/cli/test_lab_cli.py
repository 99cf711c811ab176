"""``verl-gsd lab`` as a user meets it: tables, a page, pictures, and mistakes."""

import json
import math
import re

import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app

SMALL = ("--prompts", "40", "--steps", "4")


def lab(*words, width=200):
    return CliRunner().invoke(app, ["lab", *map(str, words)], env={"COLUMNS": str(width)})


def said(result):
    """What was printed, on one line: a terminal may break it anywhere."""
    return " ".join(result.output.split())


@pytest.fixture
def counts(tmp_path):
    """A table of five prompts, the rate of one of which nobody knows."""
    file = tmp_path / "rates.jsonl"
    rates = [0.0, 0.25, None, 0.5, 0.9375]
    file.write_text("".join(json.dumps({"id": number, "solved": rate}) + "\n" for number, rate in enumerate(rates)))
    return file


def coloured(picture):
    """Share of a picture's pixels that are neither grey, white nor black: what is drawn, not its axes."""
    image = pytest.importorskip("PIL.Image").open(picture).convert("HSV")
    return sum(count for count, (_, saturation, _) in image.getcolors(1 << 24) if saturation > 60) / math.prod(
        image.size
    )


def row_of(result, figure):
    (line,) = [line for line in result.output.splitlines() if f" {figure} " in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_published_and_recomputed_stand_side_by_side_and_the_mixture_is_called_one():
    result = lab(*SMALL, "--algo", "grpo", "--algo", "alpha=-1")
    assert result.exit_code == 0, result.output
    assert row_of(result, "smallest G, p = 0.05, fidelity 99%") == [
        "smallest G, p = 0.05, fidelity 99%",
        "273",
        "273",
        "0",
        "",
    ]
    _, published, recomputed, difference, _ = row_of(result, "silent groups, G = 8, unbiased, %")
    assert published == "43.07"
    assert float(difference) == pytest.approx(float(recomputed) - 43.07, abs=1e-9) and float(difference) != 0
    assert "Beta mixture" in said(result)
    assert "other settings" in row_of(result, "hardest quarter at the end, grpo")[-1]
    assert "dr_grpo" not in result.output
    assert row_of(result, "alpha=-1")[-2] == "32"  # 4 steps of 8


def test_a_file_of_rates_is_what_figures_and_runs_are_of(counts):
    result = lab(*SMALL, "--algo", "dapo", "--solve-rates", counts, "--column", "solved", "--samples", "16")
    assert result.exit_code == 0, result.output
    assert row_of(result, "never solved, %")[2] == "25.0"
    assert "no prompt has 32 responses" in row_of(result, "silent groups, G = 32, unbiased, %")[-1]
    assert "row 2" in said(result)
    assert re.sub(r"\s", "", str(counts)) in re.sub(r"\s", "", result.output)
    assert "Beta mixture" not in said(result)


def test_the_same_seed_prints_the_same_and_another_does_not():
    first, again, other = (lab(*SMALL, "--algo", "grpo", "--seed", seed).output for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_page_and_pictures_are_written(tmp_path):
    page, folder = tmp_path / "new" / "lab.html", tmp_path / "png"
    names = ("grpo", "alpha=0.5", "alpha=-0.5", "gvpo_ref")
    result = lab(*SMALL, *(word for name in names for word in ("--algo", name)), "--output", page, "--png", folder)
    assert result.exit_code == 0, result.output
    written = page.read_text()
    assert "GRPO" in written and "273" in written
    pictures = sorted(folder.iterdir())
    assert len(pictures) == 3 + len(names) and "7 charts" in said(result)
    for picture in pictures:
        assert picture.suffix == ".png"
        assert f'data-of="{picture.stem}-data"' in written
        assert coloured(picture) > 0.001
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_page_draws_all_its_charts_in_a_browser(tmp_path, browser):
    page = tmp_path / "lab.html"
    assert lab(*SMALL, "--algo", "grpo", "--algo", "dapo", "--output", page).exit_code == 0
    tab, complaints = browser.new_page(viewport={"width": 390, "height": 800}), []
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_function("performance.getEntriesByName('drawn').length", timeout=120_000)
    marks = tab.eval_on_selector_all(".chart", "places => places.map(p => p.querySelectorAll('svg path').length)")
    assert complaints == []
    assert len(marks) == 5 and min(marks) > 5
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()


def test_markup_in_a_files_name_is_text(tmp_path):
    file = tmp_path / "[bold]<b>x.csv"
    file.write_text("solve_rate\n0.5\n0.25\n")
    page = tmp_path / "lab.html"
    result = lab(*SMALL, "--algo", "grpo", "--solve-rates", file, "--column", "solve_rate", "--output", page)
    assert result.exit_code == 0, result.output
    assert "[bold]<b>x.csv" in re.sub(r"\s", "", result.output)
    assert "[bold]&lt;b&gt;x.csv" in page.read_text() and "<b>x" not in page.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--algo", "nope"], "nope: .*grpo, dr_grpo"),
        (["--algo", "gspo"], "gspo: "),
        (["--output", "page.pdf"], r"--output page\.pdf: .*\.html"),
        (["--png", "FILE"], "--png .*folder"),
        (["--column", "solved"], "--column: .*--solve-rates"),
        (["--total-column", "n"], "--total-column: .*--solve-rates"),
        (["--solve-rates", "absent.csv"], r"absent\.csv: "),
        (["--solve-rates", "FILE", "--column", "id"], "row 2"),
        (["--solve-rates", "FILE", "--column", "nope"], "column nope "),
        (["--solve-rates", "FILE", "--correct-column", "id", "--samples", "3"], "row 4"),
        (["--solve-rates", "EMPTY", "--column", "solved"], "EMPTY"),
        (["--solve-rates", "ENDS", "--column", "solved"], " 2 .*0 or 1"),
    ],
)
def test_a_mistake_ends_the_command_before_it_runs_with_what_to_write(words, says, counts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY.csv").write_text("solved\n")
    (tmp_path / "ENDS.csv").write_text("solved\n0\n1\n")
    names = {"FILE": str(counts), "EMPTY": "EMPTY.csv", "ENDS": "ENDS.csv"}
    before = sorted(tmp_path.iterdir())
    output = [] if "--output" in words else ["--output", "page.html"]
    result = lab(*SMALL, *(names.get(word, word) for word in words), *output)
    assert result.exit_code == 2
    assert re.search(says, said(result))
    assert "figure" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [["--prompts", "3"], ["--steps", "0"], ["--group-size", "1"], ["--seed", "-1"]])
def test_numbers_out_of_range_are_refused(words):
    result = lab(*words)
    assert result.exit_code == 2
    assert words[0] in said(result)
