"""The law of solve rates that is fitted to groups."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, binom

from verl_gsd.planning.law import LEAST_GROUPS, likely_law


def groups(law, count, size=8, seed=0):
    generator = np.random.default_rng(seed)
    return generator.binomial(size, generator.beta(*law, count)), np.full(count, size)


def silent_after(law, correct, size=8):
    """E[(1-p)^G] of prompts with ``correct`` of ``size`` right responses, by integration over the law."""

    def weight(p):
        return beta.pdf(p, *law) * binom.pmf(correct, size, p)

    return quad(lambda p: weight(p) * (1 - p) ** size, 0, 1)[0] / quad(weight, 0, 1)[0]


@pytest.mark.parametrize("law", [(1, 9), (2, 18), (0.5, 4.5), (1, 1), (0.3, 0.3), (4, 1.5)])
def test_the_fitted_law_predicts_silent_groups_as_the_true_one(law):
    correct, total = groups(law, 8000)
    fitted = likely_law(correct, total)
    for one in (1, 2, 4):
        assert silent_after(fitted, one) == pytest.approx(silent_after(law, one), abs=0.05), fitted


def test_groups_of_which_the_whole_failed_do_not_change_the_law():
    correct, total = groups((2, 2), 4000)
    failed = np.random.default_rng(1).random(4000) < 0.3
    mixed = (correct > 0) & (correct < total) & ~failed
    assert likely_law(np.where(failed, 0, correct), total) == pytest.approx(likely_law(correct[mixed], total[mixed]))


def test_few_groups_graded_verdicts_and_groups_of_two_give_no_law():
    correct, total = groups((2, 2), LEAST_GROUPS)
    assert likely_law(correct[:50], total[:50]) is None
    assert likely_law(correct + 0.5, total + 1) is None
    assert likely_law(*groups((2, 2), 4000, size=2)) is None
    assert likely_law([], []) is None
