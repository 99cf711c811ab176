"""The law of solve rates that is fitted to groups."""

import numpy as np
import pytest
from scipy.stats import betabinom

from verl_gsd.planning.law import likely_law


def groups(law, count, size=8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.binomial(size, generator.beta(*law, count)), np.full(count, size)


@pytest.mark.parametrize("law", [(1, 9), (1, 30), (0.05, 0.05), (0.03, 0.06), (2, 0.15), (1, 1), (0.3, 0.3), (4, 1.5)])
def test_groups_of_the_fitted_law_are_those_of_the_true_one(law):
    fitted = likely_law(*groups(law, 4000))
    for right in (0, 1, 4, 8):
        assert betabinom.pmf(right, 8, *fitted) == pytest.approx(betabinom.pmf(right, 8, *law), abs=0.04), fitted


def test_a_mixture_of_solved_and_unsolved_prompts_has_a_law_with_both_ends():
    easy, hard = groups((30, 1), 1000, seed=1), groups((1, 30), 1000, seed=2)
    a, b = likely_law(*(np.concatenate(parts) for parts in zip(easy, hard, strict=True)))
    assert a < 0.3 and b < 0.3


def test_groups_of_several_sizes_count_with_their_own():
    small, large = groups((1, 9), 3000, size=4, seed=3), groups((1, 9), 3000, size=16, seed=4)
    a, b = likely_law(*(np.concatenate(parts) for parts in zip(small, large, strict=True)))
    assert a / (a + b) == pytest.approx(0.1, abs=0.01) and 6 < b < 13


def test_graded_verdicts_and_no_groups_give_no_law():
    assert likely_law([0.5, 1.5], [2, 2]) is None and likely_law([], []) is None
