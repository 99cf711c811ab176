"""Results: figures against formulas, the comparison of two models, and the files."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from verl_gsd.cli.evaluate_tables import results_table, write_summary
from verl_gsd.evaluation.benches import BenchQuestion
from verl_gsd.evaluation.results import BenchResult, build_result, compare, read_result, write_result

SETTINGS = {"model": {"checkpoint": "a"}, "bench": "mini", "temperature": 0.6}


def result(correct, samples=4, figures=None, **settings):
    correct, figures = np.array(correct), {"unverified": 0.0, "cut_off": 0.0} | (figures or {})
    return BenchResult(SETTINGS | settings, np.arange(len(correct)), samples, correct, figures)


def test_figures_follow_the_papers_formulas():
    one_result = result([4, 2, 0, 1])
    assert one_result.average().value == pytest.approx(7 / 16)
    # Three pseudo-questions, half of them solved, and t of 3 degrees of freedom at 0.975.
    mean, squares = (1.75 + 1.5) / 7, (1 + 0.25 + 0.0625 + 1.5) / 7
    spread = math.sqrt((squares - mean**2) / 7) * 3.182446305284263
    assert (one_result.average().low, one_result.average().high) == pytest.approx(
        (max(mean - spread, 0), mean + spread)
    )
    assert mean + spread < 1
    passing = one_result.pass_at_k()
    assert list(passing) == [2, 4]
    # Of four samples with c right: 1 - C(4 - c, 2) / C(4, 2).
    assert passing[2].value == pytest.approx((1 + 5 / 6 + 0 + 1 / 2) / 4)
    assert passing[4].value == pytest.approx(3 / 4)


def test_one_sample_has_no_pass_at_k_above_one():
    assert result([1, 0], samples=1).pass_at_k() == {}
    assert list(result([1, 0], samples=6).pass_at_k()) == [2, 4]


def test_two_models_are_compared_question_by_question():
    pair = compare(result([0, 0, 1, 2], model={"checkpoint": "a"}), result([1, 2, 4, 2], model={"checkpoint": "b"}))
    assert pair.difference.value == pytest.approx((1 + 2 + 3 + 0) / 16)
    # Two pseudo-questions with the differences 1 and -1, and t of 3 degrees of freedom at 0.975.
    mean, squares = 1.5 / 6, (1 / 16 + 1 / 4 + 9 / 16 + 2) / 6
    half = math.sqrt((squares - mean**2) / 6) * 3.182446305284263
    assert (pair.difference.low, pair.difference.high) == pytest.approx((mean - half, min(mean + half, 1)))
    assert (pair.wins, pair.ties, pair.losses) == (3, 1, 0)
    assert pair.p_value == pytest.approx(2 / 8), "of three differences all have one sign in two of eight patterns"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (result([1], temperature=1.0), r"temperature\b.*0\.6\b.*1\.0\b"),
        (result([1], bench_sha256="x"), r"bench_sha256\b.*None\b.*'x'"),
        (result([1, 1]), "questions.*samples"),
        (result([1], samples=2), "questions.*samples"),
    ],
)
def test_results_with_other_settings_are_not_compared(other, message):
    with pytest.raises(ValueError, match=message):
        compare(result([1]), other)


def test_a_written_result_is_read_unchanged(tmp_path):
    one_result = result([4, 2, 0, 1])
    write_result(tmp_path, one_result)
    again = read_result(tmp_path, within=tmp_path)
    assert (again.settings, again.samples, again.figures) == (
        one_result.settings,
        one_result.samples,
        one_result.figures,
    )
    assert again.correct.tolist() == [4, 2, 0, 1] and again.average() == one_result.average()
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["average"]["value"] == 7 / 16 and written["pass_at_k"]["4"]["value"] == 3 / 4
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"format": 2},
            {"correct": [5, 0, 0, 0]},
            {"correct": [1]},
            {"correct": "x"},
            {"settings": 3},
            {"samples": 0},
        ),
        *({"levels": ["1"]}, {"levels": [1, 2, 3, 4]}, {"levels": 3}),
    ],
)
def test_the_error_for_an_invalid_result_names_the_file(tmp_path, change):
    write_result(tmp_path, result([4, 2, 0, 1]))
    file = tmp_path / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=r"result\.json: "):
        read_result(tmp_path, within=tmp_path)


def test_the_table_shows_the_llm_verifier_with_its_interval():
    llm_figures = {
        "second_failed": 0.5,
        "second_accuracy": 0.25,
        "second_accuracy_low": 0.1,
        "second_accuracy_high": 0.4,
    }
    one = result([4, 2, 0, 1], figures=llm_figures | {"second_agreement": 0.75})
    cells = list(results_table({"mini": one}, {}).columns[3].cells)
    assert any(re.search(r"0\.250 \[0\.100, 0\.400\].*0\.750.*50\.0%", cell) for cell in cells)
    none = result([4, 2, 0, 1], figures={"second_failed": 1.0})
    assert any("100.0%" in cell for cell in results_table({"mini": none}, {}).columns[3].cells)


def test_the_table_and_the_summary_have_equal_values(tmp_path):
    results, others = {"mini": result([4, 2, 0, 1])}, {"mini": result([0, 0, 0, 0], model={"checkpoint": "base"})}
    rows = [list(column.cells) for column in results_table(results, others).columns]
    write_result(tmp_path / "earlier", result([1], bench="earlier"))
    write_summary(tmp_path, results, others)
    summed = json.loads((tmp_path / "results.json").read_text())
    assert summed["earlier"]["average"] == {"value": 0.25, "low": 0.0, "high": 1.0, "n": 1}, "from an earlier command"
    summed = summed["mini"]
    assert rows[3][0] == "0.438 [0.000, 0.983]" and summed["average"]["value"] == 7 / 16
    assert rows[5][0].startswith("0.438 [") and summed["against"]["difference"]["value"] == 7 / 16
    assert summed["against"]["model"] == "base" and rows[7][0] == "3, 1, 0"


def test_accuracy_is_reported_by_level_in_the_order_of_levels(tmp_path):
    levels = ["Level 10", "Level 2", None, "Level 10"]
    one = replace(result([4, 2, 0, 1]), levels=levels)
    assert {level: (at.value, at.n) for level, at in one.average_by_level().items()} == {
        "Level 2": (0.5, 1),
        "Level 10": (5 / 8, 2),
    }
    assert list(one.average_by_level()) == ["Level 2", "Level 10"]
    rows = list(zip(*(column.cells for column in results_table({"mini": one}, {}).columns), strict=True))
    assert [row for row in rows if "level" in row[2]] == [
        ("", "1", "avg@4, level 2", "0.500 [0.000, 1.000]"),
        ("", "2", "avg@4, level 10", str(one.average_by_level()["Level 10"])),
    ]
    write_result(tmp_path / "mini", one)
    assert list(read_result(tmp_path / "mini", within=tmp_path).levels) == levels
    assert json.loads((tmp_path / "mini" / "result.json").read_text())["by_level"]["Level 2"]["value"] == 0.5
    write_summary(tmp_path, {"mini": one}, {})
    assert json.loads((tmp_path / "results.json").read_text())["mini"]["by_level"]["Level 10"]["n"] == 2
    assert result([4, 2]).average_by_level() == {}, "no levels are known"


def test_a_result_of_an_earlier_version_has_no_levels(tmp_path):
    write_result(tmp_path, result([4, 2, 0, 1]))
    file = tmp_path / "result.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in content.items() if "level" not in key}))
    assert read_result(tmp_path, within=tmp_path).average_by_level() == {}


def test_a_question_that_is_repeated_counts_once_in_every_interval(tmp_path):
    """Four questions, and the same four again: the figures stay, and the intervals become no narrower."""
    once, other = result([4, 2, 0, 1]), result([4, 4, 1, 1])
    twice, again = (
        replace(result([*one.correct, *one.correct]), repeats=[0, 1, 2, 3] * 2, levels=["a", "a", "b", "b"] * 2)
        for one in (once, other)
    )

    def alike(first, second):
        return (first.value, first.low, first.high) == pytest.approx((second.value, second.low, second.high))

    assert alike(twice.average(), once.average())
    assert all(alike(estimate, once.pass_at_k()[k]) for k, estimate in twice.pass_at_k().items())
    levels = replace(once, levels=["a", "a", "b", "b"]).average_by_level()
    assert all(alike(estimate, levels[level]) for level, estimate in twice.average_by_level().items())
    found, expected = compare(twice, again), compare(once, other)
    assert alike(found.difference, expected.difference)
    assert (found.p_value, found.wins, found.ties) == (expected.p_value, expected.wins, expected.ties)
    write_result(tmp_path, twice)
    assert read_result(tmp_path, within=tmp_path).repeats == twice.repeats
    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(content | {"repeats": [0, 1]}))
    with pytest.raises(ValueError, match="repeats must be a list of integers, one per question"):
        read_result(tmp_path, within=tmp_path)


def test_equal_questions_are_recognised_by_their_chat_and_their_answer():
    chats = [[{"role": "user", "content": text}] for text in ("one", "two", "one", "one")]
    questions = [BenchQuestion(n, chat, truth) for n, (chat, truth) in enumerate(zip(chats, "1112", strict=True))]
    zeros = np.zeros((4, 2), dtype=bool)
    answers = SimpleNamespace(cut_off=zeros, tokens=zeros.astype(int))
    verdicts = SimpleNamespace(correct=zeros, unverified=zeros)
    found = build_result(SETTINGS, questions, answers, verdicts, {}).repeats
    assert found[0] == found[2] and len(set(found)) == 3
    assert list(build_result(SETTINGS, questions[1:3], answers, verdicts, {}).repeats) == []
