"""Reading a run's files, counting its groups, and the page that a user gets."""

import collections
import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_runs import HOSTILE, config, everything, group, metrics, predicted_records, records
from typer.testing import CliRunner

from verl_gsd.answer_counts import pack_answers
from verl_gsd.cli.main import app
from verl_gsd.records import FATES, LeftGroup, step_records, write_step
from verl_gsd.report.answers import order_by_prompt
from verl_gsd.report.build import build_sections, check_not_empty, page_title, read_runs
from verl_gsd.report.chart_data import accuracy_bins, averaged_in_spans, sigma_cells, smoothed, totals_by_use
from verl_gsd.report.findings import collect_findings
from verl_gsd.report.reading import RunData, read_run, unique_names
from verl_gsd.report.steps import USES, source_column, sources_of, step_table

MIXED, WRONG, RIGHT = [0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]


def run_report(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)], env={"COLUMNS": "300", "NO_COLOR": "1"})


# Reading


def test_names_of_runs_include_parent_folders_only_where_they_are_needed(tmp_path):
    paths = [tmp_path / name for name in ("a/run", "b/run", "b/other")]
    assert unique_names(paths) == ["a/run", "b/run", "other"]
    with pytest.raises(ValueError, match=r"/a: "):
        unique_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_steps_that_a_resume_replaced_are_in_neither_records_nor_metrics(tmp_path):
    for step in (1, 2, 3, 4):
        records(tmp_path, step, (MIXED, "trained"))
    for step in (3, 4):
        records(tmp_path, step, (WRONG, "trained"), attempt=2)
    validation = {"validation": 1, "val-core/math/acc/mean@1": 0.5}
    metrics(tmp_path, [(step, {"actor/entropy": 1.0}) for step in (1, 2, 3, 4, 5)])
    metrics(tmp_path, [(2, validation), (3, {"actor/entropy": 2.0}), (4, {"actor/entropy": 2.0})], attempt=2)
    run = read_run(tmp_path, "run")
    table = step_table(run)
    assert run.attempts == 2
    assert table["step"].tolist() == [1, 2, 3, 4], "step 5 was made by weights that were discarded"
    assert table["actor/entropy"].tolist() == [1, 1, 2, 2]
    assert table["silent"].tolist() == [0, 0, 1, 1]
    assert table["val-core/math/acc/mean@1"][1] == 0.5, "the validation before step 3 belongs to the weights of step 2"


