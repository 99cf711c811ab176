"""DaGRPO's stage in the chain: its settings, whose scores it reads, what it masks, counts and remembers."""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_gsd.algorithms import chain
from verl_gsd.algorithms.dagrpo import rectified_advantage
from verl_gsd.algorithms.dagrpo_memory import DagrpoMemory
from verl_gsd.algorithms.dagrpo_settings import Delta, Settings
from verl_gsd.algorithms.dial import dial_advantage
from verl_gsd.algorithms.hadw import hadw_factor
from verl_gsd.algorithms.hadw_memory import HadwMemory
from verl_gsd.groups import Group, Member
from verl_gsd.records import Left, describe

NAN, INF = math.nan, math.inf
UIDS = itertools.count()
R, SCORES = [1, 0, 1, 0], [8, 3, 5, 4]


# Settings


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "OmegaConf"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, Delta(3.0, 3.0)),
        (-0.5, Delta(-0.5, -0.5)),
        (-INF, Delta(-INF, -INF)),
        (INF, Delta(INF, INF)),
        ({"from": 1, "to": 5, "steps": 200}, Delta(1.0, 5.0, 200)),
        ({"from": 5, "to": -1.5, "steps": 1}, Delta(5.0, -1.5, 1)),
        ({"quantile": 0.25}, Delta(quantile=0.25)),
        ({"quantile": 0}, Delta(quantile=0.0)),
        ({"quantile": 1}, Delta(quantile=1.0)),
    ],
)
def test_a_delta_is_a_number_a_way_or_a_quantile(wrap, value, expected):
    section = wrap({"delta": value, "judge": {"scorer": "stub"}, "demonstrations": None})
    assert Settings.of(section) == Settings(expected)
    assert Delta.of(section["delta"]) == expected


def test_only_a_delta_that_is_minus_infinity_for_good_needs_no_judge():
    assert Delta.of(-INF).keeps_all
    for value in (-100, INF, {"quantile": 0.0}, {"from": -5, "to": -5, "steps": 1}):
        assert not Delta.of(value).keeps_all


def test_every_key_of_the_section_is_read_and_null_is_the_default():
    given_ = {"signed": False, "mask": "mean", "rescale": True, "fail_closed": True, "probe_every": 7}
    expected = Settings(Delta(1.0, 1.0), False, "mean", True, True, 7)
    assert Settings.of(OmegaConf.create({"delta": 1} | given_)) == expected
    assert Settings.of(OmegaConf.create({"delta": 1} | dict.fromkeys(given_))) == Settings(Delta(1.0, 1.0))


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "OmegaConf"])
@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"delta": None}, "delta=None: write a number on the judge's scale"),
        ({"signed": True}, "delta=None"),
        ({"delta": NAN}, "delta=nan"),
        ({"delta": "3"}, "delta=3"),
        ({"delta": True}, "delta=True"),
        ({"delta": [1, 3]}, r"delta=\[1, 3\]"),
        ({"delta": {}}, r"delta=\{\}"),
        ({"delta": {"quantile": 1.5}}, r"delta=\{'quantile': 1\.5\}"),
        ({"delta": {"quantile": -0.1}}, "delta="),
        ({"delta": {"quantile": NAN}}, "delta="),
        ({"delta": {"quantile": True}}, "delta="),
        ({"delta": {"quantile": "0.5"}}, "delta="),
        ({"delta": {"quantile": 0.5, "steps": 3}}, "delta="),
        ({"delta": {"from": 1, "to": 5}}, "delta="),
        ({"delta": {"from": 1, "steps": 5}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 0}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 2.0}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": True}}, "delta="),
        ({"delta": {"from": -INF, "to": 5, "steps": 2}}, "delta="),
        ({"delta": {"from": 1, "to": NAN, "steps": 2}}, "delta="),
        ({"delta": {"from": "1", "to": 5, "steps": 2}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 2, "quantile": 0.5}}, "delta="),
        ({"delta": 3, "signed": "no"}, "signed=no: write true or false"),
        ({"delta": 3, "rescale": 1}, "rescale=1: write true or false"),
        ({"delta": 3, "fail_closed": "yes"}, "fail_closed=yes: write true or false"),
        ({"delta": 3, "mask": "median"}, "mask=median: write one of pairs, min, mean, max"),
        ({"delta": 3, "mask": ["min"]}, r"mask=\['min'\]"),
        ({"delta": 3, "probe_every": 0}, "probe_every=0: write a number of steps, 1 or more, or null"),
        ({"delta": 3, "probe_every": 2.0}, r"probe_every=2\.0"),
        ({"delta": 3, "probe_every": True}, "probe_every=True"),
        ({"delta": 3, "detla": 3, "margin": 1}, "detla, margin: no such key. Keys are delta, signed, mask, .*judge"),
    ],
)
def test_a_wrong_value_is_refused_and_its_key_named(wrap, section, words):
    with pytest.raises(ValueError, match=words):
        Settings.of(wrap(section))
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.dagrpo: "):
        chain.build_memory("dagrpo", wrap({"dagrpo": section}))


