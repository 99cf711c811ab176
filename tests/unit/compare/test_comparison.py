"""Comparison at equal generated tokens: known results, and the text about them."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from verl_gsd.charts import render_page
from verl_gsd.compare import comparison_words as words
from verl_gsd.compare.comparison import compare_curves, holm, mean_accuracy
from verl_gsd.compare.comparison_file import read_curves, write_comparison
from verl_gsd.compare.comparison_page import sections
from verl_gsd.compare.curves import Curve
from verl_gsd.evaluation.intervals import Estimate, PairedTest, difference_over_seeds, proportion, student_mean

T_4 = 2.776445  # of Student's t with 4 degrees of freedom


def curve(label="grpo", seed=1, tokens=(0, 100), accuracy=(0.0, 1.0), **further):
    steps = tuple(range(len(tokens)))
    return Curve(label, seed, "math", steps, tuple(tokens), tuple(accuracy), f"{label}/{seed}", **further)


def line(label, seed, end, tokens=100):
    """A run whose accuracy rises from 0 to ``end``."""
    return curve(label, seed, (0, tokens), (0.0, end))


def rows(comparison):
    return {row.label: row for row in comparison.rows}


def test_largest_budget_is_that_of_the_shortest_run():
    found = compare_curves([line("grpo", 1, 0.8, tokens=200), line("hadw", 1, 0.4, tokens=120)], "grpo")
    assert (found.budgets, found.shortest.label) == ((30, 60, 90, 120), "hadw")
    grpo, hadw = rows(found)["grpo"], rows(found)["hadw"]
    assert [cell.accuracy.value for cell in grpo.cells] == pytest.approx([0.12, 0.24, 0.36, 0.48])
    assert [cell.accuracy.value for cell in hadw.cells] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (grpo.end_tokens.value, grpo.end_accuracy.value) == (200, 0.8), "where it ended is at more tokens"
    assert grpo.cells[-1].against is None and grpo.p_adjusted is None
    assert hadw.cells[-1].against.difference.value == pytest.approx(-0.08)


def test_seeds_are_paired_and_the_interval_is_students():
    base, gains = (0.3, 0.5, 0.4, 0.6, 0.2), (0.01, 0.02, 0.03, 0.04, 0.05)
    curves = [line("grpo", seed, end) for seed, end in enumerate(base)]
    # In another order: pairs are by seed.
    curves += [line("hadw", seed, base[seed] + gains[seed]) for seed in (3, 1, 4, 0, 2)]
    row = rows(compare_curves(curves, "grpo"))["hadw"]
    against = row.cells[-1].against
    half = T_4 * math.sqrt(0.00025 / 5)
    assert against.difference.value == pytest.approx(0.03)
    assert against.difference.high - 0.03 == pytest.approx(half, rel=1e-5)
    assert (against.p_value, row.p_adjusted) == (2 / 32, 2 / 32)
    assert (against.wins, against.ties, against.losses) == (5, 0, 0)
    assert row.seeds == (0, 1, 2, 3, 4)


def test_common_seeds_are_paired_and_all_seeds_are_in_the_mean():
    curves = [line("grpo", seed, 0.4) for seed in (1, 2)] + [line("hadw", seed, seed / 10) for seed in (2, 3, 6)]
    cell = rows(compare_curves(curves, "grpo"))["hadw"].cells[-1]
    assert cell.accuracy.value == pytest.approx(11 / 30) and cell.accuracy.n == 3
    assert cell.against.difference.n == 1 and cell.against.difference.value == pytest.approx(-0.2)
    apart = compare_curves([line("grpo", 1, 0.4), line("hadw", 2, 0.4)], "grpo")
    assert rows(apart)["hadw"].cells[-1].against is None and apart.tests == 0
    _, (row,) = words.against_table(apart)
    assert row[1:-1] == ["-"] * 5 and row[-1] not in ("better", "worse", words.TIE)


def test_the_mean_of_two_seeds_has_the_interval_that_the_laboratory_shows():
    """The bootstrap's, the range of the two runs, covers the mean in half of all cases."""
    row = rows(compare_curves([line("grpo", seed, end) for seed, end in ((1, 0.44), (2, 0.46))], "grpo"))["grpo"]
    half = 12.7062 * 0.01  # t of one degree of freedom
    for found in (row.cells[-1].accuracy, row.end_accuracy):
        assert (found.value, found.low, found.high) == pytest.approx((0.45, 0.45 - half, 0.45 + half), abs=1e-4)
        assert found == student_mean(np.array([0.44, 0.46]))