def test_a_source_with_verdicts_of_1_and_minus_1_has_no_accuracy_in_any_step(tmp_path):
    code = [group([1, 1], source="code", index=1), group([1, -1], source="code", index=2)]
    records(tmp_path, 1, (code[0], "trained"), (MIXED, "trained"))
    records(tmp_path, 2, (code[0], "trained", {"silent_predicted": 0.9}), (code[1], "trained"), (WRONG, "trained"))
    validations = [{"val-core/code/acc/mean@1": value, "val/outside/code": 3.0} for value in (0.25, 0.5)]
    metrics(tmp_path, list(enumerate(validations, start=1)))
    run = read_run(tmp_path, "run")
    table = step_table(run)
    assert table["accuracy"].tolist() == [0.75, 0.0] and table["pass_at_1"].tolist() == pytest.approx([0.75, 0.0])
    assert np.isnan(table["seen_silent"]).all() and np.isnan(table["seen_predicted"]).all()
    assert table["equal"].tolist() == [0.5, pytest.approx(1 / 3)], "verdicts are compared all the same"
    assert table["mixed"].tolist() == [0.5, pytest.approx(1 / 3)] and table["all_right"].tolist() == [0, 0]
    done = run_report(tmp_path, "--output", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    assert "The held-out values of code are no accuracies, because the verifier returned an acc outside [0, 1]." in page


def test_a_page_says_which_share_of_the_rollouts_counts_as_wrong_without_acc(tmp_path):
    lacking = replace(group(MIXED), accuracies=np.array([np.nan, 1, 1, 1]))
    records(tmp_path, 1, (replace(lacking, accuracies=np.full(4, np.nan)), "trained"))
    records(tmp_path, 2, (lacking, "trained"), (MIXED, "trained"))
    table = step_table(read_run(tmp_path, "run"))
    assert table["accuracy"].tolist() == [0, 0.75] and table["unrated"].tolist() == [0, 0]
    assert table["without_acc"].tolist() == [1, 1 / 8] and table["all_wrong"].tolist() == [1, 0]
    assert run_report(tmp_path, "--output", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "no acc for 56% of the rollouts of this run" in page and "They count as wrong" in page
    assert "There is no accuracy" not in page


def test_a_prompt_with_more_rollouts_counts_once_in_the_accuracy_and_in_the_reward(tmp_path):
    """A budget gives more rollouts to prompts that disagree. This must not look like a change of the policy."""
    of_code = replace(group([-1, -1, 1, 1, 1, 1], source="code"), accuracies=np.array([0, 0, 1, 1, 1, 1.0]))
    for step, sizes in enumerate([(4, 4), (2, 12), (2, 12)], start=1):
        right, mixed = [1] * sizes[0], [1, 0] * (sizes[1] // 2)
        records(tmp_path, step, (right, "trained"), (mixed, "trained"), (of_code, "trained"))
    table = step_table(read_run(tmp_path, "run"))
    assert table["accuracy"] == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert table["reward"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    squares = (1 + 1 / 2 + 1) / 3
    assert table["reward_spread"] == pytest.approx(np.sqrt(squares - table["reward"] ** 2))
    assert table[source_column("accuracy", "math")] == pytest.approx(3 / 4)
    assert table[source_column("reward", "math")] == pytest.approx(3 / 4)
    assert table[source_column("reward_spread", "math")] == pytest.approx(np.sqrt(3 / 16))
    sections = {section.name: section for section in build_sections(read_runs([tmp_path]))}
    figure = sections["headline"].figures[0].figures[0]
    assert (figure.name, figure.value) == ("accuracy of rollouts, mean over prompts", "72% to 72%")
    assert any("counts once" in text for text in sections["accuracy"].text)
    assert any("mean over prompts" in text for text in sections["runs"].text)


def test_a_resume_without_a_step_replaces_nothing(tmp_path):
    metrics(tmp_path, [(step, {"actor/entropy": 1.0}) for step in (1, 2, 3)])
    metrics(tmp_path, [(2, {"validation": 1, "val-core/math/acc/mean@1": 0.5})], attempt=2)
    assert read_run(tmp_path, "run").metrics["step"].tolist() == [1, 2, 3]


def test_damaged_files_are_left_out_and_named(tmp_path):
    for step in (1, 2, 3):
        cut = records(tmp_path, step, (MIXED, "trained"))
    cut.write_bytes(cut.read_bytes()[:200])
    path = metrics(tmp_path, [(1, {"actor/entropy": 1.0}), (2, {"actor/entropy": 0.5}), (3, {"actor/entropy": 0.2})])
    first, _, last = path.read_text().splitlines()
    path.write_text(f'{first}\nnot json\n[1, 2]\n{{"step": 2}}\n{last[:30]}')
    (tmp_path / "config.yaml").write_text("a: [1")
    run = read_run(tmp_path, "run")
    assert run.records["step"].to_pylist() == [1, 2]
    assert run.metrics["step"].tolist() == [1], (
        "an incomplete last line is still being written: it is neither damaged nor read"
    )
    assert len(run.skipped) == 3
    for sentence, expected in zip(run.skipped, ("step_000003", r"attempt_1\.jsonl: 3\b", r"config\.yaml"), strict=True):
        assert re.search(expected, sentence)
    page = tmp_path / "report.html"
    assert run_report(tmp_path).exit_code == 0
    assert "step_000003" in page.read_text()


def test_steps_without_records_are_named_and_only_the_first_of_many_damaged_files(tmp_path):
    for step in (1, 2, 5, 6):
        records(tmp_path, step, (MIXED, "trained"))
    (missing,) = read_run(tmp_path, "run").left_out()
    assert re.search(r"records: .*\b3, 4$", missing)
    for path in (tmp_path / "records" / "attempt_1").glob("*.parquet"):
        path.write_bytes(b"nothing")
    *named, more = read_run(tmp_path, "run").left_out()
    assert len(named) == 3 and re.search(r"\b2\b", more)
    assert all(re.search(r"step_00000\d\.parquet: ", sentence) for sentence in named)


def test_metrics_that_are_not_numbers_are_not_read(tmp_path):
    metrics(tmp_path, [(1, {"a": None, "b": "text", "c": 2, "d": [1]})])
    read = read_run(tmp_path, "run").metrics
    assert math.isnan(read["a"][0]) and read["c"][0] == 2
    assert not {"b", "d"} & read.keys()


# Counting


@st.composite
def tables(draw):
    """Records of a few steps, with groups of any kind and fate."""
    rows = []
    for step in sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4))):
        for _ in range(draw(st.integers(1, 5))):
            verdicts = draw(st.lists(st.sampled_from([0.0, 0.3, 1.0]), max_size=4))
            penalties = [draw(st.sampled_from([0.0, 0.0, 0.5])) for _ in verdicts]
            further = draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "silent_predicted": st.floats(0, 1),
                        "dagrpo_pairs": st.integers(0, 4),
                        "dagrpo_pairs_kept": st.integers(0, 4),
                        "judge_score": st.floats(0, 10),
                        "hadw_anchor": st.floats(0, 1),
                    },
                )
            )
            prompt = {"source": draw(st.sampled_from(["math", "code"])), "index": draw(st.integers(0, 1))}
            judged = group(verdicts, demonstrations=draw(st.integers(0, 1)), **prompt)
            shaped = replace(judged, rewards=judged.rewards - np.array(penalties))
            shaped = replace(shaped, unverified=draw(st.none() | st.integers(0, len(verdicts))))
            earlier = draw(st.integers(0, len(verdicts)))
            if earlier:
                shaped = replace(shaped, earlier=earlier, accuracies=np.full(len(verdicts), np.nan))
            fate = draw(st.sampled_from(FATES))
            mass = draw(st.none() | st.floats(0, 9)) if fate == "trained" else None
            left = LeftGroup(shaped, fate, further, mass)
            table = predicted_records([left], step=step, attempt=1, alpha=draw(st.sampled_from([0.0, 1.0])))
            if draw(st.booleans()):  # a file of version 5 or older
                for name in ("silent", "earlier", "mass"):
                    at = table.schema.get_field_index(name)
                    table = table.set_column(at, table.schema.field(at), pa.nulls(1, table.schema.field(at).type))
            rows.append(table)
    return pa.concat_tables(rows)


def revisited_prompts():
    """Two prompts whose responses differed, and then groups of each kind that were likely to be mixed."""
    visits: list[list[tuple]] = [[], []]
    for source, last in (("math", (RIGHT, WRONG, RIGHT)), ("code", (WRONG, [0, 0, 1, 1]))):
        visits[0] += [(group([0, 1] * 4, source=source), "trained")] * 2
        visits[1] += [(group(verdicts, source=source), "trained", {"silent_predicted": 0.25}) for verdicts in last]
    steps = [[LeftGroup(*values) for values in left] for left in visits]
    return pa.concat_tables(
        [predicted_records(left, step=step, attempt=1, alpha=1.0) for step, left in enumerate(steps, start=1)]
    )


