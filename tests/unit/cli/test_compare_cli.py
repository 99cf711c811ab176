"""``verl-gsd compare`` from the command line: tables, files and errors."""

import json
import re
import shutil

import pytest
from comparison_runs import write_run
from report_runs import HOSTILE
from typer.testing import CliRunner

from verl_gsd.cli.main import app


def compare(*words, columns=250):
    return CliRunner().invoke(app, ["compare", *map(str, words)], env={"COLUMNS": str(columns), "NO_COLOR": "1"})


def cells(result, label, table):
    """The cells of a label's row, without the label, in the table with this number."""
    found = [line.strip("│").split("│") for line in result.output.splitlines() if re.match(rf"│ {label} +│", line)]
    return [cell.strip() for cell in found[table][1:]]


@pytest.fixture
def runs(tmp_path):
    """Two methods with two seeds each. hadw generates fewer tokens per step and learns more."""
    made = []
    for seed in (1, 2):
        made.append(write_run(tmp_path / "grpo" / f"seed_{seed}", [10] * 4, {0: 0.0, 2: 0.2, 4: 0.4}, total=4))
        made.append(write_run(tmp_path / "hadw" / f"seed_{seed}", [5] * 4, {0: 0.0, 4: 0.3 + seed / 10}, total=4))
    return made


def test_methods_are_compared_at_equal_tokens_and_results_are_written(tmp_path, runs):
    output, page = tmp_path / "out" / "c.json", tmp_path / "out" / "c.html"
    result = compare(*runs, "--output", output, "--page", page)
    assert result.exit_code == 0, result.output
    assert "to 20 tokens, because hadw seed 1 " in result.output
    assert cells(result, "grpo", 0)[:2] == ["1, 2", "0.050"], "equal values, of a number of responses that is unknown"
    assert cells(result, "hadw", 0)[4] == "0.450 [0.000, 1.000]"
    assert cells(result, "hadw", 1)[0].startswith("+0.250 [-0.385, +0.885]")
    assert cells(result, "hadw", 1)[2:] == ["2, 0, 0", "0.5", "0.5", "no difference seen at 95%"]
    assert cells(result, "grpo", 1)[:2] == ["4", "40"], "the table of ends has the baseline, that of differences not"
    content = json.loads(output.read_text())
    assert [curve["label"] for curve in content["curves"]] == ["grpo", "hadw"] * 2
    assert sorted(file.name for file in output.parent.iterdir()) == ["c.html", "c.json"]
    written = page.read_text()
    for said in ("grpo", "hadw", "no difference seen at 95%", "generated tokens"):
        assert said in written
    own = re.sub(r"<script>.*?</script>", "", written, flags=re.DOTALL)
    own = own.replace("https://vega.github.io/schema/", "")
    assert "://" not in own and "src=" not in own, "nothing is loaded from anywhere"


def test_a_folder_of_runs_is_rejected_with_the_pattern_that_matches_them(tmp_path, runs):
    result = compare(tmp_path / "grpo", tmp_path / "hadw" / "seed_1")
    assert result.exit_code == 2
    assert "this folder is not a run, but has 2 of them" in result.output
    assert f"`verl-gsd compare {tmp_path}/grpo/seed_*`" in result.output
    runs[0].rename(tmp_path / "grpo" / "first")
    assert f"`verl-gsd compare {tmp_path}/grpo/*`" in compare(tmp_path / "grpo").output


def test_tables_fit_a_terminal_of_80_columns(tmp_path):
    """No word of a header, a number or an interval is broken: only between words do cells wrap."""
    for label in ("small_groups", "dynamic"):
        for seed in range(1, 17):
            value = 0.5 + seed / 1000
            write_run(tmp_path / label / f"seed_{seed}", [5061] * 4, {0: 0.4, 2: value, 4: value + 0.04}, total=4)
    done = compare(*sorted(tmp_path.glob("*/seed_*")), columns=80)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    pieces = {piece for line in done.output.splitlines() if line[:1] in "│┃" for piece in re.split(r"[│┃\s]+", line)}
    for word in ("small_groups", "dynamic", "1-16", "20,244", "tokens,", "difference", "(Holm)", "verdict", "accuracy"):
        assert word in pieces, word
    assert all(
        re.fullmatch(r"[-+]?\[?[-+]?\d\.\d{3}[\],]?", piece) for piece in pieces if "." in piece and len(piece) > 4
    )


def test_another_baseline_flips_the_sign(runs):
    result = compare(*runs, "--baseline", "hadw")
    assert cells(result, "grpo", 1)[0].startswith("-0.250")


def test_earlier_comparison_replaces_deleted_runs(tmp_path, runs):
    earlier, later = tmp_path / "earlier.json", tmp_path / "later.json"
    assert compare(*runs, "--output", earlier).exit_code == 0
    shutil.rmtree(tmp_path / "grpo")
    third = write_run(tmp_path / "hadw" / "seed_3", [5] * 4, {0: 0.0, 4: 0.3}, total=4)
    result = compare(earlier, third, "--output", later)
    assert result.exit_code == 0, result.output
    assert cells(result, "hadw", 0)[0] == "1-3"
    assert cells(result, "grpo", 0)[0] == "1, 2 (partial: 2 of 3)"
    assert len(json.loads(later.read_text())["curves"]) == 5
    again = compare(earlier, runs[1])
    assert again.exit_code == 2 and "hadw seed 1" in again.output


