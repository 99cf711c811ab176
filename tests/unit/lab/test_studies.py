"""The studies in ``benchmarks/studies``: the search for rates, what is still to train, and the published tables."""

import dataclasses
import importlib
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # as the script has it

from studies.analysis import analyse
from studies.declaration import Arm, Study, Tuned
from studies.ledger import LEDGER, TRACES, FinishedRun, append, read_ledger, start_of, task_of
from studies.page import (
    PAGE,
    README,
    RESULTS,
    draw,
    gain_panels,
    has_picture,
    markdown,
    picture_of,
    summary,
    with_table,
)
from studies.runs import late_mean, main_cell, needed, rate_of, tune, tuning_cell

NAMES = sorted(path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.py") if "STUDY = " in path.read_text())
TASK = "arithmetic"


def load(name):
    return importlib.import_module(f"studies.{name}").STUDY


def study(**changed):
    stated = {
        "name": "example",
        "question": "Which?",
        "hypothesis": "None.",
        "measure": "Accuracy.",
        "spread": "0.01",
        "tasks": (TASK,),
        "baseline": "one",
        "arms": (Arm("one", ("algo=grpo",)), Arm("two", ("algo=dr_grpo",))),
        "rates": (1e-4, 2e-4, 4e-4),
        "seeds": "1..3",
        "steps": 10,
        "validate_every": 5,
    }
    return Study(**stated | changed)


def finished(words, seed, late=0.5, tokens=(0, 400, 1000), levels=None):
    """A run that goes from 0.4 to ``late`` before half of its tokens, and stays there."""
    values = (0.4, late, late)
    return FinishedRun(
        words=words,
        seed=seed,
        commit="c",
        start=start_of(TASK),
        steps=(0, 5, 10),
        tokens=tokens,
        accuracy=values,
        reward=tuple(value / 2 for value in values),
        levels=levels or {"a": (0.1, late, late), "b": (0.9, 0.9, 0.9)},
        traces={name: (1.0, 2.0) for name in TRACES},
    )


def entries(cells, late):
    """A ledger with all seeds of cells. ``late``: of a rate and a seed."""
    runs = [finished(cell.words, seed, late(cell.rate, seed)) for cell in cells for seed in cell.missing({})]
    return {(run.words, run.seed): run for run in runs}


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.lists(st.integers(50, 900), min_size=5, max_size=5),
    st.integers(50, 4000),
)
def test_the_measure_is_the_mean_over_the_second_half_of_the_budget(accuracy, lengths, budget):
    tokens = tuple(np.cumsum([0, *lengths])[: len(accuracy)].tolist())
    run = dataclasses.replace(finished((), 1), tokens=tokens, accuracy=tuple(accuracy), reward=tuple(accuracy[::-1]))
    last = min(budget, tokens[-1])
    first = max(tokens[0], last // 2)
    middles = np.linspace(first, last, 200_001)
    expected = np.interp((middles[1:] + middles[:-1]) / 2, tokens, accuracy).mean()
    assert late_mean(run, TASK, budget) == pytest.approx(expected, abs=1e-4)
    assert late_mean(run, "arithmetic_graded", budget) == pytest.approx(
        late_mean(dataclasses.replace(run, accuracy=run.reward), TASK, budget)
    )


def search(best, declared):
    """All rates that a study tries if the accuracy falls with the distance from ``best`` in factors of 2."""
    ledger = {}
    arm = declared.arms[0]
    while following := tune(declared, TASK, arm, ledger).following:
        cells = [tuning_cell(declared, TASK, arm, rate) for rate in following]
        ledger |= entries(cells, lambda rate, seed: 0.6 - 0.01 * abs(np.log2(rate / best)) + 0.001 * (seed % 2))
    return tune(declared, TASK, arm, ledger)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (2e-4, [1e-4, 2e-4, 4e-4]),
        (1e-4, [5e-5, 1e-4, 2e-4, 4e-4]),
        (1.6e-3, [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3]),
    ],
)
def test_the_search_for_a_rate_goes_on_while_the_best_one_is_at_an_end(best, tried):
    found = search(best, study())
    assert found.best == pytest.approx(best)
    assert sorted(found.means) == pytest.approx(tried)


@pytest.mark.parametrize(("best", "end"), [(1e-9, 1e-6), (1.0, 1e-2)])
def test_the_search_for_a_rate_ends_at_rates_that_nobody_uses(best, end):
    found = search(best, study()).best
    assert end / 2 < found < end * 2


