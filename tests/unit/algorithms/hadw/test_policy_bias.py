"""The bias on a policy with exact solve rates: closed forms against sampling and enumeration, and what is printed."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from verl_gsd.algorithms.hadw import policy_bias_page as page
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.algorithms.hadw.policy_bias import CheckedMean, conditional_probabilities, measure_bias
from verl_gsd.charts import render_page

SIZE, ANCHOR, SCALE = 8, 0.42, 1.3
MEANS = ("before", "below", "right", "wrong")


@pytest.fixture(scope="module")
def rates():
    return np.concatenate([[0.0, 1.0, 1e-12], np.linspace(0.01, 0.99, 60)])


@pytest.fixture(scope="module")
def bias(rates):
    correct = np.random.default_rng(0).binomial(SIZE, rates[:, None], (len(rates), 400))
    return measure_bias(rates, correct, SIZE, anchor=ANCHOR, lambda_scale=SCALE)


def test_sampled_means_agree_with_their_closed_forms(bias):
    assert len(bias.bins) == 6 and sum(entry.groups for entry in bias.bins) == bias.mixed
    for entry, name in itertools.product(bias.bins, MEANS):
        mean = getattr(entry, name)
        assert abs(mean.value - mean.expected) <= 2.5 * mean.margin + 1e-12, (entry.low, name)
        assert mean.margin < 0.02
    assert abs(bias.all_groups.value) < 2.5 * bias.all_groups.margin
    assert [entry.theorem_1 for entry in bias.bins] == ["yes"] * 6


def test_closed_forms_are_expectations_over_all_patterns_of_rewards():
    """With the factor that training uses, for one prompt. Every pattern is one group, and its copies are its weight."""
    p, size = 0.25, 4
    expected = dict.fromkeys(("right", "wrong", "before", "below"), 0.0)
    mixed = 0.0
    for pattern in itertools.product([0.0, 1.0], repeat=size):
        rewards = torch.tensor(pattern, dtype=torch.float64)
        weight = p ** sum(pattern) * (1 - p) ** (size - sum(pattern))
        if 0 < sum(pattern) < size:
            mixed += weight
            a_hat = rewards - rewards.mean()
            weighted = a_hat * hadw_factor(a_hat, rewards.mean().expand(size), ANCHOR, lambda_scale=SCALE)
            expected["right"] += weight * float((weighted - (1 - p))[rewards == 1].mean())
            expected["wrong"] += weight * float((weighted + p)[rewards == 0].mean())
            expected["before"] += weight * (p - float(rewards.mean()))
            expected["below"] += weight * (float(rewards.mean()) > p)
    correct = np.array([[1, 2, 3, 0, 4]])
    (entry,) = measure_bias(np.array([p]), correct, size, anchor=ANCHOR, lambda_scale=SCALE).bins
    for name, value in expected.items():
        assert getattr(entry, name).expected == pytest.approx(value / mixed, abs=1e-12)
    assert (entry.prompts, entry.groups) == (1, 3)
    assert math.isnan(entry.before.margin), "three groups have no interval"
    assert entry.theorem_1 == "open"


def test_probabilities_of_counts_in_mixed_groups(rates):
    w = conditional_probabilities(rates, SIZE)
    assert np.isnan(w[:2]).all()
    assert w[2:].sum(axis=1) == pytest.approx(1)
    assert w[2] == pytest.approx([1, *[0] * (SIZE - 2)], abs=1e-11), (
        "a mixed group of a hopeless prompt has one right response"
    )


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_the_scale_of_a_kind_removes_its_bias_and_not_the_others(rates, kind):
    one = rates[(rates > 0.001) & (rates < 0.1)]
    correct = np.random.default_rng(1).binomial(SIZE, one[:, None], (len(one), 100))
    (before,) = measure_bias(one, correct, SIZE, anchor=ANCHOR, lambda_scale=SCALE).bins
    scale = getattr(before, f"scale_{kind}")
    (after,) = measure_bias(one, correct, SIZE, anchor=ANCHOR, lambda_scale=scale).bins
    other = "wrong" if kind == "right" else "right"
    assert getattr(after, kind).value == pytest.approx(0, abs=1e-12)
    assert abs(getattr(after, other).value) > 0.03
    assert getattr(after, f"scale_{kind}") == pytest.approx(scale)


def test_without_a_mixed_group_there_is_no_bias():
    with pytest.raises(ValueError, match="none of the 4 groups is mixed"):
        measure_bias(np.array([0.5, 0.9]), np.array([[0, 8], [8, 8]]), 8, anchor=0.5, lambda_scale=1.3)


def test_the_page_and_the_table_have_every_interval(bias):
    study = page.BiasStudy("folder<b>", "hard", False, 63, 0.5, 0.5, 0.001, bias)
    html = render_page(page.TITLE, page.sections(study))
    assert "folder&lt;b&gt;" in html and "0.9 to 1" in html
    for header, rows in (
        (page.BASELINE_HEADER, page.baseline_rows(bias)),
        (page.CHANCE_HEADER, page.chance_rows(bias)),
        (page.FACTOR_HEADER, page.factor_rows(bias)),
    ):
        assert len(rows) == 6 and all(len(row) == len(header) for row in rows)
    assert "mean solve rate" in page.factor_setting(study)
    assert "value of the preset" in page.factor_setting(dataclasses.replace(study, is_fixed=True))
    few = [dataclasses.replace(entry, before=CheckedMean(0.1, math.nan, 0.1)) for entry in bias.bins]
    assert page.baseline_rows(dataclasses.replace(bias, bins=few))[0][4] == "+0.1000"