def is_silent(row):
    differs = row["kind"] != "all_right" if row["mass"] is None else row["mass"] != 0
    if row["demonstrations"] and row["size"] and row["fate"] != "filtered" and differs:
        return False
    known = row["kind"] != "mixed" if row["silent"] is None else row["silent"]
    return True if known is None else known


def generated(row):
    return row["size"] - (row["earlier"] or 0)


def mass(row):
    return row["size"] * row["gain"] if row["mass"] is None else row["mass"]


def slow_step_table(table):
    """Step -> figures that step_table must have, computed row by row."""
    figures = {}
    for step in sorted(set(table["step"].to_pylist())):
        rows = [row for row in table.to_pylist() if row["step"] == step]
        whole = [row for row in rows if row["size"]]
        trained = [row for row in whole if row["fate"] == "trained"]
        teaching = [row for row in trained if not is_silent(row)]
        seen = [row for row in rows if row["silent_predicted"] is not None]
        likely = [row for row in seen if is_likely_mixed(row, table.to_pylist())]
        paired = [row for row in rows if None not in (row["dagrpo_pairs"], row["dagrpo_pairs_kept"])]
        scored = [row["judge_score"] for row in rows if row["judge_score"] is not None]
        anchors = [row["hadw_anchor"] for row in teaching if row["hadw_anchor"] is not None]
        rated = [row for row in trained if row["total"]]
        reported = [row for row in rows if row["unverified"] is not None and row["total"]]
        hard = [mass(row) for row in rated if row["correct"] / row["total"] <= 0.25]
        uses = collections.Counter()
        for row in rows:
            taught = "silent" if is_silent(row) else "taught"
            uses[taught if row["fate"] == "trained" else row["fate"]] += generated(row)
        figures[step] = {
            "groups": len(rows),
            "rollouts": sum(map(generated, rows)),
            "tokens": sum(row["tokens"] for row in rows),
            "tokens_per_response": ratio(sum(row["tokens"] for row in rows), sum(map(generated, rows))),
            "silent": mean([is_silent(row) for row in whole]),
            "mixed": mean([row["kind"] == "mixed" for row in whole]),
            "all_wrong": mean([row["kind"] == "all_wrong" for row in whole]),
            "equal": mean([row["kind"] == "equal" for row in whole]),
            "alone": mean([row["size"] == 1 for row in whole]),
            "sigma": mean([row["std"] for row in whole]),
            "accuracy": mean([row["correct"] / row["total"] for row in rows if row["total"]]),
            "reward": mean([row["mean"] for row in whole]),
            "failed": mean([row["fate"] == "failed" for row in rows]),
            **{f"pass_at_{k}": pass_at_k_by_subsets(rows, k) for k in (1, 2, 4)},
            "anchor": mean(anchors),
            "gain_hard": ratio(sum(hard), sum(map(mass, rated))),
            "pairs_kept": ratio(sum(r["dagrpo_pairs_kept"] for r in paired), sum(r["dagrpo_pairs"] for r in paired)),
            "judge_score": mean(scored),
            "seen_silent": mean([row["kind"] != "mixed" for row in seen]),
            "seen_predicted": mean([row["silent_predicted"] for row in seen]),
            "seen_predicted_without_forgetting": mean(
                [
                    value
                    for row in seen
                    if row["size"] and (value := predicted_by_all_visits(row, table.to_pylist())) is not None
                ]
            ),
            "likely_groups": len(likely),
            "likely_silent": sum(row["kind"] != "mixed" for row in likely),
            "likely_predicted": sum(silent_given_total(row, table.to_pylist()) for row in likely),
            "likely_wrong": sum(row["kind"] not in ("mixed", "all_right") for row in likely),
            "likely_wrong_predicted": sum(wrong_given_total(row, table.to_pylist()) for row in likely),
            **{f"rollouts_{use}": uses[use] for use in USES},
            # Columns of data sources alone.
            "unverified": ratio(sum(row["unverified"] for row in reported), sum(row["total"] for row in reported)),
            "groups_answered": len(whole),
            "groups_silent": sum(map(is_silent, whole)),
            "groups_all_wrong": sum(row["kind"] == "all_wrong" for row in whole),
            "groups_all_right": sum(row["kind"] == "all_right" for row in whole),
        }
    return figures


#: Figures of ``slow_step_table`` that are columns of each data source, with their value at steps without its groups.
COUNTED = ("groups_answered", "groups_silent", "groups_all_wrong", "groups_all_right")
PREDICTED = tuple(f"likely_{name}" for name in ("groups", "silent", "predicted", "wrong", "wrong_predicted"))
OF_SOURCES = dict.fromkeys(("accuracy", "reward", "tokens_per_response", "unverified"), math.nan)
OF_SOURCES |= dict.fromkeys((*COUNTED, *PREDICTED), 0)


def earlier_counts(row, rows):
    """(right, total) of all responses to the prompt in earlier steps."""
    visits = [
        of
        for of in rows
        if (of["data_source"], of["index"]) == (row["data_source"], row["index"]) and of["step"] < row["step"]
    ]
    return tuple(sum(of[name] for of in visits) for name in ("correct", "total"))


def is_likely_mixed(row, rows):
    correct, earlier = earlier_counts(row, rows)
    if not (row["size"] and earlier and row["total"] == row["size"]) or (correct + row["correct"]) % 1:
        return False
    return silent_given_total(row, rows) < 0.5


def ways_of(row, rows):
    """Of the ways to choose which responses to the prompt are right: those without one in this group, those with all of
    this group, and all."""
    correct, earlier = earlier_counts(row, rows)
    right = int(correct + row["correct"])
    every = math.comb(earlier, right - row["size"]) if right >= row["size"] else 0
    return math.comb(earlier, right), every, math.comb(earlier + row["size"], right)