def test_intervals_of_accuracies_stay_in_their_range_and_those_of_differences_do_not():
    curves = [line("grpo", seed, end) for seed, end in ((1, 0.1), (2, 0.9))]
    found = compare_curves([*curves, line("hadw", 1, 0.9), line("hadw", 2, 0.1)], "grpo")
    for row in found.rows:
        for estimate in (*(cell.accuracy for cell in row.cells), row.area, row.end_accuracy):
            assert (estimate.low, estimate.high) == (0.0, 1.0)
    difference = rows(found)["hadw"].cells[-1].against.difference
    assert difference.low < -1 and difference.high > 1
    assert row.end_tokens.value == 100, "tokens have no range"
    of = {section.name: section for section in sections(found)}
    band = of["seeds"].panels[0].chart.to_dict()["layer"][0]["data"]["values"]
    assert all(0 <= point["low"] <= point["high"] <= 1 for point in band)


def test_an_interval_is_not_narrower_than_that_of_the_validations_responses():
    """Seeds that agree, or differ by the same, do so by chance where few responses are behind each accuracy."""
    curves = [
        replace(line(label, seed, end), responses=30)
        for label, end in (("grpo", 0.3), ("hadw", 0.5))
        for seed in (1, 2)
    ]
    grpo, hadw = compare_curves(curves, "grpo").rows
    mean, difference = grpo.cells[-1].accuracy, hadw.cells[-1].against.difference
    assert (mean.low, mean.high) == (proportion(18, 60).low, proportion(18, 60).high) and mean.n == 2
    assert grpo.end_accuracy == mean and grpo.area.low == proportion(0.15 * 60, 60).low
    assert difference == difference_over_seeds(np.full(2, 0.3), np.full(2, 0.5), trials=60)
    assert difference.low > 0 and difference.high - difference.low > 0.3
    several = [replace(curve, accuracy=(0.0, 0.1 * curve.seed)) for curve in curves]
    assert compare_curves(several, "grpo").rows[0].cells[-1].accuracy.high == student_mean(np.array([0.1, 0.2])).high
    unknown = compare_curves([curves[0], replace(curves[1], responses=None), *curves[2:]], "grpo").rows[0]
    assert math.isinf(unknown.cells[-1].accuracy.high), "of seeds that agree nothing is known"


def test_run_has_no_accuracy_before_its_first_validation():
    late = curve("hadw", 1, (60, 100), (0.5, 0.9))
    found = compare_curves([line("grpo", 1, 1.0), line("grpo", 2, 1.0), late, line("hadw", 2, 1.0)], "grpo")
    cells = rows(found)["hadw"].cells
    assert [cell.accuracy.n for cell in cells] == [1, 1, 2, 2]
    assert [cell.against.difference.n for cell in cells] == [1, 1, 2, 2]
    _, table = words.accuracy_table(found)
    assert table[1][2].startswith("0.250") and "1 of 2" in table[1][2]
    alone = compare_curves([line("grpo", 1, 1.0), late], "grpo")
    assert rows(alone)["hadw"].cells[0].accuracy is None
    assert not re.search(r"\d", words.accuracy_table(alone)[1][1][2])
    assert rows(alone)["hadw"].p_adjusted == 1, "the test is at the largest budget"