# The stage. A batch is written as its groups; a group's demonstrations stand in the places of its last responses.


@dataclass
class Row:
    """A row of a batch as the references below see it."""

    label: int
    reward: float
    score: float
    demonstration: bool = False
    failed: bool = False


def group(rewards, scores=None, demonstrations=0):
    rewards = np.array(rewards, np.float64)
    scores = None if scores is None else np.array(scores, np.float64)
    tokens = np.ones(len(rewards), np.int64)
    return Group(f"uid{next(UIDS)}", "math", 0, rewards, rewards, tokens, (), scores, demonstrations)


def batch_of(*groups):
    """(members, rows): what each row of the batch is, and the same for a reference."""
    members, rows = [], []
    for label, of in enumerate(groups):
        own = len(of.rewards) - of.demonstrations
        for place in range(own):
            score = NAN if of.scores is None else float(of.scores[place])
            members.append(Member(of, place))
            rows.append(Row(label, float(of.rewards[place]), score, failed=of.scores is not None and math.isnan(score)))
        for _ in range(of.demonstrations):
            members.append(Member(of, None))
            rows.append(Row(label, 1.0, NAN, demonstration=True))
    return members, rows


def chained(memory, groups, section, *, alpha=0.0, ddof=1, eps=1e-6, order=None, **sections):
    """Advantages of a batch through the chain, as a trainer runs it."""
    members, rows = batch_of(*groups)
    order = range(len(rows)) if order is None else order
    rewards = torch.tensor([rows[row].reward for row in order], dtype=torch.float64)
    gsd = {"alpha": alpha, "ddof": ddof, "eps": eps, "dagrpo": section} | sections
    columns = memory.columns([members[row] for row in order], groups)
    return chain.advantages(rewards, [rows[row].label for row in order], gsd, columns=columns)


def through(section, *groups, **settings):
    return chained(DagrpoMemory(section), groups, section, **settings).tolist()


def gap(a, b, signed=True):
    """The better one's score less the worse one's."""
    found = a.score - b.score if a.reward > b.reward else b.score - a.score
    return found if signed else abs(found)


def others(rows, row):
    """The rows of another reward in a row's group."""
    return [other for other in rows if other.label == row.label and other.reward != row.reward]


def is_kept_pair(a, b, delta, signed, closed):
    if a.demonstration or b.demonstration:
        return True
    if closed and (a.failed or b.failed):
        return False
    return math.isnan(gap(a, b)) or gap(a, b, signed) >= delta


def is_kept_row(rows, row, delta, by, signed, closed):
    if closed and row.failed:
        return False
    gaps = [gap(row, other, signed) for other in others(rows, row) if not math.isnan(gap(row, other))]
    return not gaps or {"min": min, "max": max, "mean": lambda of: sum(of) / len(of)}[by](gaps) >= delta


def alive_by_hand(rows, mask, delta, signed=True, closed=False):
    """One bool a row: whether anything is left that moves it."""
    if mask == "pairs":
        return [any(is_kept_pair(row, other, delta, signed, closed) for other in others(rows, row)) for row in rows]
    kept = [is_kept_row(rows, row, delta, mask, signed, closed) for row in rows]
    left = [
        {of.reward for of, stays in zip(rows, kept, strict=True) if stays and of.label == row.label} for row in rows
    ]
    return [is_kept and len(rewards) > 1 for is_kept, rewards in zip(kept, left, strict=True)]


def mixed_by_hand(rows):
    return [bool(others(rows, row)) for row in rows]


score = st.one_of(st.integers(0, 10).map(float), st.just(NAN))
binary, graded = (st.sampled_from(values) for values in ([0.0, 1.0], [0.0, 0.5, 1.0]))