def silent_given_total(row, rows):
    none, every, ways = ways_of(row, rows)
    return (none + every) / ways


def wrong_given_total(row, rows):
    none, _, ways = ways_of(row, rows)
    return none / ways


def predicted_by_all_visits(row, rows):
    """The probability that a group is all right or all wrong, under Beta(1/2 + right, 1/2 + wrong) of earlier steps."""
    right, total = earlier_counts(row, rows)
    if not total:
        return None
    a, b, silent = 0.5 + right, 0.5 + total - right, 0.0
    for first, other in ((a, b), (b, a)):  # one factor per response, by the rule of succession
        silent += math.prod((first + drawn) / (first + other + drawn) for drawn in range(row["size"]))
    return silent


def pass_at_k_by_subsets(rows, k):
    """The mean over groups of the share of subsets of k responses that have a right one."""
    rated = [row for row in rows if row["total"]]
    if any(row["correct"] % 1 for row in rated) or any(row["total"] < k for row in rated):
        return math.nan
    verdicts = [[index < row["correct"] for index in range(row["total"])] for row in rated]
    return mean([mean([any(subset) for subset in itertools.combinations(of, k)]) for of in verdicts])


def ratio(part, whole):
    return part / whole if whole else (math.nan if part == 0 else math.inf)


def mean(values):
    return ratio(sum(values), len(values))


@settings(max_examples=30)
@given(tables())
@example(revisited_prompts())
def test_figures_per_step_equal_those_of_a_loop_over_rows(table):
    figures = step_table(RunData("run", table, {"step": np.zeros(0, np.int64)}, {}, 1, ()))
    expected = slow_step_table(table)
    assert figures["step"].tolist() == list(expected)
    for row, figures_of_step in enumerate(expected.values()):
        for name in figures_of_step.keys() - {"unverified", *COUNTED}:
            assert figures[name][row] == pytest.approx(figures_of_step[name], nan_ok=True), name
    for source in sources_of(figures):
        expected_of_source = slow_step_table(table.filter(pc.equal(table["data_source"], source)))
        for row, step in enumerate(expected):
            for name, without_groups in OF_SOURCES.items():
                value = expected_of_source.get(step, {}).get(name, without_groups)
                assert figures[source_column(name, source)][row] == pytest.approx(value, nan_ok=True), (name, source)
    uses = np.sum([figures[f"rollouts_{use}"] for use in USES], axis=0)
    assert uses == pytest.approx(figures["rollouts"]), "every rollout has one use"


def test_groups_that_are_likely_to_be_mixed_are_told_by_their_kind():
    figures = step_table(RunData("run", revisited_prompts(), {"step": np.zeros(0, np.int64)}, {}, 1, ()))
    likely = [figures[f"likely_{name}"].tolist() for name in ("groups", "silent", "wrong")]
    assert likely == [[0, 5], [0, 4], [0, 2]], "two of the silent groups are all right"
    of_maths = [figures[source_column(f"likely_{name}", "math")].tolist() for name in ("groups", "silent", "wrong")]
    assert of_maths == [[0, 3], [0, 3], [0, 1]]


def test_rows_that_are_not_in_the_order_of_steps_are_counted_at_their_steps():
    """Someone has edited the file of a step."""
    tables = [step_records([LeftGroup(group([1] * n), "trained")] * n, step=n, attempt=1, alpha=1.0) for n in (3, 1, 2)]
    figures = step_table(RunData("run", pa.concat_tables(tables), {"step": np.zeros(0, np.int64)}, {}, 1, ()))
    assert figures["step"].tolist() == figures["groups"].tolist() == [1, 2, 3]
    assert figures["rollouts"].tolist() == [1, 4, 9]


def test_prompts_are_sorted_by_source_and_index_and_their_visits_stay_in_order():
    source, index = np.array([1, 0, 1, 0, 1]), np.array([2**40, 3, -1, 3, 2**40])
    assert order_by_prompt(source, index).tolist() == [1, 3, 2, 0, 4]
    assert order_by_prompt(source, np.array([7, 300, 5, 2, 7])).tolist() == [3, 1, 2, 0, 4]
    assert order_by_prompt(source, np.array([2**16, 1, 2, 0, 2**16])).tolist() == [3, 1, 2, 0, 4], "17 bits"


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=60), st.integers(1, 20))
def test_averages_over_spans_are_few_and_keep_the_mean(values, at_most):
    column = np.array([np.nan if value is None else value for value in values])
    table = {"step": np.arange(1, len(values) + 1), "a": column}
    thin = averaged_in_spans(table, ["a", "absent"], at_most)
    known = column[~np.isnan(column)]
    assert len(thin["a"]) <= at_most and np.isnan(thin["absent"]).all()
    assert not np.isnan(thin["a"]).any()
    assert (thin["low"] < thin["step"]).all() and (thin["step"] < thin["high"]).all()
    assert (thin["high"][:-1] == thin["low"][1:]).all()
    if len(known) <= at_most:
        assert thin["a"].tolist() == known.tolist()
        assert thin["step"].tolist() == table["step"][~np.isnan(column)].tolist()
    elif len(known) % len(thin["a"]) == 0:
        assert thin["a"].mean() == pytest.approx(known.mean())


@settings(max_examples=30)
@given(tables())
def test_shares_of_sigma_cells_add_up_in_each_span_of_steps(table):
    cells = sigma_cells(table)
    whole = [row for row in table.to_pylist() if row["size"]]
    for low in set(cells["low"].tolist()):
        here = cells["low"] == low
        assert cells["share"][here].sum() == pytest.approx(1)
        of_span = [row for row in whole if low < row["step"] < cells["high"][here][0]]
        silent = np.mean([is_silent(row) for row in of_span])
        assert cells["share"][here & (cells["above"] <= 0)].sum() == pytest.approx(silent)
        for row in of_span:
            if not is_silent(row):
                inside = (cells["below"][here] <= row["std"] + 1e-9) & (row["std"] <= cells["above"][here] + 1e-9)
                assert inside.any()