def test_mean_over_tokens_covers_the_range_of_all_runs():
    bent = curve("hadw", 1, (0, 50, 100), (0.0, 0.8, 0.8))
    assert mean_accuracy(bent, 0, 100) == pytest.approx(0.6)
    assert mean_accuracy(bent, 25, 75) == pytest.approx((0.6 * 25 + 0.8 * 25) / 50)
    found = compare_curves([curve("grpo", 1, (20, 80), (0.5, 0.5)), bent], "grpo")
    assert found.span == (20, 80) and {"20", "80"} <= set(re.findall(r"\d+", words.accuracy_table(found)[0][-1]))
    assert rows(found)["hadw"].area.value == pytest.approx(mean_accuracy(bent, 20, 80))
    assert rows(found)["grpo"].area.value == pytest.approx(0.5)
    nothing = compare_curves([curve("grpo", 1, (100, 120), (0.5, 0.5)), bent], "grpo")
    assert rows(nothing)["hadw"].area is None, "what all have is one point"
    assert not re.search(r"\d", words.accuracy_table(nothing)[0][-1])


def test_baseline_comes_first_and_must_exist():
    curves = [line(label, 1, 0.5) for label in ("hadw", "grpo", "gvpo")]
    assert [row.label for row in compare_curves(curves, "grpo").rows] == ["grpo", "hadw", "gvpo"]
    with pytest.raises(ValueError, match=r"--baseline dapo: .*hadw, grpo, gvpo"):
        compare_curves(curves, "dapo")
    with pytest.raises(ValueError, match="grpo seed 1"):
        compare_curves([*curves, line("grpo", 1, 0.5)], "grpo")


# Holm


def holm_by_definition(p):
    order = sorted(p, key=p.get)
    return {
        key: max(min(1, (len(p) - place) * p[before]) for place, before in enumerate(order[: order.index(key) + 1]))
        for key in order
    }


def test_holms_p_values():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.5, "b": 0.6}) == {"a": 1, "b": 1}
    assert holm({}) == {}
    for values in itertools.product((0.001, 0.02, 0.3), repeat=4):
        p = dict(zip("abcd", values, strict=True))
        assert holm(p) == pytest.approx(holm_by_definition(p))


def test_every_label_counts_as_a_comparison():
    curves = [line("grpo", seed, 0.4) for seed in range(8)]
    curves += [line(label, seed, 0.5 + seed / 100) for label in ("hadw", "gvpo") for seed in range(8)]
    found = compare_curves(curves, "grpo")
    assert found.tests == 2
    assert [row.p_adjusted for row in found.rows] == [None, 4 / 256, 4 / 256]
    assert all(row.cells[-1].against.p_value == 2 / 256 for row in found.rows[1:])


# Words


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.05, 0.04, "better"),
        (-0.05, -0.01, 0.04, "worse"),
        (-0.01, 0.05, 0.2, re.escape(words.TIE)),
        (0.0, 0.0, 1.0, re.escape(words.TIE)),
        (0.01, 0.05, 0.06, "better .*interval.*not.*test"),
        (-0.05, -0.01, 0.06, "worse .*interval.*not.*test"),
        (-0.05, 0.01, 0.05, "worse .*test.*not.*interval"),
    ],
)
def test_verdicts(low, high, p, said):
    assert re.fullmatch(said, words.verdict(PairedTest(Estimate((low + high) / 2, low, high, 5), p, 0, 0, 0), p))


def test_one_seed_gives_no_verdict():
    found = compare_curves([line("grpo", 1, 0.1), line("hadw", 1, 0.9)], "grpo")
    header, (row,) = words.against_table(found)
    assert row[:-1] == ["hadw", "+0.800", "1", "1, 0, 0", "1", "1"] and len(header) == len(row)
    assert row[-1] not in ("better", "worse", words.TIE)


def what_seeds_cannot_show(curves):
    """The numbers in the caveat about the sign-flip test, or None if there is no such caveat."""
    said = [caveat for caveat in words.caveats(compare_curves(curves, "grpo")) if "too few seeds" in caveat]
    return set(re.findall(r"\d+(?:\.\d+)?", *said)) if said else None