@st.composite
def groups_of(draw, reward=graded, demonstrated=True):
    size = draw(st.integers(1, 5))
    rewards = draw(st.lists(reward, min_size=size, max_size=size))
    scores = draw(st.one_of(st.none(), st.lists(score, min_size=size, max_size=size)))
    return group(rewards, scores, draw(st.integers(0, size - 1)) if demonstrated else 0)


batches = st.lists(groups_of(), min_size=1, max_size=4)
deltas = st.sampled_from([-INF, -2.0, 0.0, 1.0, 3.0, 5.0, INF])
masks = st.sampled_from(["pairs", "min", "mean", "max"])


def test_the_examples_of_the_definition():
    assert through({"delta": 3}, group(R, SCORES)) == [0.5, -0.25, 0, -0.25]
    assert through({"delta": 3}, group(R, [8, NAN, 5, 4])) == [0.5, -0.5, 0.25, -0.25]


@given(batches, deltas, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_with_a_mask_on_pairs_the_chain_is_the_rectified_advantage(groups, delta, signed, alpha):
    section = {"delta": delta, "signed": signed}
    rows = batch_of(*groups)[1]
    rewards, scores = (torch.tensor([getattr(row, of) for row in rows]).double() for of in ("reward", "score"))
    labels = [row.label for row in rows]
    expected = rectified_advantage(rewards, scores, labels, delta=delta, signed=signed, alpha=alpha)
    assert through(section, *groups, alpha=alpha) == expected.tolist()


@given(batches, masks, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_without_a_threshold_every_mask_is_the_dial(groups, mask, alpha, rescale):
    section = {"delta": -INF, "mask": mask, "rescale": rescale}
    rows = batch_of(*groups)[1]
    rewards, labels = torch.tensor([row.reward for row in rows], dtype=torch.float64), [row.label for row in rows]
    expected = dial_advantage(rewards, labels, alpha=alpha)
    assert through(section, *groups, alpha=alpha) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


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
    memory = DagrpoMemory(section)
    members = [None, *members, None]
    columns = memory.columns(members, [])
    assert columns["judge_score"].isnan().tolist() == [True, False, False, False, False, True]
    assert not columns["judge_failed"].any() and not columns["demonstration"].any()
    rewards = torch.tensor([5.0, *(row.reward for row in rows), -7.0], dtype=torch.float64)
    gsd = {"alpha": 1.0, "ddof": 1, "eps": 1e-6, "dagrpo": section}
    uids, real = ["pad0", "a", "a", "a", "a", "a"], torch.tensor([False] + [True] * 4 + [False])
    found = chain.advantages(rewards, uids, gsd, mask=real, columns=columns).tolist()
    assert found == [0.0, *through(section, group(R, SCORES), alpha=1.0), 0.0]
    memory.commit([])
    alone = DagrpoMemory(section)
    chained(alone, [group(R, SCORES)], section)
    alone.commit([])
    assert memory.metrics() == alone.metrics()


def test_columns_are_read_by_place_and_not_by_order():
    of = group(R, [8, NAN, 5, 4])
    rows = [Member(of, 3), Member(of, None), Member(of, 1), None, Member(group([1]), 0), Member(of, 0)]
    columns = DagrpoMemory({"delta": 3}).columns(rows, [])
    assert columns["judge_score"].tolist() == pytest.approx([4, NAN, NAN, NAN, NAN, 8], nan_ok=True)
    assert columns["judge_failed"].tolist() == [False, False, True, False, False, False]
    assert columns["demonstration"].tolist() == [False, True, False, False, False, False]


def test_an_infinite_score_is_named_and_a_trainer_that_gives_no_columns_too():
    with pytest.raises(ValueError, match=r"scores\[1\] is inf"):
        through({"delta": 3}, group([1, 0], [1, INF]))
    gsd = {"alpha": 1.0, "ddof": 1, "eps": 1e-6, "dagrpo": {"delta": 3}}
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.dagrpo needs dagrpo of every row"):
        chain.advantages(torch.tensor([1.0, 0.0]), ["a", "a"], gsd)


# An adaptive delta


@given(batches, st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), st.booleans())
def test_a_quantile_is_that_of_the_known_gaps_of_the_batch_each_pair_once(groups, quantile, signed):
    section = {"delta": {"quantile": quantile}, "signed": signed}
    rows = batch_of(*groups)[1]
    pairs = [(a, b) for a, b in itertools.combinations(rows, 2) if a.label == b.label and a.reward != b.reward]
    gaps = [gap(a, b, signed) for a, b in pairs if not math.isnan(gap(a, b))]
    delta = float(np.quantile(gaps, quantile)) if gaps else -INF
    memory = DagrpoMemory(section)
    found = chained(memory, groups, section).tolist()
    assert found == through({"delta": delta, "signed": signed}, *groups)
    memory.commit(groups)
    assert memory.metrics().get("dagrpo/delta", -INF) == delta


def test_a_quantile_by_hand_and_anew_at_every_batch():
    section = {"delta": {"quantile": 0.5}}
    memory = DagrpoMemory(section)
    # Gaps 5, 4, 2, 1: the median is 3. Then 9 alone.
    assert chained(memory, [group(R, SCORES)], section).tolist() == [0.5, -0.25, 0, -0.25]
    assert chained(memory, [group([1, 0], [9, 0])], section).tolist() == [0.5, -0.5]
    memory.commit([])
    assert memory.metrics()["dagrpo/delta"] == 9


def test_delta_moves_with_every_step_and_not_within_one():
    section = {"delta": {"from": 1, "to": 5, "steps": 4}}
    memory, seen, found = DagrpoMemory(section), [], []
    for _ in range(6):
        first, second = (chained(memory, [group(R, SCORES)], section).tolist() for _ in range(2))
        assert first == second
        memory.commit([])
        found.append(first)
        seen.append(memory.metrics()["dagrpo/delta"])
    assert seen == [1, 2, 3, 4, 5, 5]
    assert found == [through({"delta": delta}, group(R, SCORES)) for delta in seen]
    assert len({tuple(of) for of in found}) > 3, "the way changes what is masked"


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(1, 500))
def test_a_way_ends_at_its_last_value_and_never_leaves_its_ends(first, last, steps):
    """A delta above ``last`` by a rounding masks every pair whose gap is ``last`` itself."""
    delta = Delta.of({"from": first, "to": last, "steps": steps})
    assert delta.at(0) == first
    assert delta.at(steps) == delta.at(steps + 1) == delta.at(10**6) == last
    assert min(first, last) <= delta.at(steps // 2) <= max(first, last)


@pytest.mark.parametrize("delta", [2, {"from": 1, "to": 5, "steps": 7}, {"quantile": 0.5}])
def test_ten_steps_are_four_a_restart_and_six(delta):
    section = {"delta": delta}
    generator = np.random.default_rng(0)
    steps = [[group(generator.integers(0, 2, 6), generator.integers(0, 11, 6))] for _ in range(10)]

    def run(memory, steps):
        for step in steps:
            yield chained(memory, step, section).tolist()
            memory.commit(step)
            yield memory.metrics()

    whole, first, second = (DagrpoMemory(section) for _ in range(3))
    expected = list(run(whole, steps))
    found = list(run(first, steps[:4]))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += run(second, steps[4:])
    assert found == expected and second.state_dict() == whole.state_dict()
    json.dumps(whole.depends_on())


# Before HA-DW


def both(dagrpo, hadw, *groups, alpha=1.0):
    memories = DagrpoMemory(dagrpo), HadwMemory(hadw)
    members, rows = batch_of(*groups)
    columns = {name: of for memory in memories for name, of in memory.columns(members, groups).items()}
    gsd = {"alpha": alpha, "ddof": 1, "eps": 1e-6, "hadw": hadw, "dagrpo": dagrpo}
    rewards = torch.tensor([row.reward for row in rows], dtype=torch.float64)
    return chain.advantages(rewards, [row.label for row in rows], gsd, columns=columns)


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


# Figures of a step

NAMES = {
    "dagrpo/delta",
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
    pairs = kept = judged = contradicted = tied = mixed_groups = silent = 0
    classes = {"right": [], "wrong": []}
    for groups in batches:
        rows = batch_of(*groups)[1]
        alive = alive_by_hand(rows, mask, delta, signed, closed)
        for a, b in itertools.combinations([row for row in rows if not row.demonstration], 2):
            if a.label == b.label and a.reward != b.reward:
                pairs += 1
                kept += is_kept_pair(a, b, delta, signed, closed)
                judged += not math.isnan(gap(a, b))
                contradicted += gap(a, b) < 0
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


steps = st.lists(st.lists(groups_of(binary), min_size=1, max_size=3), max_size=3)


@given(st.lists(steps, min_size=1, max_size=3), deltas, masks, st.booleans(), st.booleans())
def test_the_figures_of_a_step_are_those_counted_by_hand_over_its_batches(run, delta, mask, signed, closed):
    section = {"delta": delta, "mask": mask, "signed": signed, "fail_closed": closed}
    memory = DagrpoMemory(section)
    for step in run:
        for groups in step:
            chained(memory, groups, section)
        memory.commit([])
        found = memory.metrics()
        assert found == pytest.approx(counted_by_hand(step, mask, delta, signed, closed))
        assert set(found) <= NAMES
        assert memory.metrics() == {}, "they are of one step and taken once"


def test_the_figures_of_a_step_by_example_and_their_names():
    section = {"delta": 3}
    memory = DagrpoMemory(section)
    # Gaps 5, 4, 2, 1; then -7 and 0, both masked, and a pair that nobody judged; then a group of no difference.
    chained(memory, [group(R, SCORES), group([1, 0, 0], [2, 9, 2])], section)
    chained(memory, [group([1, 0]), group([0, 0, 0], [1, 2, 3])], section)
    memory.commit([])
    found = memory.metrics()
    assert found == {
        "dagrpo/delta": 3,
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
    memory = DagrpoMemory(section)
    chained(memory, groups, section)
    memory.commit([])
    return memory.metrics()


def test_demonstrations_are_not_counted():
    section = {"delta": 3}
    memory = DagrpoMemory(section)
    chained(memory, [group([0, 0, 0], demonstrations=1), group([1, 0, 0], [9, 1, 5], demonstrations=1)], section)
    memory.commit([])
    found = memory.metrics()
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
    memory, of = DagrpoMemory(section), group(R, [8, NAN, 2, 4])
    chained(memory, [of], section)
    # Pairs: 8 over 4 kept, 2 over 4 contradicted, two that nobody could judge kept.
    assert memory.record(of) == {
        "dagrpo_pairs": 4,
        "dagrpo_pairs_kept": 3,
        "dagrpo_pairs_contradicted": 1,
        "judge_failed": 1,
        "judge_score": pytest.approx(14 / 3),
    }
    closed = DagrpoMemory(section | {"fail_closed": True})
    assert closed.record(of)["dagrpo_pairs_kept"] == 1
    assert DagrpoMemory({"delta": 3, "signed": False}).record(group(R, [8, 9, 2, 4]))["dagrpo_pairs_kept"] == 2
    nobody = memory.record(group(R, [NAN] * 4))
    assert (nobody["judge_failed"], nobody["judge_score"], nobody["dagrpo_pairs_kept"]) == (4, None, 4)
    assert memory.record(group(R)) == memory.record(group([1], [5])) == memory.record(group([], [])) == {}
    (row,) = describe([Left(of, "trained", memory.record(of))], step=1, attempt=1, alpha=1.0).to_pylist()
    assert (row["dagrpo_pairs"], row["dagrpo_pairs_kept"], row["judge_failed"]) == (4, 3, 1)


@given(groups_of(demonstrated=False), deltas, st.booleans(), st.booleans())
def test_a_group_is_recorded_as_its_step_counted_it(of, delta, signed, closed):
    section = {"delta": delta, "signed": signed, "fail_closed": closed}
    memory = DagrpoMemory(section)
    chained(memory, [of], section)
    recorded = memory.record(of)
    memory.commit([of])
    found = memory.metrics()
    if recorded and recorded["dagrpo_pairs"]:
        assert recorded["dagrpo_pairs_kept"] == pytest.approx(found["dagrpo/pairs/kept"] * recorded["dagrpo_pairs"])
        judged = round(found["dagrpo/pairs/judged"] * recorded["dagrpo_pairs"])
        contradicted = judged * found.get("dagrpo/pairs/contradicted", 0)
        assert recorded["dagrpo_pairs_contradicted"] == pytest.approx(contradicted)


def test_a_record_has_the_delta_of_its_step():
    section = {"delta": {"from": 1, "to": 5, "steps": 1}}
    memory, kept = DagrpoMemory(section), []
    for _ in range(2):
        of = group(R, SCORES)
        chained(memory, [of], section)
        kept.append(memory.record(of)["dagrpo_pairs_kept"])
        memory.commit([of])
    assert kept == [4, 1]