def test_a_study_first_tunes_and_then_trains_what_is_missing():
    declared = study()
    tuning = needed(declared, TASK, {}, load)
    assert [(cell.arm.name, cell.rate) for cell in tuning] == [
        (arm, rate) for arm in ("one", "two") for rate in declared.rates
    ]
    assert {cell.seeds for cell in tuning} == {declared.tuning_seeds}
    ledger = entries(tuning, lambda rate, seed: 0.6 if rate == 2e-4 else 0.5)
    first, second = needed(declared, TASK, ledger, load)
    assert (first.rate, second.rate, first.seeds) == (2e-4, 2e-4, "1..3")
    ledger |= entries([first], lambda rate, seed: 0.6)
    ledger |= {(second.words, 2): finished(second.words, 2)}
    (left,) = needed(declared, TASK, ledger, load)
    assert (left.arm.name, left.missing(ledger)) == ("two", [1, 3])
    ledger |= entries([second], lambda rate, seed: 0.6)
    assert needed(declared, TASK, ledger, load) == []


def test_a_rate_of_another_study_is_its_tuned_rate_times_a_factor():
    other = study()
    declared = study(name="second", arms=(Arm("one", ("algo=grpo",), Tuned("example", "one", 4.0)),), rates=())
    assert needed(declared, TASK, {}, {"example": other}.get) == []
    ledger = entries(needed(other, TASK, {}, load), lambda rate, seed: 0.6 if rate == 2e-4 else 0.5)
    assert rate_of(declared, TASK, declared.arms[0], ledger, {"example": other}.get) == pytest.approx(8e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": (Arm("one", ()), Arm("one", ()))}, "different names"),
        ({"baseline": "three"}, "three"),
        ({"rates": ()}, "need rates"),
        ({"rates": (2e-4, 1e-4)}, "increase"),
        ({"tuning_seeds": "3..4"}, r"\[3\]"),
    ],
)
def test_a_study_that_contradicts_itself_is_rejected(changed, message):
    with pytest.raises(ValueError, match=message):
        study(**changed)


def gains_of(first, second, starts=None):
    """The analysis of a study whose arms have the given accuracies by seed.

    Args:
        starts: what the runs of the second arm begin with. Those of the first begin with the package's start.
    """
    declared = study(
        arms=(Arm("one", ("algo=grpo",), 1e-4), Arm("two", ("algo=dr_grpo",), 1e-4)), rates=(), seeds="1..4"
    )
    ledger = {}
    for arm, accuracies in zip(declared.arms, (first, second), strict=True):
        words = main_cell(declared, TASK, arm, 1e-4).words
        ledger |= {(words, seed): finished(words, seed, value) for seed, value in enumerate(accuracies, start=1)}
    for seed, start in enumerate(starts or (), start=1):
        ledger[words, seed] = dataclasses.replace(ledger[words, seed], start=start)
    return analyse(declared, ledger, load)


def test_gains_are_paired_by_seed():
    result = gains_of([0.5, 0.6, 0.5, 0.6], [0.51, 0.61, 0.52, 0.62])
    one, two = result["rows"]
    assert one["gain"] is None and result["missing"] == []
    assert two["gain"]["mean"] == pytest.approx(0.015)
    assert two["gain"]["low"] > 0.005  # the seeds differ by 0.1, their pairs by 0.01
    assert two["measure"]["mean"] == pytest.approx(0.565)
    assert two["gain_by_level"]["hard"]["mean"] == pytest.approx(0.015)
    assert two["gain_by_level"]["easy"]["mean"] == 0
    assert "middle" not in two["levels"]
    assert result["budget_tokens"] == {TASK: 900}
    assert "--seeds 1..4" in two["command"] and "algo=dr_grpo" in two["command"]


def test_runs_that_begin_with_different_policies_are_not_paired():
    """A head start would count as a gain."""
    first, second, ours = [0.5, 0.6, 0.5, 0.6], [0.51, 0.61, 0.9, 0.9], start_of(TASK)
    result = gains_of(first, second, starts=(ours, ours, "", ""))
    _, two = result["rows"]
    assert (two["gain"]["mean"], two["gain"]["n"]) == (pytest.approx(0.01), 2)
    assert two["gain_by_level"]["hard"]["mean"] == pytest.approx(0.01) and len(two["seeds"]) == 4
    assert (result["missing"], result["earlier"]) == ([], [f"{TASK}/two: 2 of 4 seeds"])
    assert f"**From an earlier start** are runs of 1 arm on `{TASK}`." in markdown(result)
    _, two = gains_of(first, second, starts=("",) * 4)["rows"]
    assert two["gain"] is None and two["gain_by_level"] == {}


