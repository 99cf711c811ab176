"""DaGRPO's mask: against a loop that spells it out, and the properties our reading of it must have."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.algorithms.dagrpo import pairs_by_size, rectified_advantage
from verl_gsd.algorithms.dial import dial_advantage
from verl_gsd.groups import group_stats

EXAMPLE = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([8.0, 3.0, 5.0, 4.0])


def centred(rewards, scores, index, **settings):
    return rectified_advantage(rewards, scores, index, **{"alpha": 0.0} | settings)


def spelled_out(rewards, scores, labels, delta, signed):
    """(1/G) sum_j M_ij (R_i - R_j), in plain Python."""
    found = []
    for i, label in enumerate(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        total = 0.0
        for j in rows:
            if rewards[i] == rewards[j]:
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


@given(batches, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_without_a_threshold_it_is_the_dial(rows, alpha):
    rewards, scores, labels = tensors(rows)
    found = rectified_advantage(rewards, scores, labels, delta=-math.inf, alpha=alpha)
    torch.testing.assert_close(found, dial_advantage(rewards, labels, alpha=alpha), rtol=1e-9, atol=1e-12)


@given(batches, st.booleans())
def test_kept_pairs_fall_as_delta_rises(rows, signed):
    rewards, scores, labels = tensors(rows)
    stats = group_stats(rewards, labels)
    kept = [
        sum(int(pairs.kept(delta, signed=signed).sum()) for pairs in pairs_by_size(rewards, scores, stats))
        for delta in (-math.inf, -5, 0, 1, 3, 5, math.inf)
    ]
    assert kept == sorted(kept, reverse=True)


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
        ({"scores": torch.tensor([1.0, 2.0])}, r"scores has shape \(2,\); write one number a row, shape \(4,\)"),
        ({"scores": torch.tensor([1.0, 2.0, math.inf, 0.0])}, r"scores\[2\] is inf"),
    ],
)
def test_bad_input_is_named(change, words):
    settings = {"rewards": EXAMPLE[0], "scores": EXAMPLE[1], "index": [0] * 4, "delta": 3.0} | change
    with pytest.raises(ValueError, match=words):
        rectified_advantage(**settings)
