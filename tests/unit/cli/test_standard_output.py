"""Standard output has the result of a command. Progress, notes, warnings and errors are on standard error."""

import json
import re

import pytest
from places import ROOT
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.console import err, out

SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "verl_gsd").rglob("*.py")}


def test_the_two_consoles_write_to_the_two_streams(capsys):
    out.print("result")
    err.print("note")
    assert capsys.readouterr() == ("result\n", "note\n")


def test_bars_and_statuses_are_on_standard_error():
    """Without a terminal, rich prints the last state of a bar that is not transient."""
    consoles = re.compile(r"\bconsole=(\w+)|\b(\w+)\.status\(")
    used = {(path.name, a or b) for path, text in SOURCES.items() for a, b in consoles.findall(text)}
    assert sum(name == "err" for _, name in used) > 5
    assert [file for file, name in used if name == "out"] == []


@pytest.fixture
def responses(tmp_path):
    file = tmp_path / "responses.jsonl"
    rows = [{"problem": "2 + 2", "response": rf"so \\boxed{{{answer}}}", "answer": "4"} for answer in (4, 5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_verify_prints_its_tables_and_shows_progress_elsewhere(responses):
    done = CliRunner().invoke(app, ["verify", str(responses)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("┏") and "2 pairs: 1 right" in done.stdout
    assert "compared" not in done.stdout and re.search("compared .*2/2", done.stderr)


def test_judge_score_prints_its_counts_and_shows_progress_and_notes_elsewhere(responses, tmp_path):
    words = ["judge", "score", str(responses), "--output", str(tmp_path / "scored.jsonl"), "--scorer", "stub"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("2 responses: ")
    assert "no column reference" in done.stderr and re.search("scored .*2/2", done.stderr)
    assert "no column reference" not in done.stdout
