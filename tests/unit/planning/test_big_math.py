"""The planner reproduces the paper's figures from the counts of Big-Math."""

import numpy as np
import pytest
from big_math import COUNTS

from verl_gsd import planning

SOLVED = np.arange(65)


def test_big_math_shares_of_prompts_never_and_always_solved():
    assert COUNTS.sum() == 215_608
    assert np.round(100 * COUNTS[[0, -1]] / COUNTS.sum(), 1).tolist() == [4.0, 7.2]


def test_big_math_silent_rates():
    share = COUNTS / COUNTS.sum()
    group_sizes = (4, 8, 16, 32, 64)
    plug_in = [round(100 * share @ planning.silent_rate(SOLVED / 64, size), 2) for size in group_sizes]
    unbiased = [round(100 * share @ planning.silent_rate_from_counts(SOLVED, 64, size), 2) for size in group_sizes]
    assert plug_in == [59.27, 44.28, 32.24, 23.01, 16.53]
    # 58.585 to within rounding: the page has 58.59 where these counts give 58.585.
    assert unbiased == pytest.approx([58.59, 43.07, 30.19, 19.64, 11.18], abs=0.006)


def test_big_math_gradient_mass():
    p = SOLVED / 64
    for alpha, at_the_ends, in_the_middle in ((0, 13.9, 22.8), (1, 24.7, 17.5)):
        mass = COUNTS * (p * (1 - p)) ** ((2 - alpha) / 2)
        mass = 100 * mass / mass.sum()
        assert round(mass[(p < 0.1) | (p > 0.9)].sum(), 1) == at_the_ends
        assert round(mass[(p >= 0.4) & (p <= 0.6)].sum(), 1) == in_the_middle


def test_big_math_allocation():
    interior = np.repeat(SOLVED[1:-1] / 64, COUNTS[1:-1])
    for objective, mean_std, mixed in (
        ("expected_std", 0.2627, 0.644),
        ("mixed", 0.2607, 0.652),
        ("fidelity", 0.2078, 0.502),  # the page's "equal fidelity", not raised one at a time: .2074 and .501
    ):
        group_sizes = planning.allocate(interior, 8 * len(interior), objective=objective)
        assert planning.expected_std(interior, group_sizes).mean() == pytest.approx(mean_std, abs=5e-5)
        assert planning.mixed_rate(interior, group_sizes).mean() == pytest.approx(mixed, abs=5e-4)
    assert planning.expected_std(interior, 8).mean() == pytest.approx(0.2594, abs=5e-5)
    assert planning.mixed_rate(interior, 8).mean() == pytest.approx(0.627, abs=5e-4)


def test_big_math_rollouts_in_proportion_to_difficulty_are_worse_than_equal_groups():
    """8 rollouts per prompt on average, in proportion to 1/(p(1-p)); fractions are rounded at random."""
    p, share = SOLVED[1:-1] / 64, COUNTS[1:-1] / COUNTS[1:-1].sum()
    wanted = 8 / (p * (1 - p)) / (share @ (1 / (p * (1 - p))))
    lower = np.floor(wanted)
    for value, figure in ((planning.expected_std, 0.1691), (planning.mixed_rate, 0.413)):
        mean = (lower + 1 - wanted) * value(p, lower) + (wanted - lower) * value(p, lower + 1)
        assert share @ mean == pytest.approx(figure, abs=5e-4)
        assert share @ mean < share @ value(p, 8)


def test_big_math_dynamic_sampling_factor():
    silent = COUNTS / COUNTS.sum() @ planning.silent_rate(SOLVED / 64, 8)
    assert 1 / (1 - silent) == pytest.approx(1.80, abs=0.006)


def true_change(p, sizes, group_size=8):
    """The relative change of the mean gain from equal groups to ``sizes`` if the true rates are ``p``."""
    return planning.expected_std(p, sizes).mean() / planning.expected_std(p, group_size).mean() - 1


def test_big_math_few_responses_lose_signal_as_rates_but_not_as_counts():
    p = np.repeat(SOLVED / 64, COUNTS)
    rng = np.random.default_rng(0)
    for samples, as_rates, as_counts in ((4, -0.149, 0.0), (8, -0.053, 0.0), (16, -0.001, 0.009), (64, 0.025, 0.025)):
        correct = rng.binomial(samples, p)
        sizes = planning.allocate(correct / samples, 8 * len(p))
        assert true_change(p, sizes) == pytest.approx(as_rates, abs=1e-3)
        sizes = planning.allocate_from_counts(correct, np.full(len(p), samples), 8 * len(p))
        assert true_change(p, sizes) == pytest.approx(as_counts, abs=1e-3)


def test_few_responses_used_as_counts_lose_no_signal():
    """The same with synthetic rates, many of them near 0 and 1."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 0.5, 4000)
    few, many = rng.binomial(4, p), rng.binomial(256, p)
    assert true_change(p, planning.allocate(few / 4, 8 * len(p))) < -0.05
    assert true_change(p, planning.allocate_from_counts(few, np.full(len(p), 4), 8 * len(p))) > -0.005
    for sizes in (
        planning.allocate(many / 256, 8 * len(p)),
        planning.allocate_from_counts(many, np.full(len(p), 256), 8 * len(p)),
    ):
        assert 0.005 < true_change(p, sizes) <= true_change(p, planning.allocate(p, 8 * len(p)))
