"""Which groups are silent, and what is left of a denominator without them."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from verl_gsd.algorithms.chain import advantages
from verl_gsd.algorithms.rollouts.budget import allocate_rollouts
from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import gain_ratios, group_size_weights
from verl_gsd.algorithms.silent_groups.denominator import in_silent_group, response_weights, scale, unit_counts
from verl_gsd.algorithms.silent_groups.settings import SilentGroupSettings
from verl_gsd.denominators import UNITS, divided_by
from verl_gsd.errors import SettingsError
from verl_gsd.groups import Group, group_stats

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.0, -0.0, 1e-30, -1.5, 2.0]), st.booleans()), min_size=1
).filter(lambda rows: any(belongs for *_, belongs in rows))


@given(ROWS)
def test_a_group_is_silent_if_all_its_advantages_are_exactly_zero(rows):
    labels, values, belongs = zip(*rows, strict=True)
    found = in_silent_group(torch.tensor(values, dtype=torch.float64), labels, torch.tensor(belongs))
    expected = [
        mine and all(value == 0 for label, value, counts in rows if counts and label == group)
        for group, _, mine in rows
    ]
    assert found.tolist() == expected and found.dtype == torch.bool


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_the_groups_that_the_chain_gives_no_signal_are_silent(alpha):
    """Seven rewards of 0.7 have a standard deviation of 1e-16 in floats, and are silent all the same."""
    rewards = torch.tensor([1.0, 0, 0, *[0.7] * 7, 5.0, 1, 1])
    labels = [*"aaa", *"bbbbbbb", "c", *"dd"]
    found = in_silent_group(advantages(rewards, labels, {"alpha": alpha, "ddof": 1, "eps": 1e-6}), labels)
    assert found.tolist() == [label in "bcd" for label in labels]


def test_a_group_whose_pairs_are_all_masked_is_silent_although_its_rewards_differ():
    from verl_gsd.algorithms.dagrpo import rectified_advantage

    rewards, scores = torch.tensor([1.0, 0, 1, 0]), torch.tensor([5.0, 5, 9, 1])
    result = rectified_advantage(rewards, scores, [0, 0, 1, 1], delta=2.0)
    assert in_silent_group(result, [0, 0, 1, 1]).tolist() == [True, True, False, False]


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1), st.integers(1, 4), st.sampled_from(UNITS))
def test_the_scale_is_the_ratio_of_the_counts_however_workers_share_the_rows(rows, workers, unit):
    tokens, silent = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    parts = [
        unit_counts(silent[rank::workers], tokens[rank::workers], torch.ones_like(tokens)[rank::workers])
        for rank in range(workers)
    ]
    counts = sum(parts)
    weigh = {"tokens": lambda row: row[0], "responses": lambda row: 1}[unit]
    everything = sum(map(weigh, rows))
    rest = sum(weigh(row) for row in rows if not row[1])
    assert scale(counts, unit) == (everything / rest if rest else 1)
    assert scale(counts, unit) >= 1 and (any(row[1] for row in rows) or scale(counts, unit) == 1)


@pytest.mark.parametrize(
    ("loss_mode", "loss_agg_mode", "unit"),
    [
        ("vanilla", "token-mean", "tokens"),
        ("vanilla", "seq-mean-token-sum", "responses"),
        ("gspo", "seq-mean-token-mean", "responses"),
        ("vanilla", "seq-mean-token-sum-norm", "responses"),
        ("vanilla", "token-sum", None),
        ("sapo", "token-mean", "responses"),
    ],
)
def test_what_verl_divides_by(loss_mode, loss_agg_mode, unit):
    assert divided_by(loss_mode, loss_agg_mode) == unit


@pytest.mark.parametrize("sizes", [{"a": None, "b": None}, {"a": 2, "b": 6}])
def test_the_extension_marks_rows_of_silent_groups_and_no_padding(sizes):
    from verl_gsd.algorithms.silent_groups.extension import IN_SILENT_GROUP, RESPONSE_WEIGHT, SilentGroups
    from verl_gsd.extension import Batch

    keys = ["a_0_0", "pad-1_0_0", "b_0_0", "a_1_0", "b_1_0", "b_1_1", "pad-1_1_0"]
    extension = SilentGroups({})
    left = [Group(uid, "math", 0, np.zeros(2), np.zeros(2), np.ones(2), rollouts_requested=sizes[uid]) for uid in "ab"]
    assert [extension.on_group_left(group, "trained") for group in left] == left
    columns = extension.loss_columns(Batch(keys, [{}] * len(keys)), torch.tensor([0.0, 0, 0.5, 0, -0.5, -0.5, 0]))
    assert columns.keys() == {IN_SILENT_GROUP, RESPONSE_WEIGHT}
    assert columns[IN_SILENT_GROUP].tolist() == [key.startswith("a_") for key in keys]
    requested = [sizes.get(key[0]) for key in keys]
    assert torch.equal(columns[RESPONSE_WEIGHT], response_weights(requested))
    assert extension.end_step(left) == {}


def test_without_a_budget_every_row_counts_1():
    assert response_weights([None] * 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("unit", UNITS)
def test_under_a_budget_every_prompt_counts_as_with_equal_groups(unit):
    """Three prompts with 2, 4 and 12 rollouts, of 5 tokens each. The first two are silent: 2 / 3 of all prompts."""
    sizes = [size for size in (2, 4, 12) for _ in range(size)]
    silent = torch.tensor([size < 12 for size in sizes])
    weight = response_weights(sizes)
    assert weight.unique().tolist() == pytest.approx([6 / 12, 6 / 4, 6 / 2])
    assert scale(unit_counts(silent, torch.full((18,), 5), weight), unit) == pytest.approx(3)
    assert scale(unit_counts(torch.ones(18, dtype=torch.bool), torch.full((18,), 5), weight), unit) == 1


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_update_with_a_budget_is_as_large_as_with_equal_groups(alpha):
    """Real allocations and weights for 128 prompts; the update was 0.75 of that of equal groups."""
    random, updates = np.random.default_rng(0), {True: 0.0, False: 0.0}
    settings, dial = BudgetSettings(), {"alpha": alpha, "ddof": 1, "eps": 1e-6}
    for _ in range(30):
        rates = random.beta(0.3, 0.3, 128)
        correct, total = random.binomial(24, rates).astype(float), np.full(128, 24.0)
        for is_budget in updates:
            sizes = allocate_rollouts(correct, total, 8, settings) if is_budget else np.full(128, 8)
            labels = np.repeat(np.arange(128), sizes)
            rewards = torch.from_numpy((random.random(sizes.sum()) < rates[labels]).astype(float))
            stats, values = group_stats(rewards, labels), advantages(rewards, labels, dial)
            if is_budget:
                ratios = gain_ratios(correct, total, sizes, 8, prior=settings.prior, **dial)
                values *= group_size_weights(torch.from_numpy(sizes[labels]), stats) * torch.from_numpy(ratios[labels])
            weight = response_weights(sizes[labels].tolist() if is_budget else [None] * len(labels))
            counts = unit_counts(in_silent_group(values, labels), torch.ones(len(labels), dtype=torch.int64), weight)
            updates[is_budget] += float((values * rewards).sum()) * scale(counts, "responses")
    assert updates[True] / updates[False] == pytest.approx(1, abs=0.05)


def test_verls_denominator_needs_no_section():
    assert SilentGroupSettings.of({}) == SilentGroupSettings.of({"in_denominator": False})
    for section, message in (
        ({"in_denominator": True}, r"^in_denominator=true: .*Set silent_groups=counted"),
        ({"in_denominator": "no"}, r"^in_denominator=no: wrong type \(str\)\. Set it to true or false\.$"),
        ({"in_denominators": False}, r"^in_denominators: no such key\. Did you mean in_denominator\?"),
    ):
        with pytest.raises(SettingsError, match=message):
            SilentGroupSettings.of(section)


def test_numpy_labels_are_as_good_as_lists():
    labels = np.array(["x", "y", "x"], dtype=object)
    assert in_silent_group(torch.tensor([0.0, 1.0, 0.0]), labels).tolist() == [True, False, True]
