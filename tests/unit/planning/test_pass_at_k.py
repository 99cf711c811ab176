"""pass@k against its definition: all subsets of k samples, and exact fractions."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.planning.pass_at_k import pass_at_k


def by_enumeration(n, c, k):
    """The share of k-subsets of n samples, the first c of them right, that contain a right one."""
    subsets = list(itertools.combinations(range(n), k))
    return sum(min(subset) < c for subset in subsets) / len(subsets)


def by_fractions(n, c, k):
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    n, c, k = case
    (estimates,) = pass_at_k(np.array([n]), np.array([c]), k)
    assert estimates == pytest.approx(by_enumeration(n, c, k), abs=1e-14)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_precise_for_many_samples(case):
    n, c, k = case
    (estimates,) = pass_at_k(np.array([n]), np.array([c]), k)
    assert 0 <= estimates <= 1
    assert estimates == pytest.approx(by_fractions(n, c, k), rel=1e-12, abs=0)


@pytest.mark.parametrize(("c", "k"), [(1, 1), (1, 5000), (3, 10_000), (5000, 100), (9999, 1), (10_000, 1), (0, 7)])
def test_ten_thousand_samples_neither_overflow_nor_underflow(c, k):
    (estimates,) = pass_at_k(np.array([10_000]), np.array([c]), k)
    assert estimates == pytest.approx(by_fractions(10_000, c, k), rel=1e-11, abs=0)


def test_questions_keep_their_order_and_may_have_different_numbers_of_samples():
    estimates = pass_at_k(np.array([4, 10, 4, 2]), np.array([2, 0, 2, 2]), 2)
    assert estimates.tolist() == pytest.approx([5 / 6, 0, 5 / 6, 1])
    assert pass_at_k(np.array([4, 8]), np.array([1, 4]), 1).tolist() == pytest.approx([0.25, 0.5])
    assert pass_at_k(np.array([], int), np.array([], int), 3).shape == (0,)


def test_pass_at_k_is_unbiased():
    """Its mean over binomial counts is 1 - (1 - p)^k. The plug-in estimate 1 - (1 - c/n)^k has another mean."""
    n, k, p = 6, 4, 0.3
    counts = np.arange(n + 1)
    chances = np.array([comb(n, c) * p**c * (1 - p) ** (n - c) for c in counts])
    truth = 1 - (1 - p) ** k
    assert chances @ pass_at_k(np.full(n + 1, n), counts, k) == pytest.approx(truth, abs=1e-12)
    assert abs(chances @ (1 - (1 - counts / n) ** k) - truth) > 0.01


@pytest.mark.parametrize(
    ("samples", "correct", "k", "message"),
    [
        ([8, 4], [1, 1], 5, r"row 1\b.*k=5\b.*samples=4"),
        ([8, 4], [1, 5], 2, r"row 1\b.*correct=5\b.*samples=4"),
        ([8, 4], [-1, 0], 2, r"row 0\b.*correct=-1"),
        ([8], [1], 0, "k=0"),
        ([8], [1, 2], 1, r"samples\b.*\(1,\).*correct\b.*\(2,\)"),
        ([8], [0.5], 1, r"correct\b.*\(1,\).*float64"),
        ([[8]], [[1]], 1, r"samples\b.*\(1, 1\)"),
    ],
)
def test_the_error_for_invalid_counts_names_the_row(samples, correct, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(np.array(samples), np.array(correct), k)