def test_gradient_mass_by_accuracy(tmp_path):
    records(tmp_path, 1, (MIXED, "trained"), ([0, 0, 0, 1], "trained"), ([1, 1, 0, 0], "surplus"), (RIGHT, "trained"))
    found = accuracy_bins(read_run(tmp_path, "run").records)
    sigma = math.sqrt(3) / 4
    groups = {low: share for low, share in zip(found["low"].tolist(), found["groups"].tolist(), strict=True) if share}
    assert groups == pytest.approx({0.2: 1 / 3, 0.7: 1 / 3, 0.9: 1 / 3}), (
        "accuracy 1 is in the last bin, and surplus groups are in none"
    )
    assert found["gain_share"][[2, 7]].tolist() == pytest.approx([0.5, 0.5])
    assert found["gain"][2] == pytest.approx(sigma) and found["gain"][9] == 0


def test_a_larger_group_has_more_of_the_gradient_mass_unless_its_advantages_are_divided_by_its_size(tmp_path):
    """20 prompts of 32 responses, 1 of them right, and 20 of 4, 2 of them right, as a plan of group sizes has them."""
    hard, easy = [1] + [0] * 31, [1, 1, 0, 0]
    records(tmp_path / "planned", 1, *[(hard, "trained")] * 20, *[(easy, "trained")] * 20)
    mass = np.array([32 * math.sqrt(31) / 32, 4 / 2])
    share = accuracy_bins(read_run(tmp_path / "planned", "run").records)["gain_share"]
    assert share[[0, 5]] == pytest.approx(mass / mass.sum()) and share[0] > 0.7
    weighed = LeftGroup(group(hard), "trained", {}, mass[0] / 32), LeftGroup(group(easy), "trained", {}, mass[1] / 4)
    write_step(tmp_path / "budget", step_records(weighed, step=1, attempt=1, alpha=1.0), step=1, attempt=1)
    share = accuracy_bins(read_run(tmp_path / "budget", "run").records)["gain_share"]
    assert share[[0, 5]] == pytest.approx(np.array([math.sqrt(31) / 32, 0.5]) / (math.sqrt(31) / 32 + 0.5))


def test_equal_rewards_are_not_silent_under_an_estimator_that_compares_no_responses(tmp_path):
    groups = (WRONG, "trained"), (RIGHT, "filtered"), (MIXED, "trained"), ([], "failed")
    for name, estimator, silent, taught in (("gsd", "gsd", 2 / 3, 4), ("rpp", "reinforce_plus_plus", 1 / 3, 8)):
        run = tmp_path / name
        records(run, 1, *groups)
        config(run, algorithm__adv_estimator=estimator)
        table = step_table(read_run(run, "run"))
        assert table["silent"][0] == pytest.approx(silent) and table["rollouts_taught"][0] == taught
        assert table["all_wrong"][0] == pytest.approx(1 / 3), "charts of these do not change"
        page = " ".join(text for section in build_sections(read_runs([run])) for text in section.text)
        assert ("rpp: the estimator reinforce_plus_plus" in page) is (name == "rpp")


def test_verdicts_and_rewards_are_compared_only_in_groups_of_own_responses(tmp_path):
    """With a function that returns a number, verl stores acc alone. Earlier responses have a reward and no verdict."""
    history = replace(group([0, 0, 1, 1]), accuracies=np.array([0, 0, np.nan, np.nan]), earlier=2)
    anchored = replace(group(WRONG), demonstrations=1)
    shaped = replace(group([0, 0.2]), accuracies=np.zeros(2))
    others = [(history, "trained"), (anchored, "trained"), (MIXED, "trained"), (WRONG, "trained"), ([], "failed")]
    records(tmp_path, 1, *others)
    records(tmp_path, 2, *others, (shaped, "trained"), (shaped, "filtered"))
    records(tmp_path, 3, (history, "trained"))
    table = step_table(read_run(tmp_path, "run"))
    assert table["all_wrong"].tolist() == [0.75, 5 / 6, 1] and table["silent"].tolist() == [0.25, 2 / 6, 0]
    assert table["shaped"].tolist() == pytest.approx([0, 1 / 4, np.nan], nan_ok=True)


def test_responses_of_earlier_visits_were_not_generated(tmp_path):
    """From step 9 on, half of each group is of an earlier visit. Responses become one token shorter, and no more."""
    rng = np.random.default_rng(0)
    for step in range(1, 25):
        left, earlier = [], 4 if step > 8 else 0
        for _ in range(24):
            rewards = (rng.random(8) < 0.5).astype(float)
            tokens = np.array([99] * 4 + [0] * 4) if earlier else np.full(8, 100)
            accuracies = np.where(tokens > 0, rewards, np.nan)
            of = replace(group(rewards), accuracies=accuracies, tokens=tokens, earlier=earlier)
            left.append((of, "trained"))
        records(tmp_path, step, *left, alpha=0.0)
    metrics(tmp_path, [(step, {"loss": 0.0}) for step in range(1, 25)])
    run = read_run(tmp_path, "run")
    table = step_table(run)
    assert table["tokens_per_response"][[0, 7, 8, 23]].tolist() == [100, 100, 99, 99]
    assert sum(totals_by_use(table)["rollouts"].values()) == 24 * (8 * 8 + 16 * 4) == table["rollouts"].sum()
    assert [finding.title for finding in collect_findings(table, {})] == []


