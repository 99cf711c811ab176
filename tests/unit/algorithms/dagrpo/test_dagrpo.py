"""DaGRPO's mask: against a loop that spells it out, and the properties our reading of it must have."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.algorithms.dagrpo.pairs import kept_rows, pairs_by_size, rectified, rectified_advantage
from verl_gsd.dial import dial_advantage
from verl_gsd.groups import group_stats

EXAMPLE = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([8.0, 3.0, 5.0, 4.0])


def centred(rewards, scores, index, **settings):
    return rectified_advantage(rewards, scores, index, **{"alpha": 0.0} | settings)


def spelled_out(rewards, scores, labels, delta, signed, alone=()):
    """(1/G) sum_j M_ij (R_i - R_j), in plain Python."""
    found = []
    for i, label in enumerate(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        total = 0.0
        for j in rows:
            if rewards[i] == rewards[j] or i in alone or j in alone:
                continue
            better, worse = (i, j) if rewards[i] > rewards[j] else (j, i)
            gap = scores[better] - scores[worse]
            if math.isnan(gap) or (gap if signed else abs(gap)) >= delta:
                total += rewards[i] - rewards[j]
        found.append(total / len(rows))
    return found


score = st.one_of(st.integers(0, 10).map(float), st.just(math.nan))
batches = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2).map(lambda r: r / 2), score), min_size=1, max_size=12)
deltas = st.sampled_from([-math.inf, -3.0, 0.0, 1.0, 3.0, 5.0, math.inf])


def tensors(rows):
    labels, rewards, scores = zip(*rows, strict=True)
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64), list(labels)


@given(batches, deltas, st.booleans())
def test_it_is_what_the_loop_says_and_sums_to_zero(rows, delta, signed):
    rewards, scores, labels = tensors(rows)
    found = centred(rewards, scores, labels, delta=delta, signed=signed)
    expected = spelled_out(rewards.tolist(), scores.tolist(), labels, delta, signed)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    for label in set(labels):
        assert abs(float(found[[row for row, other in enumerate(labels) if other == label]].sum())) < 1e-12


@settings(max_examples=50)
@given(batches, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_without_a_threshold_it_is_the_dial(rows, alpha):
    rewards, scores, labels = tensors(rows)
    found = rectified_advantage(rewards, scores, labels, delta=-math.inf, alpha=alpha)
    torch.testing.assert_close(found, dial_advantage(rewards, labels, alpha=alpha), rtol=1e-9, atol=1e-12)


@settings(max_examples=50)
@given(batches, st.booleans())
def test_kept_pairs_fall_as_delta_rises(rows, signed):
    rewards, scores, labels = tensors(rows)
    stats = group_stats(rewards, labels)
    kept = [
        sum(int(pairs.kept(delta, signed=signed).sum()) for pairs in pairs_by_size(rewards, scores, stats))
        for delta in (-math.inf, -5, 0, 1, 3, 5, math.inf)
    ]
    assert kept == sorted(kept, reverse=True)


@settings(max_examples=50)
@given(batches, deltas)
def test_swapping_rewards_and_negating_scores_flips_the_sign(rows, delta):
    rewards, scores, labels = tensors(rows)
    torch.testing.assert_close(
        centred(1 - rewards, -scores, labels, delta=delta), -centred(rewards, scores, labels, delta=delta)
    )


def test_the_examples_of_the_definition():
    assert centred(*EXAMPLE, [0] * 4, delta=3).tolist() == [0.5, -0.25, 0, -0.25]
    failed = torch.tensor([8.0, math.nan, 5.0, 4.0])
    assert centred(EXAMPLE[0], failed, [0] * 4, delta=3).tolist() == [0.5, -0.5, 0.25, -0.25]


def test_a_pair_on_which_the_judge_contradicts_the_verifier_is_dropped_if_the_gap_has_a_sign():
    rewards, scores = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 9.0])
    assert centred(rewards, scores, ["a", "a"], delta=0).tolist() == [0, 0]
    assert centred(rewards, scores, ["a", "a"], delta=3, signed=False).tolist() == [0.5, -0.5]


def test_order_and_rows_of_no_group_do_not_matter():
    rewards, scores = torch.tensor([1.0, 0, 1, 0, 1, 1]), torch.tensor([8.0, 3, 5, 4, 7, math.inf])
    labels, mask = ["a", "a", "a", "a", "b", "a"], torch.tensor([True] * 5 + [False])
    expected = centred(rewards, scores, labels, delta=3, mask=mask)
    assert expected.tolist() == [0.5, -0.25, 0, -0.25, 0, 0]
    order = np.random.default_rng(0).permutation(6)
    moved = centred(rewards[order], scores[order], [labels[row] for row in order], delta=3, mask=mask[order])
    assert moved.tolist() == expected[order].tolist()


def test_sigma_is_that_of_all_rewards_whatever_is_masked():
    masked = rectified_advantage(*EXAMPLE, [0] * 4, delta=3, alpha=1.0)
    sigma = EXAMPLE[0].std()
    torch.testing.assert_close(masked, centred(*EXAMPLE, [0] * 4, delta=3) / (sigma + 1e-6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_kept_float32_at_least(dtype):
    found = centred(EXAMPLE[0].to(dtype), EXAMPLE[1], [0] * 4, delta=1)
    assert found.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": math.nan}, "delta=nan"),
        ({"scores": torch.tensor([1.0, 2.0])}, r"scores\b.*\(2,\).*\(4,\)"),
        ({"scores": torch.tensor([1.0, 2.0, math.inf, 0.0])}, r"scores\[2\].*inf"),
    ],
)
def test_bad_input_is_named(change, words):
    settings = {"rewards": EXAMPLE[0], "scores": EXAMPLE[1], "index": [0] * 4, "delta": 3.0} | change
    with pytest.raises(ValueError, match=words):
        rectified_advantage(**settings)


def test_rows_that_stand_alone_have_no_pair_and_the_others_keep_theirs():
    rewards, scores = EXAMPLE
    stats = group_stats(rewards.double(), [0] * 4)
    alone = torch.tensor([False, False, False, True])
    assert rectified(rewards, scores, stats, delta=3, drop_rows=alone).tolist() == [0.25, -0.25, 0, 0]
    assert rectified(rewards, scores, stats, delta=3, drop_rows=~alone).tolist() == [0, 0, 0, 0]


@given(batches, deltas, st.booleans(), st.sets(st.integers(0, 11)))
def test_rows_that_stand_alone_are_what_the_loop_says_and_sums_stay_zero(rows, delta, signed, apart):
    rewards, scores, labels = tensors(rows)
    alone = torch.tensor([row in apart for row in range(len(labels))])
    found = rectified(rewards, scores, group_stats(rewards, labels), delta=delta, signed=signed, drop_rows=alone)
    expected = spelled_out(rewards.tolist(), scores.tolist(), labels, delta, signed, apart)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert not found[alone].any()
    for label in set(labels):
        assert abs(float(found[[row for row, other in enumerate(labels) if other == label]].sum())) < 1e-12


@settings(max_examples=50)
@given(batches)
def test_an_infinite_threshold_leaves_only_the_pairs_nobody_could_judge(rows):
    rewards, scores, labels = tensors(rows)
    expected = spelled_out(rewards.tolist(), scores.tolist(), labels, math.inf, True)
    assert centred(rewards, scores, labels, delta=math.inf).tolist() == pytest.approx(expected, abs=1e-12)
    known = scores.nan_to_num(nan=2.0)
    assert not centred(rewards, known, labels, delta=math.inf).any()
    nobody = torch.full_like(scores, math.nan)
    for delta in (-math.inf, math.inf):
        found = centred(rewards, nobody, labels, delta=delta)
        torch.testing.assert_close(found, dial_advantage(rewards, labels, alpha=0.0), rtol=1e-9, atol=1e-12)


# The mask on responses


def kept_by_hand(rewards, scores, labels, counted, delta, by, signed):
    """One bool a row: whether min, mean or max of its known gaps reaches delta; a row without one is kept."""
    found = []
    for i, label in enumerate(labels):
        gaps = []
        for j, other in enumerate(labels):
            if other == label and counted[j] and rewards[i] != rewards[j]:
                better, worse = (i, j) if rewards[i] > rewards[j] else (j, i)
                gap = scores[better] - scores[worse]
                if not math.isnan(gap):
                    gaps.append(gap if signed else abs(gap))
        figure = {"min": min, "max": max, "mean": lambda of: sum(of) / len(of)}[by]
        found.append(counted[i] and (not gaps or figure(gaps) >= delta))
    return found


counted_batches = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2).map(lambda r: r / 2), score, st.sampled_from([True, True, False])),
    min_size=1,
    max_size=12,
).filter(lambda rows: any(row[3] for row in rows))


def kept(rows, **settings):
    rewards, scores, labels = tensors([row[:3] for row in rows])
    mask = torch.tensor([row[3] for row in rows])
    # What stands in a row of no group must not matter.
    scores = scores.masked_fill(~mask, math.inf)
    return kept_rows(rewards, scores, group_stats(rewards, labels, mask), **settings).tolist()


@given(counted_batches, deltas, st.sampled_from(["min", "mean", "max"]), st.booleans())
def test_kept_rows_are_what_the_loop_says(rows, delta, by, signed):
    labels, rewards, scores, counted = zip(*rows, strict=True)
    expected = kept_by_hand(rewards, scores, labels, counted, delta, by, signed)
    assert kept(rows, delta=delta, by=by, signed=signed) == expected


@settings(max_examples=50)
@given(counted_batches, deltas, st.sampled_from(["min", "mean", "max"]), st.data())
def test_the_order_of_rows_does_not_matter_to_which_are_kept(rows, delta, by, data):
    order = data.draw(st.permutations(range(len(rows))))
    found = kept(rows, delta=delta, by=by)
    assert kept([rows[row] for row in order], delta=delta, by=by) == [found[row] for row in order]


@settings(max_examples=50)
@given(counted_batches, st.sampled_from(["min", "mean", "max"]), st.booleans())
def test_kept_rows_fall_as_delta_rises_and_by_min_are_fewest(rows, by, signed):
    each = [kept(rows, delta=delta, by=by, signed=signed) for delta in (-math.inf, -5, 0, 1, 3, 5, math.inf)]
    assert all(a >= b for wide, narrow in itertools.pairwise(each) for a, b in zip(wide, narrow, strict=True))
    assert each[0] == [row[3] for row in rows], "without a threshold every row that counts is kept"
    by_min, by_mean, by_max = (kept(rows, delta=3, by=name, signed=signed) for name in ("min", "mean", "max"))
    assert all(a <= b <= c for a, b, c in zip(by_min, by_mean, by_max, strict=True))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("min", [True, False, False, False, False]),
        ("mean", [True, False, True, False, True]),
        ("max", [True, True, True, True, True]),
    ],
)
def test_min_mean_and_max_keep_different_rows(by, expected):
    """Of the first right one the gaps are 6, 4, 5, of the second 1, -1, 0; of a wrong one the two in its column."""
    rewards, scores = torch.tensor([1.0, 1.0, 0, 0, 0]), torch.tensor([9.0, 4.0, 3.0, 5.0, 4.0])
    delta = {"min": 4, "mean": 2.5, "max": 1}[by]
    assert kept_rows(rewards, scores, group_stats(rewards, [0] * 5), delta=delta, by=by).tolist() == expected


def test_with_three_rewards_a_row_has_gaps_to_both_other_classes():
    rewards, scores = torch.tensor([1.0, 0.5, 0.0, 0.5]), torch.tensor([9.0, 5.0, 4.0, math.nan])
    settings = {"stats": group_stats(rewards, [0] * 4), "delta": 4}
    # Gaps: 4 and 5 of the best, 4 and 1 of the middle, 5 and 1 of the worst; the fourth has none.
    assert kept_rows(rewards, scores, by="min", **settings).tolist() == [True, False, False, True]
    assert kept_rows(rewards, scores, by="max", **settings).tolist() == [True, True, True, True]


def test_a_mask_on_responses_refuses_a_delta_that_is_nan_too():
    with pytest.raises(ValueError, match="delta=nan"):
        kept_rows(*EXAMPLE, group_stats(EXAMPLE[0], [0] * 4), delta=math.nan, by="min")