def test_runs_from_an_earlier_start_are_trained_again_but_rates_are_not_searched_again():
    declared = study()
    arm = declared.arms[0]
    tuning = [tuning_cell(declared, TASK, arm, rate) for rate in declared.rates]

    def from_earlier(cells, late):
        return {key: dataclasses.replace(run, start="") for key, run in entries(cells, late).items()}

    def best(rate, seed):
        return 0.6 if rate == 2e-4 else 0.5

    earlier = from_earlier(tuning, best)
    (main,) = (cell for cell in needed(declared, TASK, earlier, load) if cell.arm == arm)
    assert main.rate == 2e-4
    earlier |= from_earlier([main], best)
    assert main.missing(earlier) == [1, 2, 3] and list(main.found(earlier)) == [1, 2, 3]
    # A search over runs of both starts would compare the starts.
    mixed = earlier | entries([tuning_cell(declared, TASK, arm, 8e-4)], lambda rate, seed: 0.9)
    assert tune(declared, TASK, arm, mixed).best == 2e-4
    assert tune(declared, TASK, arm, entries(tuning[:1], best)).following == list(declared.rates[1:])


def test_an_arm_that_changes_nothing_has_the_gain_0():
    """Its runs are those of the baseline, number by number, so that they have no spread."""
    _, two = gains_of([0.5, 0.6, 0.5, 0.6], [0.5, 0.6, 0.5, 0.6])["rows"]
    assert {name: two["gain"][name] for name in ("mean", "low", "high", "p")} == {
        "mean": 0,
        "low": 0,
        "high": 0,
        "p": 1,
    }
    assert two["gain_by_level"]["hard"] == {"mean": 0, "low": 0, "high": 0}


def test_a_run_below_its_start_has_diverged():
    _, two = gains_of([0.5] * 4, [0.39, 0.2, 0.41, 0.5])["rows"]
    assert two["diverged"] == 2


def test_a_table_names_what_is_missing():
    result = gains_of([0.5, 0.6, 0.5, 0.6], [0.51, 0.61])
    assert result["missing"] == [f"{TASK}/two: 2 of 4 seeds"]
    assert result["rows"][1]["gain"]["n"] == 2
    declared = study()
    assert analyse(declared, {}, load)["missing"] == [
        f"{TASK}/{name}: its learning rate is not tuned" for name in ("one", "two")
    ]


def test_p_values_are_corrected_for_all_differences_of_a_study():
    declared = study(
        arms=tuple(Arm(name, (f"algo={name}",), 1e-4) for name in ("one", "two", "three")), rates=(), seeds="1..6"
    )
    random = np.random.default_rng(0)
    ledger = {}
    for arm in declared.arms:
        words = main_cell(declared, TASK, arm, 1e-4).words
        ledger |= {(words, seed): finished(words, seed, random.uniform(0.5, 0.6)) for seed in range(1, 7)}
    gains = [row["gain"] for row in analyse(declared, ledger, load)["rows"] if row["gain"]]
    smallest = min(gains, key=lambda gain: gain["p"])
    assert smallest["p_adjusted"] == pytest.approx(min(1, 2 * smallest["p"]))