def test_bins_of_accuracy_are_not_shifted_by_rounding(tmp_path):
    records(tmp_path, 1, *(([1.0] * right + [0.0] * (10 - right), "trained") for right in range(1, 10)))
    assert accuracy_bins(read_run(tmp_path, "run").records)["groups"].tolist() == pytest.approx([0] + [1 / 9] * 9)


# What a user gets


def names(sections):
    return [section.name for section in sections]


def test_a_page_has_all_sections_and_charts_of_a_run_with_all_data(tmp_path):
    run = everything(tmp_path / "run")
    result = run_report(run)
    assert result.exit_code == 0, result.output
    assert str(run / "report.html") in result.output
    sections = build_sections(read_runs([run]))
    assert names(sections) == [
        *("headline", "words", "runs", "accuracy", "diversity", "sigma", "silence", "difficulty", "waste"),
        *("prompts", "policy", "hadw", "dagrpo", "gvpo", "allotment"),
    ]
    assert sum(len(section.panels) for section in sections) > 25
    assert [panel.name for section in sections[-4:] for panel in section.panels] == [
        *("hadw-anchor", "hadw-phi"),
        *("dagrpo-pairs", "dagrpo-score", "dagrpo-failed", "dagrpo-latency", "dagrpo-wanted", "dagrpo-probability"),
        "dagrpo-shown",
        *("gvpo-mse", "gvpo-s", "gvpo-pull", "gvpo-kl", "gvpo-length", "gvpo-history"),
        *("allotment-sizes", "allotment-mixed", "allotment-drawn", "allotment-effective"),
    ]


def test_sections_without_data_are_left_out(tmp_path):
    records(tmp_path, 1, (MIXED, "trained"), (WRONG, "trained"), alpha=None)
    sections = build_sections(read_runs([tmp_path]))
    assert names(sections) == [
        *("headline", "words", "runs", "accuracy", "diversity", "sigma", "silence", "waste", "policy")
    ]


def test_a_run_of_verls_own_trainer_has_charts_from_metrics_only(tmp_path):
    metrics(tmp_path, [(step, {"actor/entropy": 1.0, "critic/score/mean": 0.5}) for step in (1, 2, 3)])
    assert run_report(tmp_path, "--png", tmp_path / "png").exit_code == 0
    sections = {section.name: section for section in build_sections(read_runs([tmp_path]))}
    assert list(sections) == ["headline", "words", "runs", "accuracy", "policy"]
    assert [panel.title for panel in sections["accuracy"].panels] == ["Mean score of the batch"]
    drawn = {f"{panel.name}.png" for section in sections.values() for panel in section.panels}
    assert {path.name for path in (tmp_path / "png").iterdir()} == drawn and len(drawn) > 1


def test_exact_accuracies_of_the_laboratory_are_drawn_and_summarised(tmp_path):
    accuracies = [("val-core/math/acc/mean@1", (0.5, 0.75)), ("exact/accuracy", (0.4321, 0.6789))]
    metrics(tmp_path, [(step, {name: ends[step] for name, ends in accuracies}) for step in (0, 1)])
    sections = {section.name: section for section in build_sections(read_runs([tmp_path]))}
    assert [panel.name for panel in sections["accuracy"].panels] == ["accuracy-held-out-1", "accuracy-exact"]
    assert "exact 0.432\xa0to\xa00.679" in sections["runs"].table.rows[0][-1]


def test_each_run_has_one_colour_in_all_charts_and_text_from_data_is_escaped(tmp_path):
    hostile = everything(tmp_path / "a <b> & c", steps=3, source=HOSTILE)
    runs = [hostile, everything(tmp_path / "other", steps=5, seed=1), tmp_path / "stock"]
    metrics(runs[2], [(1, {"actor/entropy": 1.0})])
    result = run_report(*runs, "--output", tmp_path / "both.html")
    assert result.exit_code == 0, result.output
    assert not (runs[0] / "report.html").exists()
    written = (tmp_path / "both.html").read_text()
    assert HOSTILE.split("=")[0] not in written and "<img src=x" not in written
    assert "&lt;img src=x" in written, "text from data is shown as text"
    seen = set()
    for section in build_sections(read_runs(runs)):
        for panel in section.panels:
            colour = panel.chart.to_dict()["encoding"].get("color")  # a map of groups has none
            if colour and colour["field"] == "run":
                seen.add((tuple(colour["scale"]["domain"]), tuple(colour["scale"]["range"])))
    assert len(seen) == 1 and seen.pop()[0] == ("a <b> & c", "other", "stock")


def test_a_page_of_several_runs_does_not_replace_the_report_of_the_first(tmp_path):
    runs = [tmp_path / name for name in ("first", "second")]
    for run in runs:
        metrics(run, [(step, {"actor/entropy": 1.0}) for step in (1, 2, 3)])
    assert run_report(runs[0]).exit_code == 0
    alone = (runs[0] / "report.html").read_bytes()
    result = run_report(*runs)
    assert result.exit_code == 0 and str(runs[0] / "comparison.html") in result.output
    assert (runs[0] / "report.html").read_bytes() == alone
    assert "Report: first, second" in (runs[0] / "comparison.html").read_text()


