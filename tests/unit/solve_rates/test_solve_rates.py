"""Solve rates from tables, histograms, verl's dumps and our records, and the errors for invalid ones."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.groups import Group
from verl_gsd.prompts import prompt_hash
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.row_table import read_row_table
from verl_gsd.solve_rates import join, read_solve_rates

SUFFIXES = ("parquet", "jsonl", "csv")


def table(path, **columns):
    """Write ``columns`` to a file in the format of its suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [",".join("" if cell is None else str(cell) for cell in row.values()) for row in rows]
        path.write_text("\n".join([",".join(columns), *cells]) + "\n")
    return path


def visits(run, step, *groups, attempt=1, fate="trained", source="math"):
    """Write the records of one step: (index, accuracies) per group."""
    left = []
    for index, verdicts in groups:
        accuracies = np.array(verdicts, dtype=float)
        group = Group("u", source, index, np.nan_to_num(accuracies), accuracies, np.ones(len(verdicts), dtype=int))
        left.append(LeftGroup(group, fate))
    return write_step(run, step_records(left, step=step, attempt=attempt, alpha=1.0), step=step, attempt=attempt)


def dump(folder, step, *lines, **fields):
    """Write verl's dump of one step: (prompt's text, its uid, score) per line."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{step}.jsonl"
    rows = [
        {"input": text, "output": "o", "gts": "7", "score": score, "step": step, "uid": uid} | fields
        for text, uid, score in lines
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rates_and_a_number_of_samples_give_counts(tmp_path, suffix):
    path = table(tmp_path / f"rates.{suffix}", rate=[0.25, 1.0, 0.0], name=["a", "b", "c"])
    found = read_solve_rates(path, column="rate", samples=8)
    assert (found.rate.tolist(), found.correct.tolist(), found.total.tolist()) == ([0.25, 1, 0], [2, 8, 0], [8] * 3)
    assert found.correct.dtype == found.total.dtype == np.int64 and found.rate.dtype == np.float64
    assert found.skipped == () and found.row.tolist() == [0, 1, 2] and found.keys is None
    alone = read_solve_rates(path, column="rate")
    assert alone.rate.tolist() == [0.25, 1, 0] and alone.correct is None and alone.total is None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_counts_and_totals_are_read_from_their_columns(tmp_path, suffix):
    path = table(tmp_path / f"counts.{suffix}", right=[1, 6], of=[4, 8])
    found = read_solve_rates(path, correct_column="right", total_column="of")
    assert (found.rate.tolist(), found.correct.tolist(), found.total.tolist()) == ([0.25, 0.75], [1, 6], [4, 8])
    found = read_solve_rates(path, correct_column="right", samples=10)
    assert found.rate.tolist() == [0.1, 0.6]


@given(st.integers(1, 1024), st.data())
def test_counts_are_recovered_from_float32_or_rounded_rates(tmp_path_factory, samples, data):
    correct = data.draw(st.lists(st.integers(0, samples), min_size=1, max_size=5))
    path = tmp_path_factory.mktemp("rates") / "rates.parquet"
    pq.write_table(pa.table({"rate": pa.array([c / samples for c in correct], pa.float32())}), path)
    assert read_solve_rates(path, column="rate", samples=samples).correct.tolist() == correct
    short = table(path.with_suffix(".csv"), rate=[f"{c / samples:.5f}" for c in correct])
    found = read_solve_rates(short, column="rate", samples=samples)
    assert found.correct.tolist() == correct
    assert found.rate.tolist() == [c / samples for c in correct], "of counts that are known, the exact rate"


@pytest.mark.parametrize(("samples", "decimals"), [(8, 2), (16, 2), (64, 3), (128, 3)])
def test_counts_are_recovered_from_rates_with_few_decimals(tmp_path, samples, decimals):
    counts = np.arange(samples + 1)
    path = table(tmp_path / "rates.csv", rate=[round(count / samples, decimals) for count in counts])
    assert read_solve_rates(path, column="rate", samples=samples).correct.tolist() == counts.tolist()
    other = table(tmp_path / "other.csv", rate=[round(count / (samples + 2), decimals) for count in counts])
    with pytest.raises(ValueError, match="not an integer"):
        read_solve_rates(other, column="rate", samples=samples)


def test_rates_with_too_few_decimals_for_their_samples_give_no_counts(tmp_path):
    for samples, rates in ((128, [0.99, 0.5]), (8, [0.3, 0.9])):
        path = table(tmp_path / "rates.csv", rate=rates)
        with pytest.raises(ValueError, match="not an integer"):
            read_solve_rates(path, column="rate", samples=samples)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_without_a_rate_are_skipped_and_reported(tmp_path, suffix):
    rates = [0.5, None, math.nan, 0.25] if suffix != "csv" else ["0.5", "", "nan", "0.25"]
    path = table(tmp_path / f"rates.{suffix}", rate=rates, of=[4, 4, 4, 0])
    found = read_solve_rates(path, column="rate")
    assert found.rate.tolist() == [0.5, 0.25] and found.row.tolist() == [0, 3] and found.n_rows == 4
    (said,) = found.skipped
    assert re.search(r"\b2 of 4\b.*column rate\b.*row 1\b", said)
    found = read_solve_rates(path, column="rate", total_column="of")
    assert found.row.tolist() == [0]
    assert re.search(r"\b1 of 4\b.*column of\b.*row 3\b", found.skipped[1])


def test_prompts_of_verls_data_sets_are_identified_by_their_keys(tmp_path):
    columns = {"data_source": ["a", "a"], "extra_info": [{"index": 5}, {"index": 9}], "rate": [None, 0.5]}
    assert read_solve_rates(table(tmp_path / "a.parquet", **columns), column="rate").keys == [("a", 9)]
    columns["extra_info"] = [{"index": 0}, {"index": 0}]
    assert read_solve_rates(table(tmp_path / "b.parquet", **columns), column="rate").keys is None


def test_a_histogram_is_expanded_to_prompts(tmp_path):
    path = tmp_path / "counts.json"
    path.write_text("[2, 0, 1, 3]")
    found = read_solve_rates(path)
    assert found.correct.tolist() == [0, 0, 2, 3, 3, 3] and set(found.total.tolist()) == {3}
    assert read_solve_rates(path, samples=3).rate.tolist() == found.rate.tolist()


def test_dumps_are_pooled_by_prompt_over_steps(tmp_path):
    dump(tmp_path / "dumps", 2, ("one", "u_0_0", 1), ("one", "u_1_0", 0), ("two", "v_0_0", 0))
    dump(tmp_path / "dumps", 10, ("two", "w_0_0", 1), ("two", "w_1_0", 1), ("one", "pad9_0_0", 0))
    (tmp_path / "dumps" / "notes.txt").write_text("not a dump")
    found = read_solve_rates(tmp_path / "dumps")
    assert (found.correct.tolist(), found.total.tolist()) == ([1, 2], [2, 3]), "padding is no response"
    assert found.keys is None and found.row is None
    assert read_solve_rates(tmp_path / "dumps" / "10.jsonl").total.tolist() == [2], "one dump is not a table of prompts"


def test_a_session_of_several_outputs_is_one_response(tmp_path):
    path = dump(tmp_path / "dumps", 1, ("one", "u_0_0", 1), ("one then", "u_0_1", 1), ("one", "u_1_0", 0))
    assert read_solve_rates(path.parent).total.tolist() == [2]
    dump(tmp_path / "many", 1, ("one", "u_12_0", 1), ("one then", "u_12_1", 1), ("one", "u_13_0", 0))
    assert read_solve_rates(tmp_path / "many").total.tolist() == [2], "sessions of two digits"


def test_equal_texts_with_different_answers_are_different_prompts(tmp_path):
    dump(tmp_path / "dumps", 1, ("one", "u_0_0", 1))
    dump(tmp_path / "dumps", 2, ("one", "v_0_0", 0), gts=["8"])
    assert read_solve_rates(tmp_path / "dumps").correct.tolist() == [1, 0]


def dump_with_acc(folder, step, *lines):
    """Write a dump: (prompt's text, score, acc) per line."""
    path = dump(folder, step, *((text, f"{text}_{place}_0", score) for place, (text, score, _) in enumerate(lines)))
    rows = [
        json.loads(line) | {"acc": acc} for line, (*_, acc) in zip(path.read_text().splitlines(), lines, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_response_without_acc_counts_as_wrong_if_another_of_its_dump_has_one(tmp_path):
    """A reward function that returns no acc if it finds no answer. Without these, solve rates would be too high."""
    lines = [("one", 0.0, None), ("two", -1.0, None), ("one", 1.0, 1.0), ("one", 0.0, None), ("two", 0.0, float("nan"))]
    rates = read_solve_rates(dump_with_acc(tmp_path / "dumps", 1, *lines).parent)
    assert rates.correct.tolist() == [1, 0] and rates.total.tolist() == [3, 2] and rates.skipped == ()


def test_a_response_without_acc_stays_without_a_verdict_if_its_source_may_have_none(tmp_path):
    """A score above 0 can be that of a reward model. Of a dump without any acc, nothing is known."""
    dump_with_acc(tmp_path / "dumps", 1, ("one", 1.0, 1.0), ("two", 0.7, None), ("one", 0.0, None))
    dump_with_acc(tmp_path / "dumps", 2, ("two", 0.0, None), ("two", -0.3, None))
    rates = read_solve_rates(tmp_path / "dumps")
    assert rates.correct.tolist() == [1] and rates.total.tolist() == [2]
    assert "3 responses without a acc" in rates.skipped[0]


def test_a_validation_dump_has_verdicts_in_addition_to_rewards(tmp_path):
    path = dump(tmp_path / "dumps", 1, ("one", "u_0_0", -1.0), ("one", "u_1_0", 2.5), acc=True)
    assert read_solve_rates(path.parent).correct.tolist() == [2]
    with pytest.raises(ValueError, match=r"1\.jsonl, line 1\b.*field score: -1\b"):
        read_solve_rates(path.parent, column="score")
    with pytest.raises(ValueError, match=r"1\.jsonl, line 1\b.*\bpassed\b.*input, output"):
        read_solve_rates(path.parent, column="passed")


def test_fractional_verdicts_give_rates_without_counts(tmp_path):
    dump(tmp_path / "dumps", 1, ("one", "u_0_0", 0.5), ("one", "u_1_0", 1))
    found = read_solve_rates(tmp_path / "dumps")
    assert found.rate.tolist() == [0.75] and found.correct is None and found.total is None


def dumps_of_groups(folder, groups, **fields):
    """Dump groups of (prompt's text, scores), two per step."""
    for step, start in enumerate(range(0, len(groups), 2), start=1):
        part = enumerate(groups[start : start + 2])
        lines = [(text, f"u{number}_{n}_0", score) for number, (text, scores) in part for n, score in enumerate(scores)]
        dump(folder, step, *lines, **fields)
    return folder


def test_dumps_without_a_silent_group_are_reported(tmp_path):
    """With dynamic sampling verl dumps mixed groups only, although a prompt's pooled rate can be 0.5 or 0.25."""
    mixed = [("one", [1, 0]), ("two", [0, 0, 1]), ("one", [0, 1]), ("three", [1])]
    found = read_solve_rates(dumps_of_groups(tmp_path / "filtered", mixed))
    assert found.mixed_groups == 3 and found.unbiased_counts == (None, None), "one response is no group"
    (notice,) = found.notices()
    assert re.search(r"\b3 groups\b.*algorithm\.filter_groups.*--solve-rates", notice)
    whole = read_solve_rates(dumps_of_groups(tmp_path / "whole", [*mixed, ("four", [0, 0])]))
    assert whole.mixed_groups == 0 and whole.notices() == [] and whole.unbiased_counts[0] is whole.correct
    alone = read_solve_rates(dumps_of_groups(tmp_path / "alone", [("one", [1]), ("two", [0])]))
    assert alone.mixed_groups == 0, "single responses tell nothing"


@pytest.mark.parametrize("filtered", [range(3), range(3, 10), [0, 4, 9]])
def test_dumps_are_reported_if_dynamic_sampling_was_on_in_a_part_of_the_steps(filtered, tmp_path):
    silent, mixed = [0, 0], [0, 1]
    for step in range(10):
        scores = [mixed if step in filtered or n % 2 else silent for n in range(32)]
        rows = [
            (f"q{n}", f"u{step}x{n}_{k}_0", score) for n, group in enumerate(scores) for k, score in enumerate(group)
        ]
        dump(tmp_path / "dumps", step, *rows)
    found = read_solve_rates(tmp_path / "dumps")
    assert (found.mixed_files, found.mixed_groups) == (len(filtered), 32 * len(filtered))
    assert found.unbiased_counts == (None, None)
    (notice,) = found.notices()
    assert re.search(rf"\b{32 * len(filtered)} groups in {len(filtered)} dumps\b.*algorithm\.filter_groups", notice)


def test_a_step_without_a_silent_group_where_few_are_expected_is_not_reported(tmp_path):
    """The silent rate rises from 0 over 1 of 32 to a half, as in a run that learns."""
    for step, n_silent in enumerate([0, 0, 1, 0, 2, 4, 8, 16]):
        scores = [[0, 0] if n < n_silent else [0, 1] for n in range(32)]
        rows = [
            (f"q{n}", f"u{step}x{n}_{k}_0", score) for n, group in enumerate(scores) for k, score in enumerate(group)
        ]
        dump(tmp_path / "dumps", step, *rows)
    found = read_solve_rates(tmp_path / "dumps")
    assert found.mixed_groups == 0 and found.notices() == [] and found.unbiased_counts[0] is found.correct


def test_dumps_are_recognised_by_what_dynamic_sampling_compared(tmp_path):
    """With algorithm.filter_groups.metric=score, groups of equal verdicts stay if their scores differ."""
    scores = [("one", [0.5, 0.25]), ("two", [-1, 1])]
    assert read_solve_rates(dumps_of_groups(tmp_path / "by_score", scores, acc=1)).mixed_groups == 2
    equal = [("one", [0.5, 0.5]), ("two", [-1, 1])]
    assert read_solve_rates(dumps_of_groups(tmp_path / "all", equal, acc=1)).mixed_groups == 0


def marked(folder, step, *lines):
    """Write a dump of our trainer modes: (prompt's text, uid, score, origin, score of the replaced response)."""
    path = dump(folder, step, *(line[:3] for line in lines))
    rows = [json.loads(line) for line in path.open()]
    for row, (*_, origin, replaced) in zip(rows, lines, strict=True):
        row |= {"gsd_origin": origin, "gsd_replaced_score": replaced}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_demonstrations_and_earlier_responses_are_no_responses_of_the_policy(tmp_path):
    """The response that a demonstration replaced counts, so that groups of failures do not count less than others."""
    own = [
        ("one", "u_0_0", 0, "policy", None),
        ("two", "v_0_0", 1, "policy", None),
        ("two", "v_1_0", 0, "policy", None),
    ]
    added = [
        ("one", "u_1_0", 1, "expert", 0.0),
        ("two", "v_4_0", 1, "earlier", None),
        ("one", "u_2_0", 1, "self", None),
    ]
    path = marked(tmp_path / "dumps", 3, *own, *added)
    found = read_solve_rates(path.parent)
    assert (found.correct.tolist(), found.total.tolist()) == ([0, 1], [2, 2])
    (said,) = found.skipped
    assert re.search(r"^3 demonstrations and responses of earlier steps; .*3\.jsonl, line 4\b", said)
    marked(tmp_path / "earlier", 1, ("one", "u_4_0", 1, "earlier", None))
    with pytest.raises(ValueError, match="no response has a verdict; 1 demonstrations and responses of earlier steps"):
        read_solve_rates(tmp_path / "earlier")


def test_dynamic_sampling_is_recognised_by_groups_with_their_demonstrations(tmp_path):
    """A demonstration keeps a group of failures. That the policy's own responses agree is no sign of a whole dump."""
    kept = [("one", f"u_{n}_0", int(n == 1), "expert" if n == 1 else "policy", 0.0 if n == 1 else None) for n in (0, 1)]
    mixed = [("two", f"v_{n}_0", n, "policy", None) for n in (0, 1)]
    found = read_solve_rates(marked(tmp_path / "dumps", 1, *kept, *mixed).parent)
    assert found.correct.tolist() == [0, 1] and found.mixed_groups == 2


def test_dumps_that_seem_to_have_earlier_responses_without_a_mark_are_not_called_unbiased(tmp_path):
    """The sign is the numbers of sessions: 0, 1, 4 and 5 in groups of 4."""
    with_history = [(text, f"{text}_{n}_0", n % 2) for text in ("a", "b") for n in (0, 1, 4, 5)]
    silent = [("c", "c_0_0", 0), ("c", "c_1_0", 0)]
    dump(tmp_path / "dumps", 1, *silent)
    dump(tmp_path / "dumps", 2, *with_history, *silent)
    found = read_solve_rates(tmp_path / "dumps")
    assert found.unmarked_files == 1 and found.mixed_groups == 0 and found.unbiased_counts == (None, None)
    (notice,) = found.notices()
    assert re.search(r"\b1 dumps\b.*most groups lack session numbers.*--solve-rates", notice)
    of_marked = marked(tmp_path / "marked", 1, *((*line, "policy", None) for line in [*with_history, *silent]))
    assert read_solve_rates(of_marked).unmarked_files == 0, "sessions failed"
    failures = [("a", "a_0_0", 1), ("a", "a_2_0", 0), ("b", "b_0_0", 1), ("b", "b_1_0", 1)]
    assert read_solve_rates(dump(tmp_path / "failed", 1, *failures)).unmarked_files == 0, "one of two groups"


def test_a_dump_truncated_by_a_crash_is_read_up_to_the_last_complete_line(tmp_path):
    dump(tmp_path / "dumps", 1, ("one", "u_0_0", None), ("one", "u_1_0", 1))
    path = dump(tmp_path / "dumps", 2, ("two", "v_0_0", 0), ("two", "v_1_0", 1))
    path.write_text(path.read_text()[:-20])
    found = read_solve_rates(tmp_path / "dumps")
    assert found.correct.tolist() == [1, 0] and found.total.tolist() == [1, 1]
    without, cut_off = found.skipped
    assert re.search(r"^1\b.*score\b.*1\.jsonl, line 1\b", without) and re.search(r"^1\b.*2\.jsonl, line 2\b", cut_off)
    path.write_text("{\n" + path.read_text())
    with pytest.raises(ValueError, match=r"2\.jsonl, line 1\b.*JSON"):
        read_solve_rates(tmp_path / "dumps")


def test_records_are_pooled_by_prompt_whatever_the_fate_of_a_group(tmp_path):
    visits(tmp_path, 1, (7, [0, 1, 1, 1]), (3, [0, 0]))
    visits(tmp_path, 2, (7, [1, 1]), (3, [0, 0, 1]), (4, [1]), fate="filtered")
    visits(tmp_path, 2, (3, [1, 1]), attempt=2)  # resumed after step 1: the other step 2 was undone
    visits(tmp_path, 3, (5, [np.nan, np.nan]), attempt=2, source="reward model")
    visits(tmp_path, 4, (3, [np.nan, np.nan]), attempt=2)  # without acc, they count as wrong
    found = read_solve_rates(tmp_path)
    assert found.keys == [("math", 3), ("math", 7)]
    assert (found.correct.tolist(), found.total.tolist()) == ([2, 3], [6, 4])
    (said,) = found.skipped
    assert re.search(r"\b1 of 5\b.*row 3\b.*step 3\b", said)


@pytest.mark.parametrize(
    ("sizes", "config", "said"),
    [
        ((2, 2, 2, 2), "algorithm: {gsd: {alpha: 1.0, sampler: null}}", None),
        ((2, 2, 2, 2), "algorithm: [damaged", None),
        ((2, 2, 2, 2), "algorithm: {gsd: {sampler: {explore: 0.1}}}", "the sampler"),
        ((2, 6, 2, 6), "algorithm: {gsd: {alpha: 1.0}}", "a budget, or sizes of groups in the data,"),
    ],
)
def test_counts_that_outcomes_decided_give_no_unbiased_figures(tmp_path, sizes, config, said):
    """Prompts whose responses differ then have more of them, so that those with many are not like the others."""
    for step in (1, 2):
        visits(tmp_path, step, *((index, [0, 1] * (size // 2)) for index, size in enumerate(sizes)))
    (tmp_path / "config.yaml").write_text(config)
    found = read_solve_rates(tmp_path)
    assert found.is_biased == (said is not None)
    assert [sentence for sentence in found.notices() if f"{said} gave more responses" in sentence] == found.notices()
    assert (found.unbiased_counts[0] is None) == (said is not None)


def test_a_resume_with_groups_of_another_size_is_no_budget(tmp_path):
    """Whoever resumed chose the size for all prompts at once."""
    visits(tmp_path, 1, *((index, [0, 1]) for index in range(5)))
    visits(tmp_path, 2, *((index, [0, 1]) for index in range(5)))
    visits(tmp_path, 2, *((index, [0, 1, 1, 1]) for index in range(5)), attempt=2)
    assert not read_solve_rates(tmp_path).is_biased
    visits(tmp_path, 3, *((index, [0, 1, 1, 1]) for index in range(4)), (4, [0, 1] * 3), (5, [0, 1]), attempt=2)
    assert read_solve_rates(tmp_path).is_biased, "also if the groups of the second attempt alone differ"


def test_a_sampler_of_an_earlier_attempt_chose_too(tmp_path):
    for attempt in (1, 2):
        visits(tmp_path, attempt, (0, [0, 1]), (1, [1, 1]), attempt=attempt)
    (tmp_path / "configs").mkdir()
    for attempt, sampler in ((1, "{explore: 0.1}"), (2, "null")):
        config = f"algorithm: {{gsd: {{sampler: {sampler}}}}}"
        (tmp_path / "configs" / f"attempt_{attempt}.yaml").write_text(config)
        (tmp_path / "config.yaml").write_text(config)
    assert read_solve_rates(tmp_path).is_biased


def test_some_failed_sessions_leave_unbiased_figures(tmp_path):
    visits(tmp_path, 1, (0, [0, 1]), *((index, [0, 1, 1]) for index in range(1, 20)))
    assert not read_solve_rates(tmp_path).is_biased


@pytest.mark.parametrize(("size", "lost"), [(16, 0.01), (64, 0.002), (64, 0.05)])
def test_lost_responses_of_large_groups_are_no_budget(tmp_path, size, lost):
    """Of 64 responses, one is often lost, so that most groups differ from the largest."""
    generator = np.random.default_rng(0)
    for step in range(1, 4):
        sizes = generator.binomial(size, 1 - lost, 30)
        visits(tmp_path, step, *((index, [0, 1] + [1] * (count - 2)) for index, count in enumerate(sizes)))
    assert not read_solve_rates(tmp_path).is_biased


def test_responses_of_earlier_visits_are_no_other_size(tmp_path):
    left = []
    for index in range(20):
        earlier = index % 2  # every other group has a response of an earlier visit, which has no accuracy here
        accuracies = np.array([0, 1] + [np.nan] * earlier)
        rewards, tokens = np.nan_to_num(accuracies), np.ones(len(accuracies), dtype=int)
        left.append(LeftGroup(Group("u", "math", index, rewards, accuracies, tokens, earlier=earlier), "trained"))
    write_step(tmp_path, step_records(left, step=1, attempt=1, alpha=1.0), step=1, attempt=1)
    assert not read_solve_rates(tmp_path).is_biased


def test_a_source_with_verdicts_of_1_and_minus_1_has_no_solve_rates(tmp_path):
    visits(tmp_path, 1, (1, [1, 1]), source="code")
    visits(tmp_path, 2, (2, [1, -1]), (1, [1, 1]), source="code")
    with pytest.raises(ValueError, match=r"none of the 3 groups.*data_source=code returned an acc outside \[0, 1\]"):
        read_solve_rates(tmp_path)
    visits(tmp_path, 3, (7, [0, 1]))
    found = read_solve_rates(tmp_path)
    assert (found.keys, found.correct.tolist(), found.total.tolist()) == ([("math", 7)], [1], [2])
    assert "3 of 4 groups" in found.skipped[0] and "data_source=code" in found.skipped[1]


def test_records_of_a_crashed_run_are_read_and_a_damaged_file_is_named(tmp_path):
    whole = visits(tmp_path, 1, (7, [0, 1]))
    (whole.parent / "step_000002.tmp").write_bytes(whole.read_bytes()[:50])
    assert read_solve_rates(tmp_path).total.tolist() == [2]
    (whole.parent / "step_000002.parquet").write_bytes(whole.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"step_000002\.parquet: "):
        read_solve_rates(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"r": [0.5, 17]}, {"column": "r"}, r"row 1\b.*column r: '?17\b.*--correct-column"),
        ({"r": [0.5, -0.1]}, {"column": "r"}, r"row 1\b.*column r: '?-0\.1\b"),
        ({"r": ["half", "1"]}, {"column": "r"}, r"row 0\b.*column r: 'half'"),
        ({"r": [0.5, 0.3]}, {"column": "r", "samples": 8}, r"row 1\b.*\b0\.3 of 8\b.*\b2\.400\b"),
        ({"r": [3, 9]}, {"correct_column": "r", "samples": 8}, r"row 1\b.*column r: 9\b.*\b8\b"),
        ({"r": [3, 2.5]}, {"correct_column": "r", "samples": 8}, r"row 1\b.*column r: '?2\.5\b"),
        ({"r": [3], "n": [2]}, {"correct_column": "r", "total_column": "n"}, r"row 0\b.*column r: 3\b.*\b2\b"),
        ({"r": [3]}, {"correct_column": "r"}, "correct_column=r: .*samples.*total_column"),
        ({"r": [3]}, {"column": "r", "correct_column": "r"}, "column=r .*correct_column=r"),
        ({"r": [3]}, {"column": "r", "samples": 8, "total_column": "r"}, "samples=8 .*total_column=r"),
        ({"r": [0.5]}, {"column": "r", "samples": 0}, "samples=0"),
        ({"r": [0.5], "s": [1]}, {}, r"--column\b.*--correct-column\b.*r, s"),
        ({"r": [0.5], "s": [1]}, {"column": "t"}, r"column t\b.*r, s"),
    ],
)
def test_a_value_that_is_not_a_rate_raises_an_error_with_file_and_row(tmp_path, suffix, columns, options, message):
    path = table(tmp_path / f"rates.{suffix}", **columns)
    with pytest.raises(ValueError, match=message) as caught:
        read_solve_rates(path, **options)
    if "row" in message:
        assert str(path) in str(caught.value)


def test_a_source_without_rates_raises_an_error_that_names_it(tmp_path):
    for name, content, options, message in (
        ("empty.csv", "", {"column": "r"}, r"csv: |jsonl: "),
        ("header.csv", "r\n", {"column": "r"}, r"csv: |jsonl: "),
        ("empty.jsonl", "", {"column": "r"}, r"csv: |jsonl: "),
        ("none.csv", "r,s\n,1\nnan,2\n", {"column": "r"}, r"\b2 of 2\b.*column r\b"),
        ("rates.xlsx", "", {}, r"\.parquet, \.jsonl, \.csv or \.json"),
        ("h.json", "{}", {}, "list"),
        ("h.json", "[1, -2]", {}, r"entry 1\b.*-2"),
        ("h.json", "[1, true]", {}, r"entry 1\b.*True"),
        ("h.json", "[0, 0]", {}, r"\b0 prompts"),
        ("h.json", "[1, 2", {}, "JSON"),
        ("h.json", "[1, 2]", {"samples": 8}, r"\b1\b.*samples=8"),
        ("h.json", "[1, 2]", {"column": "r"}, "column=r"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            read_solve_rates(tmp_path / name, **options)
        assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_solve_rates(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder: .*trainer mode"):
        read_solve_rates(tmp_path / "folder")
    dump(tmp_path / "folder", 1)
    with pytest.raises(ValueError, match=r"folder: .*verdict"):
        read_solve_rates(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"samples=4: .*dumps"):
        read_solve_rates(tmp_path / "folder", samples=4)
    visits(tmp_path / "run", 1, (1, [np.nan]))
    with pytest.raises(ValueError, match=r"/run: .*\b1\b"):
        read_solve_rates(tmp_path / "run")


def test_a_training_set_is_joined_by_key_whatever_the_order_of_its_rows(tmp_path):
    visits(tmp_path / "run", 1, (7, [0, 1, 1, 1]), (3, [0, 0]))
    rates = read_solve_rates(tmp_path / "run")
    data = {"data_source": ["math"] * 3, "extra_info": [{"index": i} for i in (7, 1, 3)]}
    entries = join(rates, read_row_table(table(tmp_path / "data.parquet", **data)))
    assert entries.tolist() == [1, -1, 0] and rates.rate[entries[0]] == 0.75
    strange = data | {"data_source": ["physics"] * 3}
    with pytest.raises(ValueError, match=r"strange\.parquet: .*\b3\b.*/run"):
        join(rates, read_row_table(table(tmp_path / "strange.parquet", **strange)))


def test_a_table_is_joined_by_key_rather_than_by_position(tmp_path):
    sources, extra = ["a"] * 2, [{"index": 1}, {"index": 2}]
    rates = read_solve_rates(
        table(tmp_path / "rates.parquet", data_source=sources, extra_info=extra, rate=[0.1, 0.2]), column="rate"
    )
    turned = read_row_table(table(tmp_path / "data.parquet", data_source=sources, extra_info=extra[::-1]))
    assert join(rates, turned).tolist() == [1, 0]
    others = [{"index": 2}, {"index": 3}]  # as many rows, one of which the rates do not know
    assert join(
        rates, read_row_table(table(tmp_path / "o.parquet", data_source=sources, extra_info=others))
    ).tolist() == [
        1,
        -1,
    ]


def test_keys_of_both_sides_that_do_not_match_are_an_error(tmp_path):
    """As many rows do not make two data sets the same one."""
    keyed = {
        name: read_row_table(
            table(tmp_path / f"{name}.parquet", data_source=[name] * 2, extra_info=[{"index": i} for i in indices])
        )
        for name, indices in (("aime", (500, 501)), ("gsm8k", (500, 501)))
    }
    columns = {"data_source": ["gsm8k"] * 2, "extra_info": [{"index": 0}, {"index": 1}], "rate": [0.1, 0.2]}
    rates = read_solve_rates(table(tmp_path / "rates.parquet", **columns), column="rate")
    for name, data in keyed.items():
        with pytest.raises(ValueError, match=rf"{name}\.parquet: .*\b2\b.*'{name}', 500\b.*'gsm8k', 0\b"):
            join(rates, data)
    without = read_solve_rates(table(tmp_path / "without.parquet", rate=[0.1, 0.2]), column="rate")
    assert join(without, keyed["aime"]).tolist() == [0, 1], "one side has no keys"


def test_a_table_without_keys_is_joined_by_position_if_it_has_as_many_rows(tmp_path):
    rates = read_solve_rates(table(tmp_path / "rates.csv", name=["x", "y", "z"], rate=["", 0.1, 0.2]), column="rate")
    assert join(rates, read_row_table(table(tmp_path / "data.csv", text=["a", "b", "c"]))).tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match=r"rates\.csv: .*\b3 rows\b.*\b2 rows\b.*short\.csv"):
        join(rates, read_row_table(table(tmp_path / "short.csv", text=["a", "b"])))
    dump(tmp_path / "dumps", 1, ("one", "u_0_0", 1))
    with pytest.raises(ValueError, match=r"dumps: .*data\.csv"):
        join(read_solve_rates(tmp_path / "dumps"), read_row_table(tmp_path / "data.csv"))


def test_prompts_that_a_run_identified_by_text_are_joined_by_text(tmp_path):
    prompts = [[{"role": "user", "content": text}] for text in ("one", "two")]
    visits(tmp_path / "run", 1, (prompt_hash(prompts[1]), [0, 1]))
    data = {"data_source": ["math"] * 2, "prompt": prompts, "extra_info": [{"index": 0}] * 2}
    entries = join(read_solve_rates(tmp_path / "run"), read_row_table(table(tmp_path / "data.parquet", **data)))
    assert entries.tolist() == [-1, 0]


HALVES, SPLIT = [0.5] * 8, [0.0] * 4 + [1.0] * 4


def test_partial_credit_that_sums_to_a_whole_number_is_no_count_of_right_responses(tmp_path):
    """Eight verdicts of 0.5 never differ; four of 1 and four of 0 do. Both sum to 4."""
    visits(tmp_path / "run", 1, (7, HALVES), (3, SPLIT))
    dump(tmp_path / "dumps", 1, *(("seven", f"u_{n}_0", verdict) for n, verdict in enumerate(HALVES)))
    dump(tmp_path / "dumps", 2, *(("three", f"v_{n}_0", verdict) for n, verdict in enumerate(SPLIT)))
    for place in ("run", "dumps"):
        found = read_solve_rates(tmp_path / place)
        assert found.rate.tolist() == [0.5, 0.5] and found.correct is None and found.total is None
        assert found.graded == 1
    visits(tmp_path / "whole", 1, (7, SPLIT), (3, SPLIT))
    found = read_solve_rates(tmp_path / "whole")
    assert found.correct.tolist() == [4, 4] and found.graded == 0


def test_records_of_older_versions_are_graded_if_equal_verdicts_are_neither_right_nor_wrong(tmp_path):
    for run, verdicts, graded in (("halves", HALVES, 1), ("split", SPLIT, 0), ("thirds", [0.3, 0.3], 1)):
        path = visits(tmp_path / run, 1, (7, verdicts))
        pq.write_table(pq.read_table(path).drop_columns(["partial", "answers"]), path)
        assert read_solve_rates(tmp_path / run).graded == graded


def test_partial_credit_of_one_response_leaves_the_counts_of_all_prompts(tmp_path):
    """A prompt with verdicts of 0 and 1 has the same evidence whatever the others have."""
    verdicts = [0.5, 1.0, 0.0, 0.25]
    visits(tmp_path / "run", 1, (3, [0.0] * 8), (7, SPLIT), (9, verdicts), (5, HALVES))
    visits(tmp_path / "run", 2, (3, [0.0] * 8), (7, SPLIT), (9, [1.0]), (5, HALVES))
    dump(tmp_path / "dumps", 1, *(("nine", f"u_{n}_0", verdict) for n, verdict in enumerate(verdicts)))
    found = read_solve_rates(tmp_path / "run")
    correct, total, partial = found.evidence
    assert found.keys == [("math", index) for index in (3, 5, 7, 9)] and found.graded == 2
    assert correct.tolist() == [0, 8, 8, 2.75] and total.tolist() == [16, 16, 16, 5]
    assert partial == pytest.approx([0, 4, 0, 0.25 + 0.1875])
    assert [float(values[0]) for values in read_solve_rates(tmp_path / "dumps").evidence] == [1.75, 4, 0.4375]
    visits(tmp_path / "whole", 1, (7, SPLIT), (3, SPLIT))
    assert [values.tolist() for values in read_solve_rates(tmp_path / "whole").evidence] == [[4, 4], [8, 8], [0, 0]]


def test_older_records_have_evidence_unless_a_spread_is_unknown(tmp_path):
    for run, verdicts, spread in (("halves", HALVES, 2.0), ("split", SPLIT, 0.0), ("mixed", [0.5, 1.0], None)):
        path = visits(tmp_path / run, 1, (7, verdicts), (8, [0.0]))
        pq.write_table(pq.read_table(path).drop_columns(["partial", "answers"]), path)
        evidence = read_solve_rates(tmp_path / run).evidence
        assert evidence is None if spread is None else evidence[2].tolist() == pytest.approx([spread, 0])
