"""Intervals against their defining equation, and the summary that quotes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.evaluation.intervals import wilson
from verl_gsd.evaluation.summary import summarise

Z = 1.959963984540054


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(counts):
    correct, n = counts
    interval = wilson(correct, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            assert abs(interval.value - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


def test_wilson_known_value():
    interval = wilson(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(correct, n):
    with pytest.raises(ValueError, match=f"correct={correct} of n={n}"):
        wilson(correct, n)


def test_summary_takes_first_and_last_validation_and_the_median_step():
    metrics = [
        (0, {"val-core/a/acc/mean@1": 0.25, "val-core/b/c/acc/mean@4": 0.5}),
        (1, {"timing_s/step": 30.0, "critic/score/mean": 0.3}),
        (2, {"timing_s/step": 2.0, "val-core/a/acc/mean@1": 0.5}),
        (3, {"timing_s/step": 3.0, "val-core/a/acc/mean@1": 0.75, "val-core/b/c/acc/mean@4": 1.0}),
    ]
    summary = summarise(metrics, {"a": 4, "b/c": 2})
    assert (summary.steps, summary.seconds_per_step) == (3, 3.0)
    a, b = summary.held_out
    assert [(one.step, one.value) for one in a.accuracies] == [(0, 0.25), (3, 0.75)]
    assert a.accuracies[0].interval == wilson(1, 4) and str(a.accuracies[1]) == f"{wilson(3, 4)} at step 3"
    assert [(one.step, one.value) for one in b.accuracies] == [(0, 0.5), (3, 1.0)]


def test_summary_claims_no_interval_where_the_trials_are_unknown_and_no_change_after_one_validation():
    metrics = [(0, {"val-core/a/acc/mean@1": 0.25}), (1, {"val-core/a/acc/mean@1": math.nan})]
    (held_out,) = summarise(metrics, {}).held_out
    assert [str(one) for one in held_out.accuracies] == ["0.250 at step 0"]


def test_summary_of_a_run_that_made_no_step():
    summary = summarise([], {})
    assert (summary.held_out, summary.steps, summary.seconds_per_step) == ([], 0, None)
