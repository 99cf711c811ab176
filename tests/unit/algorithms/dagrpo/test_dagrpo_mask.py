"""DaGRPO's mask in the chain: whose scores it reads, what it masks, and what it remembers."""

import itertools
import json
import math
import weakref

import numpy as np
import pytest
import torch
from dagrpo_groups import (
    INF,
    NAN,
    SCORES,
    R,
    alive_by_hand,
    batch_of,
    batches,
    chained,
    deltas,
    gap,
    group,
    is_kept_row,
    masks,
    mixed_by_hand,
    through,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd import chain
from verl_gsd.algorithms.dagrpo import pairs
from verl_gsd.algorithms.dagrpo.mask import Dagrpo
from verl_gsd.algorithms.dagrpo.pairs import rectified_advantage
from verl_gsd.algorithms.dagrpo.settings import MaskDelta
from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.dial import dial_advantage
from verl_gsd.extension import ExtensionError
from verl_gsd.groups import Member, group_stats


def test_the_examples_of_the_definition():
    assert through({"delta": 3}, group(R, SCORES)) == [0.5, -0.25, 0, -0.25]
    assert through({"delta": 3}, group(R, [8, NAN, 5, 4])) == [0.5, -0.5, 0.25, -0.25]


@settings(max_examples=50)
@given(batches, deltas, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_with_a_mask_on_pairs_the_chain_is_the_rectified_advantage(groups, delta, signed, alpha):
    section = {"delta": delta, "signed": signed}
    rows = batch_of(*groups)[1]
    rewards, scores = (torch.tensor([getattr(row, of) for row in rows]).double() for of in ("reward", "score"))
    labels = [row.label for row in rows]
    expected = rectified_advantage(rewards, scores, labels, delta=delta, signed=signed, alpha=alpha)
    assert through(section, *groups, alpha=alpha) == expected.tolist()


@settings(max_examples=50)
@given(batches, masks, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_without_a_threshold_every_mask_is_the_dial(groups, mask, alpha, rescale):
    section = {"delta": -INF, "mask": mask, "rescale": rescale}
    rows = batch_of(*groups)[1]
    rewards, labels = torch.tensor([row.reward for row in rows], dtype=torch.float64), [row.label for row in rows]
    expected = dial_advantage(rewards, labels, alpha=alpha)
    assert through(section, *groups, alpha=alpha) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


@settings(max_examples=50)
@given(batches, deltas, masks, st.data())
def test_where_a_row_stands_in_the_batch_does_not_matter(groups, delta, mask, data):
    section = {"delta": delta, "mask": mask}
    found = through(section, *groups, alpha=1.0)
    order = data.draw(st.permutations(range(len(found))))
    assert through(section, *groups, alpha=1.0, order=order) == pytest.approx([found[row] for row in order], rel=1e-12)


@given(batches, deltas, st.sampled_from(["min", "mean", "max"]), st.booleans(), st.booleans(), st.integers(0, 1))
def test_a_mask_on_responses_takes_mean_and_sigma_of_those_it_keeps(groups, delta, by, signed, closed, ddof):
    section = {"delta": delta, "mask": by, "signed": signed, "fail_closed": closed}
    rows = batch_of(*groups)[1]
    kept = [is_kept_row(rows, row, delta, by, signed, closed) for row in rows]
    expected = []
    for row, is_kept in zip(rows, kept, strict=True):
        left = [of.reward for of, stays in zip(rows, kept, strict=True) if stays and of.label == row.label]
        if is_kept and len(set(left)) > 1:
            mean = sum(left) / len(left)
            sigma = math.sqrt(sum((reward - mean) ** 2 for reward in left) / (len(left) - ddof))
            expected.append((row.reward - mean) / (sigma + 0.01) ** 0.7)
        else:
            expected.append(0.0)
    assert through(section, *groups, alpha=0.7, ddof=ddof, eps=0.01) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_class_left_empty_silences_its_group_and_no_other():
    # Gaps of the one right response: 5 and 1. By their minimum it is dropped, and so is the second wrong one.
    silenced, other = group([1, 0, 0], [8, 3, 7]), group([1, 0, 1], [9, 1, 8])
    assert through({"delta": 3, "mask": "min"}, silenced, other) == pytest.approx([0, 0, 0, 1 / 3, -2 / 3, 1 / 3])
    assert through({"delta": 3, "mask": "mean"}, silenced) == pytest.approx([0.5, -0.5, 0])
    root = 0.5**0.5
    assert through({"delta": 3, "mask": "mean"}, silenced, alpha=1.0, eps=0.0) == pytest.approx([root, -root, 0])
    # Every row of both is dropped.
    assert through({"delta": 10, "mask": "min", "rescale": True}, silenced, other) == [0.0] * 6


@settings(max_examples=50)
@given(batches, deltas, masks, st.booleans(), st.booleans())
def test_rescale_multiplies_by_rows_of_mixed_groups_over_those_not_masked(groups, delta, mask, signed, closed):
    section = {"delta": delta, "mask": mask, "signed": signed, "fail_closed": closed}
    rows = batch_of(*groups)[1]
    alive = sum(alive_by_hand(rows, mask, delta, signed, closed))
    factor = sum(mixed_by_hand(rows)) / alive if alive else 1.0
    plain = through(section, *groups, alpha=0.5)
    rescaled = through(section | {"rescale": True}, *groups, alpha=0.5)
    assert rescaled == pytest.approx([factor * advantage for advantage in plain], rel=1e-12, abs=1e-15)


def test_rescale_does_not_count_rows_of_unanimous_groups():
    section = {"delta": 3, "rescale": True}
    expected = [advantage * 4 / 3 for advantage in [0.5, -0.25, 0, -0.25]]
    assert through(section, group(R, SCORES), group([1] * 6), group([0])) == pytest.approx(expected + [0] * 7)


def test_fail_closed_drops_the_pairs_of_failed_judgements():
    section = {"delta": 3, "fail_closed": True}
    assert through(section, group(R, [8, NAN, 5, 4])) == [0.25, 0, 0, -0.25]
    assert through(section, group(R, [NAN] * 4)) == [0, 0, 0, 0]
    assert through(section | {"mask": "max"}, group(R, [8, NAN, 5, 4])) == pytest.approx([0.5, 0, 0, -0.5])


@pytest.mark.parametrize("mask", ["pairs", "min", "mean", "max"])
def test_fail_closed_drops_no_pair_of_a_group_that_nobody_judged(mask):
    section = {"delta": INF, "fail_closed": True, "mask": mask}
    assert through(section, group(R), group(R, [NAN] * 4)) == [0.5, -0.5, 0.5, -0.5, 0, 0, 0, 0]
    # Every rollout failed, and a demonstration stands in the place of the last.
    assert through(section, group([0] * 4, demonstrations=1)) == [-0.25, -0.25, -0.25, 0.75]


@pytest.mark.parametrize("closed", [False, True])
def test_no_threshold_masks_a_demonstrations_pairs_with_judged_responses(closed):
    # Two wrong, one right, all judged and too close; the demonstration's pairs with the wrong ones are left.
    found = through({"delta": INF, "fail_closed": closed}, group([0, 1, 0, 0], [4, 5, 4, 4], demonstrations=1))
    assert found == [-0.25, 0, -0.25, 0.5]


def test_fail_closed_keeps_a_demonstrations_pair_with_a_response_whose_judgement_failed():
    """That pair is of no judgement: it is kept when the judgement succeeds, whatever the score."""
    section, expected = {"delta": INF, "fail_closed": True}, [-0.25, 0, -0.25, 0.5]
    assert through(section, group([0, 1, 0, 0], [4, 5, 4, 4], demonstrations=1)) == expected
    assert through(section, group([0, 1, 0, 0], [NAN, 5, 4, 4], demonstrations=1)) == expected


@pytest.mark.parametrize("mask", ["pairs", "mean"])
def test_padding_gets_nothing_and_changes_nothing(mask):
    section = {"delta": 3, "mask": mask, "rescale": True}
    members, rows = batch_of(group(R, SCORES))
    dagrpo = Dagrpo(section)
    members = [None, *members, None]
    columns = dagrpo.stage_inputs(members, [])
    assert columns["judge_score"].isnan().tolist() == [True, False, False, False, False, True]
    assert not columns["judge_failed"].any() and not columns["demonstration"].any()
    rewards = torch.tensor([5.0, *(row.reward for row in rows), -7.0], dtype=torch.float64)
    gsd = {"alpha": 1.0, "ddof": 1, "eps": 1e-6, "dagrpo": section}
    uids, real = ["pad0", "a", "a", "a", "a", "a"], torch.tensor([False] + [True] * 4 + [False])
    found = chain.advantages(rewards, uids, gsd, mask=real, columns=columns, extensions={"dagrpo": dagrpo})
    assert found.tolist() == [0.0, *through(section, group(R, SCORES), alpha=1.0), 0.0]
    alone = Dagrpo(section)
    chained(alone, [group(R, SCORES)], section)
    assert dagrpo.end_step([]) == alone.end_step([])


def test_columns_are_read_by_place_and_not_by_order():
    of = group(R, [8, NAN, 5, 4])
    rows = [Member(of, 3), Member(of, None), Member(of, 1), None, Member(group([1]), 0), Member(of, 0)]
    columns = Dagrpo({"delta": 3}).stage_inputs(rows, [])
    assert columns["judge_score"].tolist() == pytest.approx([4, NAN, NAN, NAN, NAN, 8], nan_ok=True)
    assert columns["judge_failed"].tolist() == [False, False, True, False, False, False]
    assert columns["demonstration"].tolist() == [False, True, False, False, False, False]


def test_an_infinite_score_is_named_and_a_trainer_that_gives_no_columns_too():
    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.dagrpo\b.*\bcentre\b.*scores\[1\].*inf") as refused:
        through({"delta": 3}, group([1, 0], [1, INF]))
    assert isinstance(refused.value.__cause__, ValueError)
    gsd = {"alpha": 1.0, "ddof": 1, "eps": 1e-6, "dagrpo": {"delta": 3}}
    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.dagrpo\b.*\bcentre\b.*\bjudge_score\b") as refused:
        chain.advantages(torch.tensor([1.0, 0.0]), ["a", "a"], gsd)
    assert isinstance(refused.value.__cause__, ValueError)


# An adaptive delta


@given(batches, st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.booleans())
def test_a_quantile_is_that_of_the_known_gaps_of_the_batch_each_pair_once(groups, quantile, signed):
    section = {"delta": {"quantile": quantile}, "signed": signed}
    rows = batch_of(*groups)[1]
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a.label == b.label and a.reward != b.reward]
    gaps = [gap(a, b, signed) for a, b in pairs if not math.isnan(gap(a, b))]
    delta = float(np.quantile(gaps, quantile)) if gaps else -INF
    dagrpo = Dagrpo(section)
    found = chained(dagrpo, groups, section).tolist()
    assert found == through({"delta": delta, "signed": signed}, *groups)
    assert dagrpo.end_step(groups).get("dagrpo/delta", -INF) == delta


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # the group
            st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-1, 1),
            st.sampled_from([0.0, 1.0, 10.0, NAN]) | st.floats(-10, 10),
            st.booleans(),  # whether it is a row of a group
        ),
        min_size=1,
        max_size=30,
    ).filter(lambda rows: any(counts for *_, counts in rows)),
    st.sampled_from([1, 20, 1 << 18]),
)
def test_gaps_are_made_in_blocks_without_those_of_equal_rewards_and_of_failed_judgements(rows, block_pairs):
    index, rewards, scores, mask = (list(column) for column in zip(*rows, strict=True))
    rewards, scores = torch.tensor(rewards, dtype=torch.float64), torch.tensor(scores, dtype=torch.float64)
    expected = [
        (b[2] - a[2]) * np.sign(b[1] - a[1])
        for a, b in itertools.combinations([row for row in rows if row[3]], 2)
        if a[0] == b[0] and a[1] != b[1] and not math.isnan(a[2] + b[2])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BLOCK_PAIRS", block_pairs)
        stats = group_stats(rewards, index, torch.tensor(mask))
        found = np.concatenate([[], *pairs.judged_gaps(rewards, scores, stats)])
    assert sorted(found.tolist()) == sorted(expected)


def test_a_quantile_by_hand_and_anew_at_every_batch():
    section = {"delta": {"quantile": 0.5}}
    dagrpo = Dagrpo(section)
    # Gaps 5, 4, 2, 1: the median is 3. Then 9 alone.
    assert chained(dagrpo, [group(R, SCORES)], section).tolist() == [0.5, -0.25, 0, -0.25]
    assert chained(dagrpo, [group([1, 0], [9, 0])], section).tolist() == [0.5, -0.5]
    assert dagrpo.end_step([])["dagrpo/delta"] == 9


def test_delta_moves_with_every_step_and_not_within_one():
    section = {"delta": {"from": 1, "to": 5, "steps": 4}}
    dagrpo, seen, found = Dagrpo(section), [], []
    for _ in range(6):
        first, second = (chained(dagrpo, [group(R, SCORES)], section).tolist() for _ in range(2))
        assert first == second
        found.append(first)
        seen.append(dagrpo.end_step([])["dagrpo/delta"])
    assert seen == [1, 2, 3, 4, 5, 5]
    assert found == [through({"delta": delta}, group(R, SCORES)) for delta in seen]
    assert len({tuple(of) for of in found}) > 3, "the way changes what is masked"


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(1, 500))
def test_a_way_ends_at_its_last_value_and_never_leaves_its_ends(first, last, steps):
    """A delta above ``last`` by a rounding masks every pair whose gap is ``last`` itself."""
    delta = MaskDelta.of({"from": first, "to": last, "steps": steps})
    assert delta.at(0) == first
    assert delta.at(steps) == delta.at(steps + 1) == delta.at(10**6) == last
    assert min(first, last) <= delta.at(steps // 2) <= max(first, last)


@pytest.mark.parametrize("delta", [2, {"from": 1, "to": 5, "steps": 7}, {"quantile": 0.5}])
def test_ten_steps_are_four_a_restart_and_six(delta):
    section = {"delta": delta}
    generator = np.random.default_rng(0)
    steps = [[group(generator.integers(0, 2, 6), generator.integers(0, 11, 6))] for _ in range(10)]

    def run(dagrpo, steps):
        for step in steps:
            yield chained(dagrpo, step, section).tolist()
            yield dagrpo.end_step(step)

    whole, first, second = (Dagrpo(section) for _ in range(3))
    expected = list(run(whole, steps))
    found = list(run(first, steps[:4]))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += run(second, steps[4:])
    assert found == expected and second.state_dict() == whole.state_dict()
    json.dumps(whole.fingerprint())


# Before HA-DW


def both(dagrpo, hadw, *groups, alpha=1.0):
    extensions = {"dagrpo": Dagrpo(dagrpo), "hadw": Hadw(hadw)}
    members, rows = batch_of(*groups)
    columns = {name: of for one in extensions.values() for name, of in one.stage_inputs(members, groups).items()}
    gsd = {"alpha": alpha, "ddof": 1, "eps": 1e-6, "hadw": hadw, "dagrpo": dagrpo}
    rewards, labels = torch.tensor([row.reward for row in rows], dtype=torch.float64), [row.label for row in rows]
    return chain.advantages(rewards, labels, gsd, columns=columns, extensions=extensions)


@pytest.mark.parametrize(("scores", "sign"), [([5, 4, 1], 1), ([9, 4, 3], -1), ([5, 4, 3], 0)])
def test_the_sign_of_the_rectified_advantage_decides_the_factor(scores, sign):
    """The middle one of three grades is below the mean, and what is masked decides whether it is pushed up or down."""
    of = group([1, 0.4, 0], scores)
    plain = torch.tensor(through({"delta": 3}, of, alpha=1.0), dtype=torch.float64)
    assert plain[1].sign() == sign
    found = both({"delta": 3}, {"preset": 0.2, "lambda_scale": 1.5}, of)
    phi = hadw_factor(plain, torch.full((3,), 1.4 / 3, dtype=torch.float64), 0.2, lambda_scale=1.5)
    assert torch.equal(found, plain * phi)
    if sign:  # an easy group: right ones count less, wrong ones more
        assert phi[1] == pytest.approx(1.5 * math.exp(-sign * (1.4 / 3 - 0.2)))


def test_off_leaves_the_rectified_advantage_as_it_is():
    of = group(R, SCORES)
    assert both({"delta": 3}, {"preset": "off"}, of).tolist() == through({"delta": 3}, of, alpha=1.0)


def test_a_demonstration_is_weighed_by_the_accuracy_of_the_policys_own_responses():
    failed = group([0] * 4, demonstrations=1)
    plain = torch.tensor(through({"delta": 3}, failed, alpha=0.0), dtype=torch.float64)
    found = both({"delta": 3}, {"preset": 0.5, "lambda_scale": 1.0}, failed, alpha=0.0)
    factor = torch.tensor([math.exp(-0.5)] * 3 + [math.exp(0.5)], dtype=torch.float64)
    torch.testing.assert_close(found, plain * factor)


# Large groups


@settings(max_examples=50)
@given(batches, deltas, masks)
def test_blocks_of_pairs_change_no_result(groups, delta, mask):
    section = {"delta": delta, "mask": mask}
    results = []
    for block_pairs in (1, pairs.BLOCK_PAIRS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairs, "BLOCK_PAIRS", block_pairs)
            dagrpo = Dagrpo(section)
            results.append((chained(dagrpo, groups, section).tolist(), dagrpo.end_step([])))
    assert results[0] == results[1]


@pytest.mark.parametrize("mask", ["pairs", "mean"])
@pytest.mark.parametrize("delta", [3.0, {"quantile": 0.5}])
def test_the_memory_for_pairs_does_not_grow_with_the_number_of_groups(mask, delta, monkeypatch):
    # 12 groups of 512 have 12 blocks, as 64 such groups have 64. Holding all their pairs would take 24 MiB per number.
    blocks, alive, passes = [], [], []

    def watched(function):
        def wrapper(*arguments):
            passes.append(function.__name__)
            for block in function(*arguments):
                blocks.append(weakref.ref(block))
                assert (len(block) if isinstance(block, np.ndarray) else block.difference.numel()) <= 512**2
                yield block
                del block
                alive.append(sum(reference() is not None for reference in blocks))

        return wrapper

    assert pairs.BLOCK_PAIRS == 512**2
    by_size, gaps = watched(pairs.pairs_by_size), watched(pairs.judged_gaps)
    for module in ("mask", "pairs"):
        monkeypatch.setattr(f"verl_gsd.algorithms.dagrpo.{module}.pairs_by_size", by_size)
        monkeypatch.setattr(f"verl_gsd.algorithms.dagrpo.{module}.judged_gaps", gaps)
    generator = np.random.default_rng(0)
    groups = [group(generator.integers(0, 2, 512), generator.integers(0, 11, 512)) for _ in range(12)]
    through({"delta": delta, "mask": mask}, *groups)
    assert passes == ["pairs_by_size"] if delta == 3.0 else ["judged_gaps", "pairs_by_size"], "each pair is made once"
    assert len(alive) == 12 * len(passes) and max(alive) <= 1