def test_charts_of_long_runs_have_few_points(tmp_path):
    metrics(tmp_path, [(step, {"actor/entropy": 1.0}) for step in range(1, 1001)])
    for step in range(1, 151):
        records(tmp_path, step, (MIXED, "trained"), (WRONG, "trained"))
    for section in build_sections(read_runs([tmp_path])):
        for panel in section.panels:
            assert len(panel.chart.to_dict()["data"]["values"]) <= 600, panel.name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{empty}"], "empty: "),
        (["{run}", "{empty}"], "empty: "),
        (["{absent}"], "absent: "),
        (["{run}", "{run}"], "run: "),
        (["{run}", "--output", "page.pdf"], r"--output page\.pdf: .*\.html"),
        (["{run}", "--port", "1"], "--port.*--watch"),
        (["{run}", "--watch", "--png", "x"], "--watch.*--output.*--png"),
        (["{run}", "--output", "{file}/page.html"], "file.*--output"),
        ([f"{{many}}/{number}" for number in range(9)], r"\b9\b.*\b8\b"),
    ],
)
def test_a_mistake_is_named_and_no_file_is_written(tmp_path, words, expected):
    places = {name: tmp_path / name for name in ("run", "empty", "absent", "file", "many")}
    records(places["run"], 1, (MIXED, "trained"))
    places["empty"].mkdir()
    places["file"].write_text("")
    for number in range(9):
        (places["many"] / str(number)).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    result = run_report(*(word.format(**places) for word in words))
    assert result.exit_code == 2
    assert re.search(expected, re.sub(r"\s+", " ", result.output)), result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_the_error_for_a_run_without_readable_files_names_them(tmp_path):
    path = records(tmp_path, 1, (MIXED, "trained"))
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"step_000001\.parquet"):
        check_not_empty(read_runs([tmp_path]))


def test_a_run_whose_groups_all_failed_has_a_page(tmp_path):
    records(tmp_path, 1, (group([]), "failed"), (group([]), "failed"))
    config(tmp_path)
    assert run_report(tmp_path).exit_code == 0


def test_the_title_marks_a_rehearsal():
    empty = {"step": np.zeros(0, np.int64)}
    configs = {"a": "/runs/a", "b": "/runs/b-rehearsal/run"}
    runs = [RunData(n, pa.table({}), empty, {"trainer.default_local_dir": c}, 1, ()) for n, c in configs.items()]
    assert page_title(runs) == "Report: a, b (a rehearsal: random weights, seeded scores)"


def test_answers_of_a_prompt_are_compared_over_its_visits(tmp_path):
    """The policy gives up an answer at the second visit. A prompt without an earlier visit is not compared."""

    def visit(index, answers):
        made = replace(group([0, 0, 0, 1], index=index), distinct_answers=len(set(answers)))
        return replace(made, answers=pack_answers(answers)), "trained"

    records(tmp_path, 1, visit(7, "aabb"))
    records(tmp_path, 2, visit(7, "aaaa"), visit(8, "abcd"))
    run = read_run(tmp_path, "run")
    table = step_table(run)
    assert table["answers_in_visit"].tolist() == pytest.approx([math.nan, 1], nan_ok=True)
    # Of the 70 choices of 4 among 6 a and 2 b, 15 have only a.
    assert table["answers_in_visits"].tolist() == pytest.approx([math.nan, 2 - 15 / 70], nan_ok=True)
    (section,) = (section for section in build_sections([run]) if section.name == "diversity")
    assert any(panel.name.endswith("answers-of-prompts") for panel in section.panels)
    assert any("equal numbers of responses" in text for text in section.text)


def validation(figure="acc"):
    return {"validation": 1, f"val-core/math/{figure}/mean@1": 0.5, "val/prompts/math": 100.0}


@pytest.mark.parametrize(
    ("figure", "count", "said"),
    [
        ("acc", 1, "1 validation: whether the held-out accuracy falls (needs 4)."),
        ("acc", 3, "3 validations: whether the held-out accuracy falls (needs 4)."),
        ("acc", 4, None),
        ("reward", 11, "11 validations: whether the held-out reward falls (needs 12)."),
        ("reward", 12, None),
    ],
)
def test_a_page_says_whether_a_run_has_too_few_validations(tmp_path, figure, count, said):
    for step in range(1, 61):
        records(tmp_path, step, (MIXED, "trained"))
    metrics(tmp_path, [(5 * number, validation(figure)) for number in range(count)])
    _, section, *_ = build_sections(read_runs([tmp_path]))
    sentences = [text for text in section.text if "Not checked" in text]
    assert sentences == ([f"Not checked, because this run has {said}"] if said else [])