def test_partial_seeds_and_the_smallest_possible_p_are_reported():
    curves = [line("grpo", seed, seed / 10) for seed in (1, 2, 3)] + [line("hadw", seed, 0.4) for seed in (1, 3)]
    found = compare_curves(curves, "grpo")
    assert [row[1] for row in words.accuracy_table(found)[1]] == ["1-3", "1, 3 (partial: 2 of 3)"]
    assert {"2", "0.5", "6"} <= what_seeds_cannot_show(curves), "seeds of both, the least p, seeds needed"
    many = [line(label, seed, 0.5 + seed / 100) for label in ("grpo", "hadw") for seed in range(6)]
    assert what_seeds_cannot_show(many) is None
    many += [line("gvpo", seed, 0.5 + seed / 100) for seed in range(6)]
    assert {"6", "2", "7"} <= what_seeds_cannot_show(many), "Holm's of two comparisons"
    assert {"4", "2", "7"} <= what_seeds_cannot_show(many[:-2]), "gvpo has fewest"


def caveats_of(curves, key):
    return [said for said in words.caveats(compare_curves(curves, "grpo")) if key in said]


def test_the_least_p_that_few_seeds_allow_is_stated():
    for seeds, least in ((2, 0.5), (3, 0.25), (4, 0.12), (5, 0.062)):
        curves = [line(label, seed, 0.5 + seed / 100) for label in ("grpo", "hadw") for seed in range(seeds)]
        (caveat,) = caveats_of(curves, "too few seeds")
        assert f"has {seeds} seeds of both" in caveat and f"cannot be below {least}," in caveat
        assert "at least 6 seeds" in caveat and "over 1 comparison can" in caveat


def test_p_is_explained_where_a_table_has_it():
    curves = [line(label, seed, 0.5 + seed / 100) for label in ("grpo", "hadw") for seed in (1, 2)]
    assert "p" in words.against_table(compare_curves(curves, "grpo"))[0]
    assert len(caveats_of(curves, "p is the p-value")) == 1
    assert not caveats_of(curves[:2], "p is the p-value")


@pytest.mark.parametrize(
    ("seeds", "listed"),
    [(range(1, 17), "1-16"), ((1, 2), "1, 2"), ((1, 2, 4, 5, 6, 9), "1, 2, 4-6, 9"), ((-3, -2, -1), "-3, -2, -1")],
)
def test_consecutive_seeds_are_a_range(seeds, listed):
    found = compare_curves([line("grpo", seed, 0.5) for seed in seeds], "grpo")
    assert words.accuracy_table(found)[1][0][1] == listed


def test_unknown_numbers_of_responses_and_unknown_settings_are_reported():
    known = [replace(line("grpo", seed, 0.5), responses=8, settings={"data.seed_of": 1}) for seed in (1, 2)]
    assert not caveats_of(known, "val/prompts/math") and not caveats_of(known, "settings")
    exact = {"validation": {"metric": "exact/accuracy"}}
    assert not caveats_of([replace(one, responses=None, **exact) for one in known], "val/prompts/math")
    other = [known[0], line("grpo", 2, 0.5)]
    assert (
        "grpo seed 2" in caveats_of(other, "val/prompts/math")[0] and "grpo seed 2" in caveats_of(other, "settings")[0]
    )
    assert not caveats_of([line("grpo", 1, 0.5), line("hadw", 1, 0.5)], "settings"), (
        "one seed has nothing to differ from"
    )


# The page


