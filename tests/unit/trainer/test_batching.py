"""A layout has every row once and every group in one mini-batch, and spreads groups evenly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.algorithms.rollouts.budget import allocate_rollouts
from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.trainer.batching import PADDING, layout, mini_batch_of


@st.composite
def batches(draw, largest=9):
    """Groups of 1 to ``largest`` responses of one to three rows each: (group, response, work, settings)."""
    sizes = draw(st.lists(st.integers(1, largest), min_size=1, max_size=14))
    outputs = draw(st.lists(st.integers(1, 3), min_size=sum(sizes), max_size=sum(sizes)))
    of_response = np.repeat(np.arange(len(sizes)), sizes)
    response = draw(st.permutations(np.repeat(np.arange(sum(sizes)), outputs).tolist()))
    work = draw(st.lists(st.floats(1, 100), min_size=len(response), max_size=len(response)))
    settings = {"mini_batches": draw(st.integers(1, len(sizes))), "workers": draw(st.integers(1, 4))}
    return of_response[response], np.array(response), work, settings


def even(counts):
    return max(counts) - min(counts) <= 1


def mini_batches_of(places, labels, settings):
    """label -> the mini-batches of its rows."""
    number = mini_batch_of(len(places), **settings)
    found = {}
    for place, row in enumerate(places):
        if row != PADDING:
            found.setdefault(int(labels[row]), set()).add(int(number[place]))
    return found


@given(batches(), st.integers(1, 4))
def test_the_number_of_mini_batches_is_the_requested_one_for_all_group_sizes(batch, slice_multiple):
    group, response, work, settings = batch
    places = layout(group.tolist(), response.tolist(), work, slice_multiple=slice_multiple, **settings)
    n_mini, workers = settings["mini_batches"], settings["workers"]
    assert sorted(row for row in places if row != PADDING) == list(range(len(group))), "every row once"
    of_group = mini_batches_of(places, group, settings)
    assert all(len(found) == 1 for found in of_group.values()), "a group in one mini-batch"
    counts = [sum(found == {j} for found in of_group.values()) for j in range(n_mini)]
    several = {int(g) for g in group if len(set(response[group == g].tolist())) > 1}
    assert min(counts) >= 1 and even(counts)
    assert even([sum(of_group[g] == {j} for g in several) for j in range(n_mini)]), "what the loss is the mean over"
    rows = [
        int((mini_batch_of(len(places), **settings)[np.array(places) != PADDING] == j).sum()) for j in range(n_mini)
    ]
    slice_rows = len(places) // workers // n_mini
    assert slice_rows * workers * n_mini == len(places) and slice_rows % slice_multiple == 0
    assert slice_rows - slice_multiple < max(rows) / workers, "no more padding than the fullest mini-batch needs"


def test_groups_of_one_response_are_spread_separately():
    """Balancing only rows would put both groups of one response into one mini-batch, whose loss would have no group."""
    rows, responses = [10, 9, 8, 7], [1, 2, 2, 1]
    group = np.repeat(np.arange(4), rows)
    response = [2 * int(g) + (row == 0 and responses[g] > 1) for g in range(4) for row in range(rows[g])]
    settings = {"mini_batches": 2, "workers": 1}
    places = layout(group.tolist(), response, [1.0] * len(group), **settings)
    of_group = mini_batches_of(places, group, settings)
    assert of_group[0] != of_group[3] and of_group[1] != of_group[2]


@given(batches(), st.integers(0, 3), st.sampled_from([1, 2]))
def test_groups_stay_in_consecutive_rows_if_group_size_is_set(batch, spare, slice_multiple):
    group, response, work, settings = batch
    size = int(np.bincount(group).max()) + spare
    asked = settings | {"group_size": size, "slice_multiple": slice_multiple * size}
    places = layout(group.tolist(), response.tolist(), work, **asked)
    assert sorted(row for row in places if row != PADDING) == list(range(len(group)))
    assert all(len(found) == 1 for found in mini_batches_of(places, group, settings).values())
    slice_rows = len(places) // settings["workers"] // settings["mini_batches"]
    assert slice_rows % (slice_multiple * size) == 0
    for start in range(0, len(places), size):
        standing = [row for row in places[start : start + size] if row != PADDING]
        assert len({int(group[row]) for row in standing}) <= 1, "one group per run of rows"
        assert not standing or len(standing) == (group == group[standing[0]]).sum()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans(), st.data())
def test_groups_of_one_size_need_no_padding(size, per_slice, n_mini, workers, whole, data):
    n_groups = per_slice * n_mini * workers
    work = data.draw(st.lists(st.floats(1, 100), min_size=n_groups * size, max_size=n_groups * size))
    group = np.repeat(np.arange(n_groups), size).tolist()
    settings = {"mini_batches": n_mini, "workers": workers, "group_size": size if whole else None}
    places = layout(group, list(range(len(group))), work, **settings)
    assert sorted(places) == list(range(len(group)))


@pytest.mark.parametrize("prompts", [128, 256, 1024])
def test_group_sizes_of_a_budget_need_no_padding_and_no_additional_update(prompts):
    """Sizes with a mean of 8 per prompt once gave five mini-batches instead of four, with a quarter of padding."""
    generator = np.random.default_rng(0)
    correct = generator.binomial(8, generator.beta(0.4, 0.4, prompts)).astype(float)
    sizes = allocate_rollouts(correct, np.full(prompts, 8.0), 8, BudgetSettings())
    assert sizes.min() < 8 < sizes.max()
    group, settings = np.repeat(np.arange(prompts), sizes), {"mini_batches": 4, "workers": 8}
    places = layout(group.tolist(), list(range(len(group))), generator.random(len(group)), **settings)
    assert len(places) == 8 * prompts
    of_group = mini_batches_of(places, group, settings)
    assert [sum(found == {j} for found in of_group.values()) for j in range(4)] == [prompts // 4] * 4


@pytest.mark.parametrize("group_size", [4, None])
def test_full_groups_need_no_padding_and_work_is_balanced(group_size):
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(24), 4)
    work = generator.gamma(1.0, 1000.0, size=96)
    settings = {"mini_batches": 3, "workers": 2, "group_size": group_size}
    places = layout(group.tolist(), list(range(96)), work.tolist(), **settings)
    assert len(places) == 96 and PADDING not in places
    load = work[np.array(places).reshape(2, 3, 16)].sum(axis=-1)
    assert load.max() / load.min() < 1.25
    in_order = work.reshape(2, 3, 16).sum(axis=-1)
    assert load.max() / load.min() < in_order.max() / in_order.min()


def test_groups_with_missing_sessions_are_spread_over_the_mini_batches():
    """Two of eight groups lost most of their sessions. Both mini-batches have 13 rows, not 16 and 10."""
    sizes = [4] * 6 + [1, 1]
    group = np.repeat(np.arange(8), sizes).tolist()
    settings = {"mini_batches": 2, "workers": 2}
    places = np.array(layout(group, list(range(len(group))), [1.0] * len(group), **settings))
    found = mini_batch_of(len(places), **settings)
    assert sorted((places[found == j] != PADDING).sum() for j in range(2)) == [13, 13]


@pytest.mark.parametrize(("n_groups", "expected"), [(20, [5, 5, 5, 5]), (25, [5, 5, 5, 5, 5]), (30, [6, 6, 6, 6, 6])])
def test_mini_batches_have_equally_many_groups_whatever_their_workload(n_groups, expected):
    """The loss is a mean over the groups of a mini-batch. In a mini-batch of few long groups, each would weigh more."""
    work = np.random.default_rng(1).lognormal(7, 1, n_groups).repeat(8)
    group = np.repeat(np.arange(n_groups), 8)
    settings = {"mini_batches": len(expected), "workers": 1}
    places = layout(group.tolist(), list(range(len(group))), work.tolist(), group_size=8, **settings)
    of_group = mini_batches_of(places, group, settings)
    assert sorted(sum(found == {j} for found in of_group.values()) for j in range(len(expected))) == expected


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("5 rows .* group_size=4", {"mini_batches": 1, "group_size": 4}),
        ("1 groups .* 2 mini-batches", {"mini_batches": 2}),
    ],
)
def test_impossible_layouts_are_rejected(words, settings):
    with pytest.raises(ValueError, match=words):
        layout([0] * 5, list(range(5)), [1.0] * 5, workers=2, **settings)
