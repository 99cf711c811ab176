"""What DaGRPO's mask did, in metrics and records, against counting by hand."""

import itertools
import math

import numpy as np
import pytest
from dagrpo_groups import (
    NAN,
    SCORES,
    R,
    alive_by_hand,
    batch_of,
    binary,
    chained,
    deltas,
    gap,
    group,
    groups_of,
    is_kept_pair,
    masks,
    others,
    shaped_groups,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.algorithms.dagrpo.mask import Dagrpo
from verl_gsd.records import LeftGroup, step_records

NAMES = {
    "dagrpo/delta",
    "dagrpo/pairs/shaped",
    "dagrpo/pairs/kept",
    "dagrpo/pairs/judged",
    "dagrpo/pairs/contradicted",
    "dagrpo/pairs/tied",
    "dagrpo/masked/right",
    "dagrpo/masked/wrong",
    "dagrpo/masked/groups",
}


def is_paired(rows, row):
    """Whether a response of the policy's own has another of its group to be compared with."""
    return not row.demonstration and any(not other.demonstration for other in others(rows, row))


def counted_by_hand(batches, mask, delta, signed, closed):
    """The step's figures, of responses that form a pair with another; right and wrong are above and below their group's
    mean, demonstrations included in that."""
    unequal = shaped = pairs = kept = judged = contradicted = tied = mixed_groups = silent = 0
    classes = {"right": [], "wrong": []}
    for groups in batches:
        rows = batch_of(*groups)[1]
        alive = alive_by_hand(rows, mask, delta, signed, closed)
        own = [(row, is_alive) for row, is_alive in zip(rows, alive, strict=True) if not row.demonstration]
        for (a, a_lives), (b, b_lives) in itertools.combinations(own, 2):
            if a.label != b.label or a.reward == b.reward:
                continue
            unequal += 1
            shaped += a.verdict == b.verdict
            if a.verdict != b.verdict:
                pairs += 1
                kept += is_kept_pair(a, b, delta, signed, closed) if mask == "pairs" else a_lives and b_lives
                judged += not math.isnan(gap(a, b))
                contradicted += (a.verdict - b.verdict) * (a.score - b.score) < 0
                tied += gap(a, b) == 0
        for row, is_alive in zip(rows, alive, strict=True):
            of_group = [other.reward for other in rows if other.label == row.label]
            if is_paired(rows, row):
                mean = sum(of_group) / len(of_group)
                if row.reward != mean:
                    classes["right" if row.reward > mean else "wrong"].append(not is_alive)
        for label in range(len(groups)):
            of_group = [number for number, row in enumerate(rows) if row.label == label]
            paired = [number for number in of_group if is_paired(rows, rows[number])]
            mixed_groups += bool(paired)
            silent += bool(paired) and not any(alive[number] for number in paired)
    shares = {
        "pairs/shaped": (shaped, unequal),
        "pairs/kept": (kept, pairs),
        "pairs/judged": (judged, pairs),
        "pairs/contradicted": (contradicted, judged),
        "pairs/tied": (tied, judged),
        "masked/right": (sum(classes["right"]), len(classes["right"])),
        "masked/wrong": (sum(classes["wrong"]), len(classes["wrong"])),
        "masked/groups": (silent, mixed_groups),
    }
    found = {f"dagrpo/{name}": part / whole for name, (part, whole) in shares.items() if whole}
    return found if math.isinf(delta) else found | {"dagrpo/delta": delta}


steps = st.lists(st.lists(groups_of(binary) | shaped_groups(), min_size=1, max_size=3), max_size=3)


@settings(max_examples=50)
@given(st.lists(steps, min_size=1, max_size=3), deltas, masks, st.booleans(), st.booleans())
def test_the_figures_of_a_step_are_those_counted_by_hand_over_its_batches(run, delta, mask, signed, closed):
    section = {"delta": delta, "mask": mask, "signed": signed, "fail_closed": closed}
    dagrpo = Dagrpo(section)
    for step in run:
        for groups in step:
            chained(dagrpo, groups, section)
        found = dagrpo.end_step([])
        assert found == pytest.approx(counted_by_hand(step, mask, delta, signed, closed))
        assert set(found) <= NAMES
        nothing = counted_by_hand([], mask, delta, signed, closed)
        assert dagrpo.end_step([]) == nothing, "they are of one step and taken once"


def test_the_figures_of_a_step_by_example_and_their_names():
    section = {"delta": 3}
    dagrpo = Dagrpo(section)
    # Gaps 5, 4, 2, 1; then -7 and 0, both masked, and a pair that nobody judged; then a group of no difference.
    chained(dagrpo, [group(R, SCORES), group([1, 0, 0], [2, 9, 2])], section)
    chained(dagrpo, [group([1, 0]), group([0, 0, 0], [1, 2, 3])], section)
    found = dagrpo.end_step([])
    assert found == {
        "dagrpo/delta": 3,
        "dagrpo/pairs/shaped": 0,
        "dagrpo/pairs/kept": 3 / 7,
        "dagrpo/pairs/judged": 6 / 7,
        "dagrpo/pairs/contradicted": 1 / 6,
        "dagrpo/pairs/tied": 1 / 6,
        "dagrpo/masked/right": 2 / 4,
        "dagrpo/masked/wrong": 2 / 5,
        "dagrpo/masked/groups": 1 / 3,
    }
    assert set(found) == NAMES
    assert not [name for name in found for word in ("max", "min", "sum", "total") if word in name]


def figures(section, *groups):
    dagrpo = Dagrpo(section)
    chained(dagrpo, groups, section)
    return dagrpo.end_step([])


def test_demonstrations_are_not_counted():
    section = {"delta": 3}
    dagrpo = Dagrpo(section)
    chained(dagrpo, [group([0, 0, 0], demonstrations=1), group([1, 0, 0], [9, 1, 5], demonstrations=1)], section)
    found = dagrpo.end_step([])
    assert found["dagrpo/pairs/kept"] == found["dagrpo/pairs/judged"] == 1, "the one pair of two own responses"
    assert found["dagrpo/masked/right"] == found["dagrpo/masked/wrong"] == 0
    assert "dagrpo/pairs/kept" not in figures(section, group([0, 0, 0], demonstrations=1))


def test_a_response_at_its_groups_mean_is_neither_right_nor_wrong():
    """The middle one lost its pairs, and the other two have theirs."""
    found = figures({"delta": 5}, group([1, 0.5, 0], [9, 5, 1]))
    assert found["dagrpo/pairs/kept"] == 1 / 3
    assert found["dagrpo/masked/right"] == 0 and found["dagrpo/masked/wrong"] == 0


def test_the_records_have_a_groups_own_pairs_and_judgements():
    section = {"delta": 3}
    dagrpo, of = Dagrpo(section), group(R, [8, NAN, 2, 4])
    chained(dagrpo, [of], section)
    # Pairs: 8 over 4 kept, 2 over 4 contradicted, two that nobody could judge kept.
    assert dagrpo.record(of) == {
        "dagrpo_pairs": 4,
        "dagrpo_pairs_kept": 3,
        "dagrpo_pairs_contradicted": 1,
        "dagrpo_pairs_shaped": 0,
        "judge_failed": 1,
        "judge_score": pytest.approx(14 / 3),
    }
    closed = Dagrpo(section | {"fail_closed": True})
    assert closed.record(of)["dagrpo_pairs_kept"] == 1
    assert Dagrpo({"delta": 3, "signed": False}).record(group(R, [8, 9, 2, 4]))["dagrpo_pairs_kept"] == 2
    nobody = dagrpo.record(group(R, [NAN] * 4))
    assert (nobody["judge_failed"], nobody["judge_score"], nobody["dagrpo_pairs_kept"]) == (4, None, 4)
    assert dagrpo.record(group(R)) == dagrpo.record(group([1], [5])) == dagrpo.record(group([], [])) == {}
    (row,) = step_records([LeftGroup(of, "trained", dagrpo.record(of))], step=1, attempt=1, alpha=1.0).to_pylist()
    assert (row["dagrpo_pairs"], row["dagrpo_pairs_kept"], row["judge_failed"]) == (4, 3, 1)


@settings(max_examples=50)
@given(groups_of(demonstrated=False) | shaped_groups(), deltas, masks, st.booleans(), st.booleans())
def test_a_group_is_recorded_as_its_step_counted_it(of, delta, mask, signed, closed):
    section = {"delta": delta, "mask": mask, "signed": signed, "fail_closed": closed}
    dagrpo = Dagrpo(section)
    chained(dagrpo, [of], section)
    recorded = dagrpo.record(of)
    found = dagrpo.end_step([of])
    if recorded and (unequal := recorded["dagrpo_pairs"] + recorded["dagrpo_pairs_shaped"]):
        assert recorded["dagrpo_pairs_shaped"] == pytest.approx(found["dagrpo/pairs/shaped"] * unequal)
    if recorded and recorded["dagrpo_pairs"]:
        assert recorded["dagrpo_pairs_kept"] == pytest.approx(found["dagrpo/pairs/kept"] * recorded["dagrpo_pairs"])
        judged = round(found["dagrpo/pairs/judged"] * recorded["dagrpo_pairs"])
        contradicted = judged * found.get("dagrpo/pairs/contradicted", 0)
        assert recorded["dagrpo_pairs_contradicted"] == pytest.approx(contradicted)


@pytest.mark.parametrize(("mask", "kept"), [("pairs", 3), ("min", 1), ("mean", 2), ("max", 4)])
def test_a_mask_on_responses_keeps_a_pair_if_it_keeps_both(mask, kept):
    """The gaps of the right responses are 4, 1 and 9, 6. One pair is below delta, and its responses have others."""
    section = {"delta": 3, "mask": mask}
    dagrpo, of = Dagrpo(section), group(R, [5, 1, 10, 4])
    chained(dagrpo, [of], section)
    assert dagrpo.record(of)["dagrpo_pairs_kept"] == kept
    assert dagrpo.end_step([of])["dagrpo/pairs/kept"] == kept / 4


def test_a_warning_says_that_a_mask_on_responses_drops_all_pairs(caplog):
    section = {"delta": 3, "mask": "min"}
    dagrpo, groups = Dagrpo(section), [group(R, [3, 2, 9, 1]) for _ in range(5)]
    chained(dagrpo, groups, section)
    assert dagrpo.end_step(groups)["dagrpo/masked/groups"] == 1
    assert "the mask dropped all 20 judged pairs" in caplog.text


def test_a_shaped_term_makes_no_judge_look_wrong():
    """Right responses score 8 and wrong ones 3. The lengths of the responses make all rewards differ."""
    section, rng = {"delta": 1.0}, np.random.default_rng(0)
    dagrpo, groups = Dagrpo(section), []
    for right in rng.integers(0, 9, 64):
        verdicts = np.repeat([1.0, 0.0], [right, 8 - right])
        scores = np.where(verdicts == 1, 8, 3)
        groups.append(group(verdicts - 0.05 * rng.random(8), scores, verdicts=verdicts))
    chained(dagrpo, groups, section)
    recorded = [dagrpo.record(of) for of in groups]
    found = dagrpo.end_step(groups)
    assert found["dagrpo/pairs/tied"] == found["dagrpo/pairs/contradicted"] == 0
    assert found["dagrpo/pairs/kept"] == 1 and found["dagrpo/pairs/shaped"] > 0.5
    assert sum(of["dagrpo_pairs_contradicted"] for of in recorded) == 0
    assert sum(of["dagrpo_pairs_kept"] for of in recorded) == sum(of["dagrpo_pairs"] for of in recorded) > 0


def test_a_judge_that_agrees_with_the_verdict_does_not_contradict_it_whatever_the_penalty():
    """The penalty gives the right response the lower reward. The mask still goes by the rewards."""
    section = {"delta": 1.0}
    dagrpo, of = Dagrpo(section), group([-0.5, 0], [8, 3], verdicts=[1, 0])
    chained(dagrpo, [of], section)
    recorded = dagrpo.record(of)
    assert recorded["dagrpo_pairs"] == 1 and recorded["dagrpo_pairs_contradicted"] == 0
    assert recorded["dagrpo_pairs_kept"] == 0
    assert dagrpo.end_step([of])["dagrpo/pairs/contradicted"] == 0


def test_without_an_accuracy_the_rewards_are_the_verdicts():
    section = {"delta": 3}
    dagrpo, of = Dagrpo(section), group([0.9, 0.1, 0.5], [1, 9, 5], verdicts=[NAN, 1, 1])
    chained(dagrpo, [of], section)
    assert dagrpo.record(of)["dagrpo_pairs_contradicted"] == dagrpo.record(of)["dagrpo_pairs"] == 3
    found = dagrpo.end_step([of])
    assert found["dagrpo/pairs/contradicted"] == 1 and found["dagrpo/pairs/shaped"] == 0


def test_a_record_has_the_delta_of_its_step():
    section = {"delta": {"from": 1, "to": 5, "steps": 1}}
    dagrpo, kept = Dagrpo(section), []
    for _ in range(2):
        of = group(R, SCORES)
        chained(dagrpo, [of], section)
        kept.append(dagrpo.record(of)["dagrpo_pairs_kept"])
        dagrpo.end_step([of])
    assert kept == [4, 1]