def test_page_has_every_mean_with_its_band_and_each_seed():
    curves = [curve("grpo", 1, (0, 40, 100), (0.1, 0.3, 0.5)), curve("grpo", 2, (20, 80), (0.2, 0.4))]
    curves.append(line("hadw", 1, 0.5))
    of = {section.name: section for section in sections(compare_curves(curves, "grpo"), ["a run was left out"])}
    assert list(of) == ["accuracy", "against", "seeds", "ends", "caveats"]
    assert "a run was left out" in of["accuracy"].text
    means, end = of["accuracy"].chart.to_dict()["layer"]
    assert {point["method"] for point in means["data"]["values"]} == {"grpo", "hadw"}
    assert end["data"]["values"] == [{"tokens": 80}]
    grpo, hadw = (panel.chart.to_dict()["layer"] for panel in of["seeds"].panels)
    assert [layer["mark"]["type"] for layer in grpo] == ["area", "line", "line"]
    assert [layer["mark"]["type"] for layer in hadw] == ["line", "area", "line", "line"]
    assert hadw[0]["data"] == grpo[2]["data"], "the baseline's mean stands behind the others"
    assert [point["seed"] for point in grpo[1]["data"]["values"]] == [1, 1, 1, 2, 2]
    assert grpo[0]["encoding"]["y"]["field"] == "low" and grpo[0]["encoding"]["y2"]["field"] == "high"
    mean = grpo[2]["data"]["values"]
    assert (mean[0]["tokens"], mean[-1]["tokens"]) == (20, 80)
    assert mean[-1]["accuracy"] == pytest.approx((0.4 + 0.3 + 0.2 * 40 / 60) / 2, abs=1e-4)
    assert mean[-1]["low"] < mean[-1]["accuracy"] < mean[-1]["high"]
    alone = hadw[3]["data"]["values"]
    assert all(point["low"] == point["accuracy"] == point["high"] for point in alone), "one seed has no band"
    domains = [layer["encoding"]["y"]["scale"]["domain"] for layer in (means, *grpo, *hadw)]
    assert domains == [[0, 0.5]] * len(domains), "charts can be held against each other"


def test_page_rejects_more_methods_than_colours():
    curves = [line(f"method-{number}", 1, 0.5) for number in range(9)]
    with pytest.raises(ValueError, match=r"\b9\b.*\b8\b"):
        sections(compare_curves(curves, "method-0"))


def test_single_label_is_shown():
    found = compare_curves([line("grpo", seed, 0.5) for seed in (1, 2)], "grpo")
    assert [section.name for section in sections(found)] == ["accuracy", "seeds", "ends", "caveats"]
    assert "grpo" in render_page("title", sections(found))


# The file


def test_curves_survive_a_round_trip_through_a_file(tmp_path):
    curves = [
        line("grpo", 1, 0.5),
        line("grpo", 2, 0.25),
        curve("hadw", 1, total_steps=9, validation={"k": [1, None]}, trained="on the stack", responses=64),
    ]
    found = compare_curves(curves, "grpo")
    path = tmp_path / "new" / "c.json"
    write_comparison(path, found)
    assert read_curves(path) == curves
    assert compare_curves(read_curves(path), "grpo") == found
    assert [file.name for file in path.parent.iterdir()] == ["c.json"]
    content = json.loads(path.read_text())
    assert (content["shortest"], content["baseline"], content["budgets"][-1]) == ("grpo seed 1", "grpo", 100)
    against = content["rows"][1]["cells"][-1]["against"]
    assert against["difference"] == {"value": 0.5, "low": None, "high": None, "n": 1}, "JSON has no infinity"


def test_a_file_has_no_settings_because_they_can_name_a_machine(tmp_path):
    path, curves = tmp_path / "c.json", [replace(line("grpo", 1, 0.5), settings={"key": "value"})]
    write_comparison(path, compare_curves(curves, "grpo"))
    assert "settings" not in path.read_text() and read_curves(path)[0].settings == {}


def test_file_of_an_older_version_does_not_say_where_runs_were_trained(tmp_path):
    path, curves = tmp_path / "c.json", [line("grpo", 1, 0.5)]
    newer = [replace(curve, trained="on the stack", responses=64) for curve in curves]
    write_comparison(path, compare_curves(newer, "grpo"))
    content = json.loads(path.read_text())
    for entry in content["curves"]:
        del entry["trained"], entry["responses"]
    path.write_text(json.dumps(content))
    assert read_curves(path) == curves


