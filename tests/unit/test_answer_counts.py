"""Counts of final answers in the records, and how many differ in equal numbers of responses, by slow references."""

import itertools
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.answer_counts import MOST_ANSWERS, expected_distinct, pack_answers, unpack_answers
from verl_gsd.report import answers
from verl_gsd.report.answers import revisited_answers


def drawn_without_replacement(responses, m):
    """The mean number of different answers over all ways to choose m of the responses; "" is no answer."""
    chosen = [len({answer for answer in subset if answer}) for subset in itertools.combinations(responses, m)]
    return sum(chosen) / len(chosen)


def rarefied(sets, m):
    counts = [(number, answer, count) for number, one in enumerate(sets) for answer, count in Counter(one).items()]
    number, answer, count = zip(*counts, strict=True)
    return expected_distinct(np.array(number), np.array([a != "" for a in answer]), np.array(count), m, len(sets))


SETS = st.lists(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=7), min_size=1, max_size=4)


@given(SETS, st.integers(1, 5))
def test_the_expected_number_is_the_mean_over_all_choices(sets, m):
    wanted = [drawn_without_replacement(one, m) if len(one) >= m else math.nan for one in sets]
    assert rarefied(sets, m) == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("size", [3, 4, 6])
def test_it_is_without_bias_whatever_the_number_of_responses(size):
    """By enumeration of all draws of a distribution."""
    chance, m = {"a": 0.6, "b": 0.3, "": 0.1}, 3
    wanted = sum(1 - (1 - p) ** m for answer, p in chance.items() if answer)
    draws = list(itertools.product(chance, repeat=size))
    weights = [math.prod(chance[answer] for answer in draw) for draw in draws]
    assert np.average(rarefied(draws, m), weights=weights) == pytest.approx(wanted, abs=1e-12)


def test_cells_hold_counts_and_no_text():
    cell = pack_answers(["12", "", "7", "12", "12"])
    rows, digest, count = unpack_answers(pa.chunked_array([pa.array([cell, None, pack_answers([""])], pa.binary())]))
    assert rows.tolist() == [0, 0, 0, 2] and count.tolist() == [3, 1, 1, 1]
    assert (digest == 0).tolist() in ([False, True, False, True], [False, False, True, True])
    assert b"12" not in cell and len(cell) == 18
    assert pack_answers(["7", "12", "12", "12", ""]) == cell, "whatever the order of the responses"


def test_the_most_frequent_answers_are_kept():
    cell = pack_answers(["often", "often", *map(str, range(1000)), "\ud800"])
    _, _, count = unpack_answers(pa.chunked_array([pa.array([cell], pa.binary())]))
    assert len(count) == MOST_ANSWERS and count.tolist()[:2] == [2, 1]


@given(st.lists(st.lists(st.sampled_from(["a", "b", ""]), max_size=4), min_size=1, max_size=6), st.integers(0, 5))
def test_chunks_are_read_as_one_column(groups, cut):
    cells = pa.array([pack_answers(group) for group in groups], pa.binary())
    chunks = pa.chunked_array([cells[:cut], cells[cut:]], pa.binary())
    for one, other in zip(unpack_answers(chunks), unpack_answers(pa.chunked_array([cells])), strict=True):
        assert one.tolist() == other.tolist()


def table(*visits):
    """Records of (source, index, the responses' answers or None) per group, in the order of time."""
    source, index, given = zip(*visits, strict=True)
    cells = [None if one is None else pack_answers(one) for one in given]
    size = [8 if one is None else len(one) for one in given]
    return pa.table({"data_source": source, "index": index, "size": size, "answers": pa.array(cells, pa.binary())})


VISITS = st.lists(
    st.tuples(
        st.sampled_from(["math", "code"]),
        st.integers(0, 2),
        st.none() | st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=3, max_size=5),
    ),
    min_size=1,
    max_size=9,
)


@given(VISITS)
def test_a_group_is_compared_with_all_visits_to_its_prompt_until_then(visits):
    found = revisited_answers(table(*visits))
    wanted, pools = {}, {}
    for row, (source, index, given_answers) in enumerate(visits):
        if given_answers is None:
            continue
        pool = pools.setdefault((source, index), [])
        if pool and found.responses:
            pooled = [answer for one in (*pool, given_answers) for answer in one]
            if len(given_answers) >= found.responses:
                wanted[row] = (
                    drawn_without_replacement(given_answers, found.responses),
                    drawn_without_replacement(pooled, found.responses),
                )
        pool.append(given_answers)
    order = np.argsort(found.row)
    assert found.row[order].tolist() == list(wanted)
    assert found.in_visit[order] == pytest.approx([one for one, _ in wanted.values()], abs=1e-12)
    assert found.in_visits[order] == pytest.approx([other for _, other in wanted.values()], abs=1e-12)
    assert (found.responses > 0) == any(len(pool) > 1 for pool in pools.values())


def test_answers_that_the_policy_gave_up_are_seen_in_all_visits():
    first, then = ["a", "a", "b", "c"], ["a"] * 4
    found = revisited_answers(table(("math", 1, first), ("math", 2, first), ("math", 1, then), ("math", 2, first)))
    at = dict(zip(found.row.tolist(), zip(found.in_visit, found.in_visits, strict=True), strict=True))
    assert at[2][0] == 1 and at[2][1] > 1.5, "the visit has one answer, and the prompt has had three"
    assert at[3][0] == 3 and at[3][1] < 3


def test_of_a_long_run_some_prompts_are_used_with_all_their_visits(monkeypatch):
    monkeypatch.setattr(answers, "MOST_GROUPS", 40)
    visits = [("math", index, ["a", "b"]) for _ in range(3) for index in range(100)]
    found = revisited_answers(table(*visits))
    prompts, visits_of = np.unique(found.row % 100, return_counts=True)
    assert len(prompts) == 14 and set(visits_of.tolist()) == {2}, "14 prompts have 42 groups, 28 of them later visits"


def distinct(number, first=0):
    """Responses with ``number`` different answers, and one of them twice."""
    return [str(first), *map(str, range(first, first + number))]


def test_groups_whose_rare_answers_are_missing_are_not_compared():
    """Nor are later visits to their prompt: an answer that is missing from an earlier one would look new."""
    few, most, too_many = distinct(3), distinct(MOST_ANSWERS), distinct(MOST_ANSWERS + 1)
    visits = [few, few, most, too_many, few]
    found = revisited_answers(table(*(("math", 1, one) for one in visits), ("math", 2, most), ("math", 2, few)))
    assert found.row.tolist() == [1, 2, 6] and found.responses == len(few)
    assert len(revisited_answers(table(*[("math", 1, too_many)] * 3)).row) == 0


@pytest.mark.parametrize(("size", "pool"), [(64, 1000), (70, 75), (256, 100)])
def test_a_policy_that_does_not_change_has_equal_figures_however_many_answers_it_has(size, pool):
    rng = np.random.default_rng(0)
    visits = [
        ("math", index, list(map(str, rng.integers(pool, size=size).tolist()))) for _ in range(4) for index in range(60)
    ]
    found = revisited_answers(table(*visits))
    if found.responses:
        expected = pool * (1 - (1 - 1 / pool) ** found.responses)
        noise = 5 * found.in_visit.std() / np.sqrt(60)
        assert abs(found.in_visit.mean() - found.in_visits.mean()) < noise
        assert abs(found.in_visit.mean() - expected) < noise
    assert (found.responses > 0) == (pool == 1000 or size == 70)
