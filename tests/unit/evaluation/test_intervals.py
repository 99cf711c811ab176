"""Intervals against their defining equations, and the summary of a run."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.evaluation.intervals import bootstrap_mean, mean_by_question, paired, wilson
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
def test_impossible_counts_are_rejected(correct, n):
    with pytest.raises(ValueError, match=f"correct={correct} of n={n}"):
        wilson(correct, n)


# Over questions

#: 97.5% quantiles of Student's t with 3 and 4 degrees of freedom, from a table.
T_3, T_4 = 3.182446, 2.776445


def test_the_mean_over_questions_has_students_interval():
    measured = mean_by_question(np.array([0.2, 0.4, 0.6, 0.8]))
    half = T_3 * math.sqrt(0.2 / 3) / 2  # squares of the deviations: .09 + .01 + .01 + .09
    assert (measured.value, measured.n) == (pytest.approx(0.5), 4)
    assert (measured.low, measured.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))
    assert str(measured) == f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"


def test_the_ends_stay_in_the_unit_interval():
    measured = mean_by_question(np.array([0.0, 0.99, 0.0]))
    assert (measured.low, measured.value, measured.high) == (0, pytest.approx(0.33), 1)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_equal_figures_get_wilsons_interval(share):
    measured = mean_by_question(np.full(20, share))
    trials = wilson(round(20 * share), 20)
    assert (measured.value, measured.low, measured.high, measured.n) == pytest.approx(
        (share, trials.low, trials.high, 20)
    )
    assert measured.high - measured.low > 0.1


@pytest.mark.parametrize(("questions", "rate"), [(100, 0.97), (100, 0.95), (500, 0.99), (30, 0.9), (198, 0.5)])
def test_one_sample_per_question_has_nominal_coverage(questions, rate):
    """Coverage, summed over all outcomes. With 100 questions at rate 0.97, Student's interval covers it in only 85%."""
    holds, chances = 0.0, scipy.stats.binom(questions, rate).pmf(np.arange(questions + 1))
    for solved, chance in enumerate(chances):
        measured = mean_by_question(np.repeat([1.0, 0.0], [solved, questions - solved]))
        holds += chance * (measured.low <= rate <= measured.high)
    assert 0.93 < holds < 0.99


def test_a_wrong_answer_moves_no_end_upwards():
    ends = [mean_by_question(np.repeat([1.0, 0.0], [solved, 30 - solved])) for solved in range(31)]
    assert all(a.low < b.low and a.high < b.high for a, b in itertools.pairwise(ends[1:-1]))
    assert ends[29].low < ends[30].low and ends[0].high < ends[1].high


def test_a_fractional_number_of_successes_solves_the_score_equation():
    measured = mean_by_question(np.full(7, 0.5))
    for end in (measured.low, measured.high):
        assert abs(end - 0.5) == pytest.approx(Z * math.sqrt(end * (1 - end) / 7))


def test_rounding_does_not_count_as_variance():
    figures = np.array([0.3, 0.1 + 0.2] * 5)
    assert mean_by_question(figures).high == pytest.approx(mean_by_question(np.full(10, 0.3)).high)


def test_one_question_has_the_whole_unit_interval():
    measured = mean_by_question(np.array([0.5]))
    assert (measured.value, measured.low, measured.high, measured.n) == (0.5, 0, 1, 1)


def test_samples_of_one_question_are_not_independent_trials():
    """With solve rates of 0 or 1, an interval over questions covers the mean, but one over all samples does not."""
    rng = np.random.default_rng(0)
    clustered, pooled = 0, 0
    for _ in range(500):
        figures = rng.integers(0, 2, 40).astype(float)
        measured, samples = mean_by_question(figures), wilson(int(8 * figures.sum()), 320)
        clustered += measured.low <= 0.5 <= measured.high
        pooled += samples.low <= 0.5 <= samples.high
    assert 0.92 < clustered / 500 < 0.98
    assert pooled / 500 < 0.7


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ([], r"figures\b.*\(0,\)"),
        ([[0.5]], r"figures\b.*\(1, 1\)"),
        ([0.5, math.nan], r"figures\[1\]=nan"),
        ([0.5, 1.0, 1.5], r"figures\[2\]=1.5"),
        ([-0.5], r"figures\[0\]=-0.5"),
    ],
)
def test_the_error_for_an_invalid_share_names_the_row(figures, message):
    with pytest.raises(ValueError, match=message):
        mean_by_question(np.array(figures))