def test_the_ledger_keeps_runs_as_they_are(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    runs = [finished(("algo=grpo", f"task={TASK}"), 1), finished(("algo=grpo",), 2)]
    runs[0] = dataclasses.replace(runs[0], traces={**runs[0].traces, "entropy": (None, 0.5)})
    assert read_ledger(path) == {}
    for run in runs:
        append(run, path)
    assert read_ledger(path) == {(run.words, run.seed): run for run in runs}


def test_runs_of_a_task_and_a_start_have_the_same_accuracy_before_training():
    found = {}
    for run in read_ledger().values():
        found.setdefault((task_of(run.words), run.start), set()).add(run.accuracy[0])
    assert {place: accuracies for place, accuracies in found.items() if len(accuracies) > 1} == {}
    for task, start in found:
        assert start in ("", start_of(task)), (task, start)


def test_the_table_of_the_readme_is_that_of_the_ledger():
    results = [analyse(load(name), read_ledger(), load) for name in ("methods", "stability")]
    assert with_table(README.read_text(), RESULTS, summary(*results)) == README.read_text()


def row_of(arm, diverged=0, gain=None, task=TASK, tokens=500.0):
    measure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    return {"task": task, "arm": arm, "measure": measure, "gain": gain, "diverged": diverged, "tokens_per_step": tokens}


def test_the_summary_has_gains_costs_and_the_rate_up_to_which_no_run_diverged():
    gain = {"mean": 0.02, "low": 0.01, "high": 0.03, "p_adjusted": 0.01}
    methods = {"rows": [row_of("grpo"), row_of("new", gain=gain, tokens=1000.0)]}
    counts = {"grpo_x1": 0, "grpo_x2": 0, "grpo_x4": 3, "grpo_x8": 0, "new_x1": 0, "new_x2": 0}
    stability = {
        "rows": [row_of(arm, count) for arm, count in counts.items()],
        "missing": [f"{TASK}/new_x4: 8 of 8 seeds"],
    }
    assert summary(methods, stability).splitlines()[2:] == [
        "| `grpo` | 0.500 | 1.0 | 2 x |",
        "| `new` | **+0.020 [+0.010, +0.030]** | 2.0 |  |",
    ]


def curve_study():
    """A study that shows curves, and a ledger with two runs of its first arm."""
    declared = study(
        arms=(Arm("one", ("algo=grpo",), 1e-4), Arm("two", ("algo=dr_grpo",), 1e-4)),
        rates=(),
        seeds="1..2",
        curves=True,
    )
    words = main_cell(declared, TASK, declared.arms[0], 1e-4).words
    runs = [finished(words, seed, late) for seed, late in ((1, 0.5), (2, 0.7))]
    runs[0] = dataclasses.replace(runs[0], traces={**runs[0].traces, "gradient_norm": (None, 8.0)})
    return declared, {(words, run.seed): run for run in runs}


def test_a_study_of_curves_shows_the_mean_and_the_range_over_runs():
    declared, ledger = curve_study()
    table = markdown(analyse(declared, ledger, load)).splitlines()
    assert "| arm | step | accuracy | entropy | length | gradient norm |" in table
    rows = [line for line in table if line.startswith("| `one` |")]
    assert rows[1:] == [
        "| `one` | 5 | 0.6 [0.5, 0.7] | 1 [1, 1] | 1 [1, 1] | 1 [1, 1] |",
        "| `one` | 10 | 0.6 [0.5, 0.7] | 2 [2, 2] | 2 [2, 2] | 5 [2, 8] |",
    ]
    assert table[-1].endswith("(pictures/study_example.png)")


@pytest.mark.parametrize("result", [analyse(*curve_study(), load), gains_of([0.5, 0.6] * 2, [0.51, 0.61, 0.52, 0.62])])
def test_a_study_draws_its_curves_or_its_gains(tmp_path, result):
    draw(result, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_each_panel_has_the_gains_of_its_task():
    gains = {("a", "one"): 0.1, ("a", "two"): 0.2, ("b", "two"): 0.3}
    rows = [
        row_of(arm, gain={"mean": mean, "low": 0.0, "high": 1.0, "p_adjusted": 1.0}, task=task)
        for (task, arm), mean in gains.items()
    ]
    shown = {}
    for panel in gain_panels({"rows": [row_of("baseline", task="a"), *rows]}).to_dict()["hconcat"]:
        points = [point for layer in panel["layer"] for point in layer.get("data", panel.get("data"))["values"]]
        shown |= {(panel["title"], point["arm"]): point["mean"] for point in points if point}
    assert shown == gains


@pytest.mark.parametrize("name", NAMES)
def test_published_tables_are_those_of_the_ledger(name):
    declared = load(name)
    assert declared.name == name
    computed = json.loads(json.dumps(analyse(declared, read_ledger(), load)))
    page = PAGE.read_text()
    assert with_table(page, name, markdown(computed)) == page
    assert picture_of(name).is_file() or not has_picture(computed)
    published = LEDGER.parent / f"{name}.json"
    assert published.is_file() or not computed["rows"], "a study with results has its file"
    for stored in [json.loads(published.read_text())] if published.is_file() else []:
        for made in (stored, computed):
            del made["machine"], made["date"]
        assert stored == computed
