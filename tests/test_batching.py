"""Layouts: every row once, every group inside one mini-batch, and whole where it must be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.trainer.batching import PADDING, layout, mini_batch_of


@st.composite
def batches(draw):
    group_size, workers = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    groups_a_slice = draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, group_size), min_size=1, max_size=14))
    group = np.repeat(np.arange(len(sizes)), sizes)
    group = np.array(draw(st.permutations(group.tolist())))
    work = draw(st.lists(st.floats(1, 100), min_size=len(group), max_size=len(group)))
    return group, work, group_size, workers, groups_a_slice * group_size * workers


def slices(places, mini_rows, workers):
    """(workers, mini-batches, rows a slice)."""
    return np.array(places).reshape(workers, -1, mini_rows // workers)


@given(batches(), st.booleans(), st.sampled_from([1, 2, 3]))
def test_every_row_stands_once_and_its_group_in_one_mini_batch(batch, whole, step):
    group, work, group_size, workers, mini_rows = batch
    size = group_size if whole else None
    places = layout(
        group.tolist(), work, mini_rows=mini_rows, workers=workers, group_size=size, multiple=step * mini_rows
    )
    assert len(places) % (step * mini_rows) == 0
    assert sorted(row for row in places if row != PADDING) == list(range(len(group)))
    found = mini_batch_of(len(places), mini_rows=mini_rows, workers=workers)
    for number in set(group.tolist()):
        at = [place for place, row in enumerate(places) if row != PADDING and group[row] == number]
        assert len({found[place] for place in at}) == 1
        if whole:
            start = min(at) // group_size * group_size
            assert set(at) <= set(range(start, start + group_size)), "consecutive, aligned, on one worker"
            filling = [places[place] for place in range(start, start + group_size) if place not in at]
            assert all(row == PADDING for row in filling)


@given(batches(), st.booleans())
def test_no_more_padding_than_whole_groups_would_need(batch, whole):
    group, work, group_size, workers, mini_rows = batch
    size = group_size if whole else None
    places = layout(group.tolist(), work, mini_rows=mini_rows, workers=workers, group_size=size)
    n_groups = len(set(group.tolist()))
    assert len(places) <= -(-n_groups * group_size // mini_rows) * mini_rows


@pytest.mark.parametrize("group_size", [4, None])
def test_full_groups_need_no_padding_and_work_is_evened_out(group_size):
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(24), 4)
    work = generator.gamma(1.0, 1000.0, size=96)
    places = layout(group.tolist(), work.tolist(), mini_rows=32, workers=2, group_size=group_size)
    assert len(places) == 96 and PADDING not in places
    load = work[slices(places, 32, 2)].sum(axis=-1)
    assert load.max() / load.min() < 1.25
    in_order = work.reshape(2, 3, 16).sum(axis=-1)
    assert load.max() / load.min() < in_order.max() / in_order.min()


def test_missing_sessions_are_spread_over_the_mini_batches():
    """Two of eight groups lost most of their sessions: two mini-batches of as many rows, not 16 and 10."""
    sizes = [4] * 6 + [1, 1]
    group = np.repeat(np.arange(8), sizes).tolist()
    places = np.array(layout(group, [1.0] * len(group), mini_rows=16, workers=2))
    found = mini_batch_of(len(places), mini_rows=16, workers=2)
    assert sorted((places[found == j] != PADDING).sum() for j in range(2)) == [13, 13]


@pytest.mark.parametrize(("n_groups", "expected"), [(20, [5, 5, 5, 5]), (25, [5, 5, 5, 5, 5]), (30, [6, 6, 6, 6, 6])])
def test_mini_batches_have_as_many_groups_whatever_those_cost(n_groups, expected):
    """The loss is a mean over a mini-batch's groups: few long ones together would weigh more."""
    work = np.random.default_rng(1).lognormal(7, 1, n_groups).repeat(8)
    group = np.repeat(np.arange(n_groups), 8)
    places = np.array(layout(group.tolist(), work.tolist(), mini_rows=48, workers=1, group_size=8))
    found = mini_batch_of(len(places), mini_rows=48, workers=1)
    counts = [len({group[row] for row in places[found == j] if row != PADDING}) for j in range(found.max() + 1)]
    assert sorted(counts) == expected


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("a group of 5 rows does not fit groups of 4", {"mini_rows": 16, "workers": 2, "group_size": 4}),
        ("a group of 5 rows does not fit a mini-batch of 4 rows", {"mini_rows": 4, "workers": 2}),
        ("a mini-batch of 9 rows cannot be shared by 2 workers evenly", {"mini_rows": 9, "workers": 2}),
        (r"a worker's 8 rows of a mini-batch \(16 over 2 workers\)", {"mini_rows": 16, "workers": 2, "group_size": 5}),
    ],
)
def test_what_cannot_be_laid_out_is_refused(words, settings):
    with pytest.raises(ValueError, match=words):
        layout([0] * 5, [1.0] * 5, **settings)