def changed(content, key, value):
    *above, last = key
    node = content
    for name in above:
        node = node[name]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (["verl_gsd_comparison"], 2, ".*verl_gsd_comparison: 1"),
        (["verl_gsd_comparison"], KeyError, ".*verl_gsd_comparison: 1"),
        (["curves"], {}, "curves: "),
        (["curves", 1], [], r"curves\[1\]: .*label, seed"),
        (["curves", 1, "seed"], KeyError, r"curves\[1\]: .*label, seed"),
        (["curves", 1, "more"], 1, r"curves\[1\]: .*label, seed"),
        (["curves", 1, "label"], "", r"curves\[1\]\.label='': "),
        (["curves", 1, "label"], "\x1b[31m", r"curves\[1\]\.label='\\x1b\[31m': "),
        (["curves", 1, "seed"], True, r"curves\[1\]\.seed='True': "),
        (["curves", 1, "seed"], 2**60, r"curves\[1\].seed"),
        (["curves", 1, "steps"], [0, 1.5], r"curves\[1\]\.steps='\[0, 1\.5\]': "),
        (["curves", 1, "accuracy"], [0, "1"], r"curves\[1\].accuracy"),
        (["curves", 1, "accuracy"], [0.5, math.nan], r"curves\[1\]: accuracy\[1\]=nan: "),
        (["curves", 1, "tokens"], [5, 4], r"curves\[1\]: tokens\[1\]=4: .*\b5\b"),
        (["curves", 1, "tokens"], [5], r"curves\[1\]: 2 steps, 1 tokens"),
        (["curves", 1, "total_steps"], "9", r"curves\[1\].total_steps"),
        (["curves", 1, "validation"], [], r"curves\[1\].validation"),
        (["curves", 1, "trained"], 3, r"curves\[1\].trained"),
        (["curves", 1, "responses"], 0, r"curves\[1\].responses"),
    ],
)
def test_invalid_file_is_rejected_with_the_field(tmp_path, key, value, said):
    path = tmp_path / "c.json"
    write_comparison(path, compare_curves([line("grpo", 1, 0.5), line("grpo", 2, 0.25)], "grpo"))
    content = json.loads(path.read_text())
    changed(content, key, value)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"c.json: " + said):
        read_curves(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_invalid_json_is_rejected(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.json: "):
        read_curves(tmp_path / "c.json")


def test_there_is_no_verdict_on_a_straight_line_between_two_distant_validations():
    """Dynamic sampling generates more per step. Its line from 0 to 400 tokens says nothing about 100."""

    def found(validations):
        many = [
            curve("many", seed, tokens, [0.4 + 0.2 * min(1.0, at / 100) for at in tokens])
            for seed in range(1, 9)
            for tokens in [(0, *validations, 400)]
        ]
        comparison = compare_curves([*(line("grpo", seed, 0.55 + seed / 1000) for seed in range(1, 9)), *many], "grpo")
        _, ((*_, verdict),) = words.against_table(comparison)
        return verdict, [text for text in words.caveats(comparison) if "trainer.test_freq" in text]

    verdict, sentences = found([])
    assert verdict == words.NOT_MEASURED
    assert sentences == [
        "many seed 1 was not validated between 0 and 400 tokens, so that its accuracy at 100 tokens is a guess and "
        "there is no verdict on many. Validate more often (trainer.test_freq)."
    ]
    assert found([90, 120]) == ("better", [])
    assert found([80, 120])[0] == words.NOT_MEASURED


def test_a_baseline_without_validations_near_the_budget_allows_no_verdict():
    sparse = [curve("grpo", seed, (0, 400), (0.4, 0.8)) for seed in (1, 2, 3)]
    comparison = compare_curves([*sparse, *(line("other", seed, 0.5) for seed in (1, 2, 3))], "grpo")
    _, ((*_, verdict),) = words.against_table(comparison)
    assert verdict == words.NOT_MEASURED