# Paired


def by_enumeration(differences):
    """The p-value of the sign-flip test, by enumeration of all patterns."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) - 1e-12 for value in sums) / len(sums)


def test_three_wins_of_sizes_1_2_3():
    measured = paired(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert measured.p_value == 2 / 8, "of the 8 patterns +++ and --- alone have a sum as large"
    assert (measured.wins, measured.ties, measured.losses) == (3, 0, 0)
    assert measured.difference.value == 2 and measured.difference.n == 3
    half = 4.302653 / math.sqrt(3)  # t(2), and a standard deviation of 1
    assert measured.difference.low == pytest.approx(2 - half, abs=1e-6)
    assert measured.difference.high == pytest.approx(2 + half, abs=1e-6)


def test_the_difference_is_second_minus_first():
    measured = paired(np.array([0.5, 0.5, 0.5, 0.2]), np.array([0.4, 0.3, 0.5, 0.4]))
    assert (measured.wins, measured.ties, measured.losses) == (1, 1, 2)
    assert measured.difference.value == pytest.approx(-0.025)
    # -.1 -.2 +.2: sums of -.1, +.1 are as large as the one seen, and all 8 patterns have .1, .3 or .5
    assert measured.p_value == 1


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
@settings(deadline=None)
def test_p_is_the_share_of_sign_patterns_with_any_ties(tenths):
    first = np.linspace(0, 1, len(tenths))
    second = first + np.array(tenths) / 10
    measured = paired(first, second)
    moved = [tenth for tenth in tenths if tenth]
    assert measured.p_value == pytest.approx(by_enumeration(moved))
    assert measured.ties == len(tenths) - len(moved)


def test_five_seeds_cannot_be_significant():
    assert paired(np.zeros(5), np.full(5, 0.9)).p_value == 2 / 32


def test_sums_that_differ_only_by_rounding_are_ties():
    # .1 + .2 - .3 is not 0 in floats, nor is it the same in every order
    assert paired(np.zeros(3), np.array([0.1, 0.2, -0.3])).p_value == 1
    assert paired(np.array([0.3]), np.array([0.1 + 0.2])).ties == 1


def test_no_difference_at_all():
    measured = paired(np.array([0.3, 0.7]), np.array([0.3, 0.7]))
    assert (measured.p_value, measured.ties) == (1, 2)
    assert (measured.difference.low, measured.difference.high) == (0, 0)


def test_one_unit_has_no_interval():
    measured = paired(np.array([0.3]), np.array([0.7]))
    assert measured.p_value == 1
    assert (measured.difference.low, measured.difference.high) == (-math.inf, math.inf)


def test_random_patterns_agree_with_all_patterns():
    """17 differences are one more than `paired` enumerates."""
    rng = np.random.default_rng(3)
    first, signs = rng.random(17), 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    for second in (first + rng.normal(0.2, 0.5, 17), first + rng.choice([-0.1, 0.1, 0.2], 17)):
        sums = np.abs(signs @ (second - first))
        exact = float((sums >= abs((second - first).sum()) - 1e-12).mean())
        drawn = paired(first, second).p_value
        assert drawn != exact
        assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact / 100_000))


def test_random_patterns_include_the_observed_one_and_depend_on_the_seed():
    first, second = np.zeros(60), np.full(60, 0.5)
    assert paired(first, second).p_value == 1 / 100_001
    rng = np.random.default_rng(0)
    second = rng.normal(0.1, 1, 60)
    assert paired(first, second, seed=4) == paired(first, second, seed=4)
    assert paired(first, second, seed=4).p_value != paired(first, second, seed=5).p_value


def test_equal_methods_are_significant_in_one_of_twenty_cases():
    rng = np.random.default_rng(1)
    p = np.array([paired(rng.normal(size=10), rng.normal(size=10)).p_value for _ in range(400)])
    assert 0.02 < (p <= 0.05).mean() < 0.08
    assert 0.4 < (p <= 0.5).mean() < 0.6


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0, 2.0], [1.0], r"first\b.*\b2\b.*second\b.*\b1\b"),
        ([], [], r"first\b.*\(0,\)"),
        ([1.0, 2.0], [1.0, math.nan], r"second\[1\]=nan"),
        ([math.inf], [1.0], r"first\[0\]=inf"),
    ],
)
def test_units_that_cannot_be_paired_are_rejected(first, second, message):
    with pytest.raises(ValueError, match=message):
        paired(np.array(first), np.array(second))


# Bootstrap


def test_the_bootstrap_of_two_values_is_known():
    """Means of two values resampled from {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    measured = bootstrap_mean(np.array([0.0, 1.0]))
    assert (measured.value, measured.low, measured.high, measured.n) == (0.5, 0, 1, 2)
    measured = bootstrap_mean(np.array([0.0, 1.0]), confidence=0.4)
    assert (measured.low, measured.high) == (0.5, 0.5)


def test_the_bootstrap_of_many_values_is_normal_and_depends_on_the_seed():
    values = np.random.default_rng(0).random(400)
    measured, half = bootstrap_mean(values), Z * values.std() / 20
    assert measured.value == pytest.approx(values.mean())
    assert measured.high - measured.value == pytest.approx(half, rel=0.05)
    assert measured.value - measured.low == pytest.approx(half, rel=0.05)
    assert measured == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_five_seeds_are_too_few_for_the_bootstrap_as_its_docstring_says():
    rng = np.random.default_rng(2)
    measured = [bootstrap_mean(values, draws=500) for values in rng.normal(size=(2000, 5))]
    assert 0.82 < np.mean([one.low <= 0 <= one.high for one in measured]) < 0.86


def test_one_seed_has_no_bootstrap_interval():
    measured = bootstrap_mean(np.array([0.4]))
    assert (measured.value, measured.low, measured.high) == (0.4, -math.inf, math.inf)
    with pytest.raises(ValueError, match=r"values\b.*\(0,\)"):
        bootstrap_mean(np.array([]))


# The summary that quotes them


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


def test_summary_of_several_samples_per_prompt_has_their_mean():
    """384 samples of 48 prompts: 0.635 is between 30 and 31 of 48."""
    (held_out,) = summarise([(12, {"val-core/a/acc/mean@8": 244 / 384})], {"a": 48}).held_out
    (measured,) = held_out.accuracies
    assert str(measured).startswith("0.635 [")
    assert wilson(30, 48).low < measured.interval.low < wilson(31, 48).low


def test_summary_has_no_interval_for_a_value_outside_the_unit_interval():
    (held_out,) = summarise([(1, {"val-core/a/acc/mean@1": 1.5})], {"a": 4}).held_out
    assert [str(one) for one in held_out.accuracies] == ["1.500 at step 1"]


def test_summary_has_no_interval_without_the_number_of_prompts():
    metrics = [(0, {"val-core/a/acc/mean@1": 0.25}), (1, {"val-core/a/acc/mean@1": math.nan})]
    (held_out,) = summarise(metrics, {}).held_out
    assert [str(one) for one in held_out.accuracies] == ["0.250 at step 0"]


def test_summary_of_a_run_without_steps():
    summary = summarise([], {})
    assert (summary.held_out, summary.steps, summary.seconds_per_step) == ([], 0, None)
