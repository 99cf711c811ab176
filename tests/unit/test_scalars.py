"""Scalars: what rounding does to shares."""

import math

import pytest

from verl_gsd.scalars import without_rounding


@pytest.mark.parametrize("tests", range(2, 41))
def test_full_marks_and_none_are_exact_however_a_verifier_sums_its_tests(tests):
    full = 0.0
    for _ in range(tests):
        full += 1 / tests
    assert without_rounding(full) == 1.0
    assert without_rounding(1 - full) == 0.0
    assert without_rounding(full - 1 / tests) == pytest.approx(1 - 1 / tests) and without_rounding(0.5) == 0.5


@pytest.mark.parametrize("value", [-1.0, 1.1, 1e3, 0.999, 0.001, -math.inf])
def test_other_values_stay(value):
    assert without_rounding(value) == value


def test_nan_stays():
    assert math.isnan(without_rounding(math.nan))