def test_a_page_says_which_checks_a_run_is_too_short_for(tmp_path):
    """Lengths and entropy collapse within 8 steps: too few to tell, and the page says so."""
    for step in range(1, 9):
        records(tmp_path / "short", step, (group(MIXED, tokens=1000 // step), "trained"))
    metrics(tmp_path / "short", [(step, {"actor/entropy": 1 / step**3}) for step in range(1, 9)])
    _, section, *_ = build_sections(read_runs([tmp_path / "short"]))
    sentence, of_validations = [text for text in section.text if "Not checked" in text]
    assert of_validations == "Not checked, because this run has no validations: whether held-out accuracy falls."
    assert "this run has 8 steps" in sentence
    for check in ("the entropy or the length of responses collapses (needs 12", "shift at once (needs 16"):
        assert check in sentence
    for step in range(1, 61):
        records(tmp_path / "long", step, (MIXED, "trained"))
    metrics(tmp_path / "long", [(step, validation()) for step in (15, 30, 45, 60)])
    _, section, *_ = build_sections(read_runs([tmp_path / "long"]))
    assert not any("Not checked" in text for text in section.text)
    for step in range(9, 31):
        records(tmp_path / "short", step, (MIXED, "trained"))
    _, section, *_ = build_sections(read_runs([tmp_path / "short", tmp_path / "long"]))
    sentence, _ = [text for text in section.text if "Not checked" in text]
    assert "short has 30 steps: whether the loss oscillates (needs 60 steps)." in sentence


def test_a_folder_of_runs_is_rejected_with_the_runs_in_it(tmp_path):
    for seed in (1, 2, 3):
        metrics(tmp_path / "grpo" / f"seed_{seed}", [(1, {"actor/entropy": 1.0})])
    result = run_report(tmp_path / "grpo")
    assert result.exit_code == 2
    folders = " ".join(f"{tmp_path}/grpo/seed_{seed}" for seed in (1, 2))
    assert f"has 3 of them. Use the folders of runs, for example `verl-gsd report {folders}`" in result.output
    assert f"use `verl-gsd compare {tmp_path}/grpo/seed_*`" in result.output
    assert run_report(tmp_path / "grpo" / "seed_1").exit_code == 0


def test_runs_are_compared_by_means_over_fifths_of_their_steps(tmp_path):
    """A single first or last step is noisy: here it lies far from its neighbours."""
    rewards = [WRONG, MIXED, *[RIGHT] * 6, MIXED, WRONG]
    for step, rewarded in enumerate(rewards, start=1):
        records(tmp_path, step, (rewarded, "trained"))
    sections = {section.name: section for section in build_sections(read_runs([tmp_path]))}
    (row,) = sections["runs"].table.rows
    assert row[sections["runs"].table.header.index("accuracy of rollouts, first to last fifth")] == (
        "0.375\xa0to\xa00.375"
    )
    figure = sections["headline"].figures[0].figures[0]
    assert (figure.value, figure.note) == ("38% to 38%", "means of steps 1 to 2 and 9 to 10")


def test_tooltips_name_the_step_or_the_bin(tmp_path):
    run = everything(tmp_path / "run", steps=5)
    charts = {panel.name: panel.chart.to_dict() for s in build_sections(read_runs([run])) for panel in s.panels}
    fields = {
        name: {part["field"] for part in chart["encoding"]["tooltip"]}
        for name, chart in charts.items()
        if isinstance(chart.get("encoding", {}).get("tooltip"), list)
    }
    assert len(fields) > 20
    for name, shown in fields.items():
        assert shown & {"step", "steps", "bin", "row"}, name
    assert "steps" in fields["silence-kinds"] and "steps" in fields["sigma-map-1"] and "step" in fields["sigma-mean"]


def test_only_runs_with_a_kl_penalty_in_the_reward_have_the_note_on_records_of_older_versions(tmp_path):
    for name, content in (("with", "algorithm: {use_kl_in_reward: true}\n"), ("without", "{}\n")):
        records(tmp_path / name, 1, (MIXED, "trained"), (WRONG, "trained"))
        (tmp_path / name / "config.yaml").write_text(content)
        (section,) = (section for section in build_sections(read_runs([tmp_path / name])) if section.name == "silence")
        assert any("older version" in text and "train again" in text for text in section.text) == (name == "with")


# Smoothed lines


def lines_of(folder, values):
    """The chart of entropy, as Vega-Lite, of a run with these values at steps 1, 2, ..."""
    metrics(folder, [(step, {"actor/entropy": value}) for step, value in enumerate(values, start=1)])
    (section,) = (section for section in build_sections(read_runs([folder])) if section.name == "policy")
    return section.panels[0].chart.to_dict()


@given(st.lists(st.floats(-1e300, 1e300) | st.just(math.nan), min_size=0, max_size=60), st.integers(0, 3))
def test_a_smoothed_line_stays_in_the_range_of_its_values(values, gap):
    y = np.array(values, dtype=float)
    x = np.cumsum(1.0 + np.arange(len(y)) % (gap + 1))
    smooth = smoothed(x, y)
    known = ~np.isnan(y)
    assert (np.isnan(smooth) == np.isnan(y)).all()
    if known.any():
        slack = 1e-9 * np.abs(y[known]).max()
        assert y[known].min() - slack <= smooth[known].min() and smooth[known].max() <= y[known].max() + slack


def test_smoothing_keeps_straight_lines_and_their_ends_and_removes_noise():
    x = np.arange(100.0)
    assert smoothed(x, 3 - 0.1 * x) == pytest.approx(3 - 0.1 * x)
    noisy = 0.5 + 0.004 * x + np.random.default_rng(0).normal(0, 0.1, 100)
    errors = [np.abs(line - 0.5 - 0.004 * x).mean() for line in (smoothed(x, noisy), noisy)]
    assert errors[0] < errors[1] / 2
    assert smoothed(x[:8], noisy[:8]).tolist() == noisy[:8].tolist()


@pytest.mark.parametrize(("steps", "is_smoothed"), [(40, False), (41, True)])
def test_the_page_tells_of_smoothed_lines_only_if_it_has_some(tmp_path, steps, is_smoothed):
    """The validation before training, step 0, is no point of a line."""
    lines = [(step, {"actor/entropy": 1.0 + step % 2}) for step in range(1, steps + 1)]
    metrics(tmp_path, [(0, {"validation": 1, "val-core/math/acc/mean@1": 0.2}), *lines])
    (section,) = (section for section in build_sections(read_runs([tmp_path])) if section.name == "runs")
    assert any("smoothed" in text for text in section.text) == is_smoothed


def test_a_line_of_many_points_is_pale_under_a_smoothed_one(tmp_path):
    values = [1.0, 0.0] * 30
    noisy = lines_of(tmp_path / "long", values)
    pale, strong = noisy["layer"]
    assert (pale["encoding"]["y"]["field"], strong["encoding"]["y"]["field"]) == ("value", "smooth")
    assert pale["mark"]["opacity"] < 0.5 and "opacity" not in strong["mark"]
    rows = noisy["data"]["values"]
    assert [row["value"] for row in rows] == values
    assert all(0.3 < row["smooth"] < 0.7 for row in rows)
    short = lines_of(tmp_path / "short", values[:40])
    assert "layer" not in short and "smooth" not in short["data"]["values"][0]
