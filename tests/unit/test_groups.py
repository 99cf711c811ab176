"""Grouping, compared with a slow and simple reference in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.groups import group_stats

labels = st.one_of(
    st.text(max_size=3),
    st.integers(-5, 5),
    st.integers(10**7 - 3, 10**7 + 3),
    st.tuples(st.integers(0, 2), st.text(max_size=1)),
)
batches = st.lists(
    st.tuples(labels, st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0, 0.7]), st.booleans()),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(counts for *_, counts in rows))


def reference(rows):
    """label -> rewards of its unmasked rows, in the order of first rows."""
    groups = {}
    for label, reward, counts in rows:
        if counts:
            groups.setdefault(label, []).append(reward)
    return groups


@given(batches)
def test_statistics_of_every_group_equal_the_reference(rows):
    index, rewards, mask = zip(*rows, strict=True)
    stats = group_stats(torch.tensor(rewards, dtype=torch.float64), index, torch.tensor(mask))
    expected = reference(rows)
    names = list(expected)
    assert stats.group.tolist() == [names.index(label) if counts else -1 for label, _, counts in rows]
    assert stats.size.tolist() == [len(members) for members in expected.values()]
    for members, mean, std, unanimous in zip(expected.values(), stats.mean, stats.std, stats.unanimous, strict=True):
        mu = math.fsum(members) / len(members)
        sigma = math.sqrt(math.fsum((reward - mu) ** 2 for reward in members) / len(members))
        assert mean.item() == pytest.approx(mu, rel=1e-12, abs=1e-12)
        assert std.item() == pytest.approx(sigma, rel=1e-9, abs=1e-9)
        assert unanimous.item() == (len(set(members)) == 1)
        assert not unanimous or std.item() == 0


@settings(max_examples=50)
@given(batches, st.randoms())
def test_a_group_does_not_depend_on_the_order_of_rows(rows, random):
    def by_label(rows):
        index, rewards, mask = zip(*rows, strict=True)
        stats = group_stats(torch.tensor(rewards), index, torch.tensor(mask))
        figures = zip(stats.size.tolist(), stats.mean.tolist(), stats.std.tolist(), strict=True)
        return dict(zip(reference(rows), figures, strict=True))

    shuffled = list(rows)
    random.shuffle(shuffled)
    before, after = by_label(rows), by_label(shuffled)
    assert before.keys() == after.keys()
    for label, figures in before.items():
        assert after[label] == pytest.approx(figures, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "index",
    [
        ["a", "b", "a"],
        np.array(["a", "b", "a"], dtype=object),
        np.array([7, -1, 7]),
        torch.tensor([10**7, 10**7 + 1, 10**7]),
    ],
)
def test_labels_may_be_in_any_container(index):
    assert group_stats(torch.tensor([0.0, 1.0, 1.0]), index).group.tolist() == [0, 1, 0]


def test_equal_float_rewards_are_unanimous_even_if_their_float_std_is_not_zero():
    rewards = torch.full((7,), 0.7)
    assert torch.std(rewards, correction=0) > 0, "otherwise this test shows nothing"
    stats = group_stats(rewards, [0] * 7)
    assert stats.unanimous.item() and stats.std.item() == 0


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
    ],
)
def test_the_dtype_is_kept_but_is_at_least_float32(given_dtype, kept):
    stats = group_stats(torch.tensor([0, 1, 1], dtype=given_dtype), [0, 0, 0])
    assert stats.mean.dtype == stats.std.dtype == kept


@pytest.mark.parametrize(
    ("rewards", "index", "mask", "message"),
    [
        ([], [], None, "empty"),
        ([0.0, 1.0], ["a"], None, r"index\b.*\b1\b.*\b2\b"),
        ([0.0, float("nan")], [0, 0], None, r"rewards\[1\].*nan"),
        ([float("inf"), 0.0], [0, 0], None, r"rewards\[0\].*inf"),
        ([0.0, 1.0], [0, 0], [False, False], r"mask\b.*\b2\b"),
        ([0.0, 1.0], [0, 0], [True], r"mask\b.*torch\.bool\b.*\(1,\)"),
        ([0.0, 1.0], [0, 0], [1, 1], r"mask\b.*torch\.int64\b.*torch\.bool\b.*\(2,\)"),
        ([[0.0, 1.0]], [0], None, r"rewards\b.*\(1, 2\)"),
    ],
)
def test_bad_input_is_rejected_and_named(rewards, index, mask, message):
    with pytest.raises(ValueError, match=message):
        group_stats(torch.tensor(rewards), index, None if mask is None else torch.tensor(mask))


def test_a_label_that_is_not_hashable_is_rejected():
    with pytest.raises(ValueError, match=r"index\[1\].*\[1\].*\blist\b"):
        group_stats(torch.tensor([0.0, 1.0]), ["a", [1]])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (list(torch.tensor([1, 1])), r"index\[0\].*tensor\(1\).*\bTensor\b"),
        (np.array([float("nan")] * 2), r"index\[0\].*nan"),
        ([("a", [1])] * 2, r"index\[0\].*\('a', \[1\]\).*\btuple\b"),
        (np.array([[1], [1]]), r"index\b.*\(2, 1\)"),
    ],
)
def test_labels_that_would_silently_split_a_group_are_rejected(index, message):
    with pytest.raises(ValueError, match=message):
        group_stats(torch.tensor([0.0, 1.0]), index)


def test_the_label_of_a_masked_row_is_ignored():
    mask = torch.tensor([False, True, True])
    assert group_stats(torch.tensor([0.0, 1.0, 0.0]), [[0], "a", "a"], mask).group.tolist() == [-1, 0, 0]
    with pytest.raises(ValueError, match=r"index\[2\].*\[1\]"):
        group_stats(torch.tensor([0.0, 1.0, 0.0]), [[0], "a", [1]], mask)


def test_the_reward_of_a_masked_row_is_ignored():
    stats = group_stats(torch.tensor([float("nan"), 0.0, 1.0]), ["a", "b", "b"], torch.tensor([False, True, True]))
    assert stats.group.tolist() == [-1, 0, 0] and stats.mean.tolist() == [0.5]


def test_values_per_group_are_expanded_to_rows():
    stats = group_stats(
        torch.tensor([0.0, 1.0, 5.0, 3.0]), ["a", "b", "a", "c"], torch.tensor([True, True, True, False])
    )
    assert stats.per_row(stats.mean).tolist() == [2.5, 1.0, 2.5, 0.0]
    assert stats.per_row(stats.unanimous, elsewhere=True).tolist() == [False, True, False, True]