def test_label_can_be_given(tmp_path, runs):
    word = tmp_path / "a=b" / "seed_1"
    shutil.copytree(runs[1], word)
    result = compare(runs[0], f"mine={runs[1]}", word)
    assert result.exit_code == 0, result.output
    assert cells(result, "mine", 0) and cells(result, "a=b", 0), "a folder may have the sign in its name"


def test_one_run_cannot_be_two_methods(runs):
    result = compare(runs[0], f"mine={runs[0]}")
    assert result.exit_code == 2
    assert f"{runs[0]} and mine={runs[0]}: " in result.output.replace("\n", "")


def test_unfinished_runs_are_left_out_by_default(tmp_path, runs):
    write_run(tmp_path / "hadw" / "seed_3", [5] * 3, {0: 0.0, 2: 0.9}, total=4)
    write_run(tmp_path / "hadw" / "seed_4", [5], {}, total=4)
    runs += [tmp_path / "hadw" / "seed_3", tmp_path / "hadw" / "seed_4"]
    result = compare(*runs)
    assert result.exit_code == 0
    assert re.search(r"seed_3: .*step 2 of 4.*--unfinished", result.output)
    assert re.search(r"seed_4: .*step 1 of 4.*validation", result.output)
    assert cells(result, "hadw", 0)[0] == "1, 2"
    result = compare(*runs, "--unfinished")
    assert cells(result, "hadw", 0)[0] == "1-3"
    assert "to 10 tokens, because hadw seed 3 " in result.output
    write_run(tmp_path / "early" / "seed_1", [5], {}, total=4)
    result = compare(tmp_path / "early" / "seed_1", *runs[:2])
    assert result.exit_code == 2 and "baseline" in result.output and "early" in result.output, "not another baseline"
    result = compare(*runs[-2:])
    assert result.exit_code == 2
    assert re.search("(?s)seed_3.*seed_4", result.output)


def test_one_of_several_data_sources_is_compared(tmp_path, runs):
    for run in runs:
        path = run / "metrics" / "attempt_1.jsonl"
        path.write_text(path.read_text().replace('"val-core/math/', '"val-core/code/acc/mean@1": 0.5, "val-core/math/'))
    result = compare(*runs)
    assert result.exit_code == 2 and "code, math" in result.output
    result = compare(*runs, "--source", "code", "--output", tmp_path / "c.json")
    assert cells(result, "hadw", 0)[4].startswith("0.500")
    result = compare(tmp_path / "c.json", "--source", "math")
    assert result.exit_code == 2 and re.search("--source math: .*code", result.output)


def test_untrusted_text_is_escaped(tmp_path):
    run = write_run(tmp_path / "<b>[bold]x" / "seed_1", [5], {1: 0.5}, source=HOSTILE)
    result = compare(run, "--page", tmp_path / "c.html")
    assert result.exit_code == 0, result.output
    assert "[bold]x" in result.output
    written = (tmp_path / "c.html").read_text()
    assert "<img src=x" not in written and "&lt;img src=x" in written
    assert "<b>" not in re.sub(r"<script>.*?</script>", "", written, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tmp}/absent"], "absent: "),
        (["mine={tmp}/absent"], "absent: "),
        (["={tmp}/absent"], "LABEL=FOLDER"),
        (["{run}", "{run}"], "grpo seed 1"),
        (["{run}", "{elsewhere}"], "data.val_files .*'test.parquet' .*'other.parquet'"),
        (["{run}", "{file}"], "file.json: .*version"),
        (["mine={file}"], "file.json: "),
        (["{run}", "--baseline", "dapo"], "--baseline dapo: .*grpo"),
        (["{run}", "--output", "c.txt"], r"--output c\.txt: .*\.json"),
        (["{run}", "--page", "c.htm"], r"--page c\.htm: .*\.html"),
        (["{run}", "--page", "{folder}"], r"folder\.html: "),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, words, said):
    places = {"tmp": tmp_path, "file": tmp_path / "file.json"}
    places["run"] = write_run(tmp_path / "grpo" / "seed_1", [5], {1: 0.5})
    places["elsewhere"] = write_run(tmp_path / "a" / "seed_1", [5], {1: 0.5}, data__val_files="other.parquet")
    places["file"].write_text("{}")
    places["folder"] = tmp_path / "folder.html"
    places["folder"].mkdir()
    before = sorted(tmp_path.rglob("*"))
    outputs = (
        [] if {"--output", "--page"} & set(words) else ["--output", tmp_path / "c.json", "--page", tmp_path / "c.html"]
    )
    result = compare(*(word.format(**places) for word in words), *outputs)
    assert result.exit_code == 2, result.output
    assert re.search(said, " ".join(result.output.split()))
    assert sorted(tmp_path.rglob("*")) == before


def test_unwritable_output_is_reported_and_nothing_is_left(tmp_path, runs):
    (tmp_path / "file").write_text("")
    result = compare(*runs, "--output", tmp_path / "file" / "c.json")
    assert result.exit_code == 1 and str(tmp_path / "file") in result.output.replace("\n", "")


def test_more_methods_than_colours_give_a_table_and_no_page(tmp_path):
    runs = [write_run(tmp_path / f"m{number}" / "seed_1", [5], {1: 0.5}) for number in range(9)]
    assert compare(*runs).exit_code == 0
    result = compare(*runs, "--output", tmp_path / "c.json", "--page", tmp_path / "c.html")
    assert result.exit_code == 2 and "colours" in result.output and " 8 " in result.output
    assert not list(tmp_path.glob("c.*"))
