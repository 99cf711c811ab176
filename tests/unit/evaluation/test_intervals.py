"""Intervals against their defining equation, and the summary that quotes them."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.evaluation.intervals import (
    difference_by_question,
    difference_over_seeds,
    equivalence_test,
    mean_accuracy_over_seeds,
    mean_by_question,
    paired_test,
    proportion,
    student_mean,
)
from verl_gsd.evaluation.summary import summarise, why_without_intervals
from verl_gsd.prompts import independent_prompts


def by_listing(values):
    """The interval of ``mean_by_question`` from a list in which each value and each pseudo-question is there twice."""
    doubled = [*values, *values, 1, 1, 1, 0, 0, 0]
    mean, spread = np.mean(doubled), np.std(doubled)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * spread / math.sqrt(len(values) + 3)
    return max(0, mean - half), min(1, mean + half)


@given(st.integers(2, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_of_a_share_is_that_of_zeros_and_ones(counts):
    correct, n = counts
    found = proportion(correct, n)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.value == correct / n
    ends = by_listing([1] * correct + [0] * (n - correct))
    assert (found.low, found.high) == pytest.approx(ends, abs=1e-9)
    assert found == mean_by_question(np.repeat([1.0, 0.0], [correct, n - correct]))


def test_interval_of_8_of_10_by_hand():
    found = proportion(8, 10)
    half = 2.262157 * math.sqrt((9.5 / 13) * (3.5 / 13) / 13)  # t of 9 degrees of freedom, from a table
    assert found.low == pytest.approx(9.5 / 13 - half, abs=1e-6) and found.high == 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_rejected(correct, n):
    with pytest.raises(ValueError, match=f"correct={correct} of n={n}"):
        proportion(correct, n)


# Over questions

#: Of Student's t with 3 degrees of freedom, from a table.
T_3 = 3.182446


def test_mean_over_questions_has_students_interval_with_three_pseudo_questions():
    """Half of the three are solved: seven values with mean 1/2 and squares .04 + .16 + .36 + .64 + 1.5."""
    found = mean_by_question(np.array([0.2, 0.4, 0.6, 0.8]))
    half = T_3 * math.sqrt((2.7 / 7 - 0.25) / 7)
    assert (found.value, found.n) == (pytest.approx(0.5), 4)
    assert (found.low, found.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))
    assert str(found) == f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"


def test_interval_is_clipped_to_the_unit_interval():
    found = mean_by_question(np.array([0.0, 0.99, 0.0]))
    assert (found.low, found.value, found.high) == (0, pytest.approx(0.33), 1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.randoms())
def test_interval_contains_the_mean_and_is_mirrored_with_the_values(values, random):
    found = mean_by_question(np.array(values))
    assert found.low <= found.value <= found.high
    assert (found.low, found.high) == pytest.approx(by_listing(values), abs=1e-9)
    random.shuffle(values)
    mirrored = mean_by_question(1 - np.array(values))
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((found.low, found.high), abs=1e-9)


def test_one_solved_response_does_not_shrink_the_interval():
    """One of 32 responses to one of 30 questions: Student's interval alone ends at 0.003."""
    none, one = np.zeros(30), np.zeros(30)
    one[0] = 1 / 32
    assert mean_by_question(one).high > mean_by_question(none).high > 0.1
    assert mean_by_question(1 - one).low < mean_by_question(1 - none).low < 0.9


@pytest.mark.parametrize("questions", [15, 16, 25, 30, 100, 198, 500, 1000])
def test_interval_for_one_response_per_question_covers_every_accuracy(questions):
    """The sum is over all outcomes. Wilson's interval covers an accuracy of 0.011 of 15 questions in 85%."""
    solved = np.arange(questions + 1)
    found = [proportion(int(count), questions) for count in solved]
    ends = np.array([(estimate.low, estimate.high) for estimate in found])
    rates = np.unique(np.concatenate([np.linspace(0.001, 0.5, 500), ends.ravel() - 1e-9, ends.ravel() + 1e-9]))
    rates = rates[(rates >= 0.001) & (rates <= 0.5)][:, None]  # higher ones are mirrored
    holds = (scipy.stats.binom.pmf(solved, questions, rates) * ((ends[:, 0] <= rates) & (rates <= ends[:, 1]))).sum(
        axis=1
    )
    assert holds.min() >= 0.93, rates[holds.argmin()]
    assert holds.mean() < 0.98


def test_wrong_answers_never_raise_an_end():
    ends = [mean_by_question(np.repeat([1.0, 0.0], [solved, 30 - solved])) for solved in range(31)]
    for fewer, more in itertools.pairwise(ends[1:-1]):
        assert fewer.low < more.low or more.low == 0, "cut at 0"
        assert fewer.high < more.high or fewer.high == 1, "cut at 1"
    assert sum(end.low == 0 for end in ends) == sum(end.high == 1 for end in ends) == 3
    assert ends[29].low < ends[30].low and ends[0].high < ends[1].high


def test_one_question_gives_the_unit_interval():
    found = mean_by_question(np.array([0.5]))
    assert (found.value, found.low, found.high, found.n) == (0.5, 0, 1, 1)


def test_responses_to_one_question_are_not_independent_trials():
    """With 8 responses to questions of rate 0 or 1, only the interval over questions covers the mean."""
    rng = np.random.default_rng(0)
    clustered, pooled = 0, 0
    for _ in range(500):
        figures = rng.integers(0, 2, 40).astype(float)
        found, samples = mean_by_question(figures), proportion(int(8 * figures.sum()), 320)
        clustered += found.low <= 0.5 <= found.high
        pooled += samples.low <= 0.5 <= samples.high
    assert 0.92 < clustered / 500 < 0.98
    assert pooled / 500 < 0.7


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([], r"values\b.*\(0,\)"),
        ([[0.5]], r"values\b.*\(1, 1\)"),
        ([0.5, math.nan], r"values\[1\]=nan"),
        ([0.5, 1.0, 1.5], r"values\[2\]=1.5"),
        ([-0.5], r"values\[0\]=-0.5"),
    ],
)
def test_values_outside_the_unit_interval_are_rejected_by_row(figures, said):
    with pytest.raises(ValueError, match=said):
        mean_by_question(np.array(figures))


# Paired


def by_enumeration(differences):
    """The p-value of the sign-flip test, pattern by pattern."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) - 1e-12 for value in sums) / len(sums)


def test_three_wins_of_sizes_1_2_3():
    found = paired_test(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert found.p_value == 2 / 8, "of the 8 patterns +++ and --- alone have a sum as large"
    assert (found.wins, found.ties, found.losses) == (3, 0, 0)
    assert found.difference.value == 2 and found.difference.n == 3
    half = 4.302653 / math.sqrt(3)  # t(2), and a standard deviation of 1
    assert found.difference.low == pytest.approx(2 - half, abs=1e-6)
    assert found.difference.high == pytest.approx(2 + half, abs=1e-6)


def test_difference_is_second_minus_first():
    found = paired_test(np.array([0.5, 0.5, 0.5, 0.2]), np.array([0.4, 0.3, 0.5, 0.4]))
    assert (found.wins, found.ties, found.losses) == (1, 1, 2)
    assert found.difference.value == pytest.approx(-0.025)
    # -.1 -.2 +.2: sums of -.1, +.1 are as large as the one seen, and all 8 patterns have .1, .3 or .5
    assert found.p_value == 1


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
@settings(deadline=None)
def test_p_is_the_share_of_patterns_with_any_ties(tenths):
    first = np.linspace(0, 1, len(tenths))
    second = first + np.array(tenths) / 10
    found = paired_test(first, second)
    moved = [tenth for tenth in tenths if tenth]
    assert found.p_value == pytest.approx(by_enumeration(moved))
    assert found.ties == len(tenths) - len(moved)


def test_five_seeds_cannot_be_significant():
    assert paired_test(np.zeros(5), np.full(5, 0.9)).p_value == 2 / 32


def test_sums_equal_up_to_rounding_are_ties():
    # .1 + .2 - .3 is not 0 in floats, nor is it the same in every order
    assert paired_test(np.zeros(3), np.array([0.1, 0.2, -0.3])).p_value == 1
    assert paired_test(np.array([0.3]), np.array([0.1 + 0.2])).ties == 1


def test_no_difference_at_all():
    found = paired_test(np.array([0.3, 0.7]), np.array([0.3, 0.7]))
    assert (found.p_value, found.ties) == (1, 2)
    assert (found.difference.low, found.difference.high) == (0, 0)


def test_one_unit_has_no_interval():
    found = paired_test(np.array([0.3]), np.array([0.7]))
    assert found.p_value == 1
    assert (found.difference.low, found.difference.high) == (-math.inf, math.inf)


def test_sampled_patterns_agree_with_all_patterns():
    """There are 17 differences, one more than ``paired_test`` enumerates."""
    rng = np.random.default_rng(3)
    first, signs = rng.random(17), 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    for second in (first + rng.normal(0.2, 0.5, 17), first + rng.choice([-0.1, 0.1, 0.2], 17)):
        sums = np.abs(signs @ (second - first))
        exact = float((sums >= abs((second - first).sum()) - 1e-12).mean())
        drawn = paired_test(first, second).p_value
        assert drawn != exact
        assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact / 100_000))


def test_sampled_patterns_count_the_observed_one_and_repeat_with_their_seed():
    first, second = np.zeros(60), np.full(60, 0.5)
    assert paired_test(first, second).p_value == 1 / 100_001
    rng = np.random.default_rng(0)
    second = rng.normal(0.1, 1, 60)
    assert paired_test(first, second, seed=4) == paired_test(first, second, seed=4)
    assert paired_test(first, second, seed=4).p_value != paired_test(first, second, seed=5).p_value


def test_one_in_twenty_equal_methods_is_significant():
    rng = np.random.default_rng(1)
    p = np.array([paired_test(rng.normal(size=10), rng.normal(size=10)).p_value for _ in range(400)])
    assert 0.02 < (p <= 0.05).mean() < 0.08
    assert 0.4 < (p <= 0.5).mean() < 0.6


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1.0, 2.0], [1.0], r"first\b.*\b2\b.*second\b.*\b1\b"),
        ([], [], r"first\b.*\(0,\)"),
        ([1.0, 2.0], [1.0, math.nan], r"second\[1\]=nan"),
        ([math.inf], [1.0], r"first\[0\]=inf"),
    ],
)
def test_units_that_do_not_pair_are_rejected(first, second, said):
    with pytest.raises(ValueError, match=said):
        paired_test(np.array(first), np.array(second))


# Differences over questions


def test_difference_over_questions_has_students_interval_with_two_pseudo_questions():
    """Six differences 0.2, 0.4, 0, -0.2, 1 and -1, of which the last two are pseudo-questions."""
    found = difference_by_question(np.array([0.2, 0.2, 0.5, 0.7]), np.array([0.4, 0.6, 0.5, 0.5]))
    centre, half = 0.4 / 6, T_3 * math.sqrt((2.24 / 6 - (0.4 / 6) ** 2) / 6)
    assert (found.value, found.n) == (pytest.approx(0.1), 4)
    assert (found.low, found.high) == (pytest.approx(centre - half, abs=1e-6), pytest.approx(centre + half, abs=1e-6))


@pytest.mark.parametrize("questions", [15, 30, 100])
def test_interval_of_a_difference_covers_all_rates_with_one_response_per_question(questions):
    """The sum is over all outcomes: how many questions only the second model solves, and how many only the first."""
    gained, lost = (counts.ravel() for counts in np.meshgrid(*[np.arange(questions + 1)] * 2))
    gained, lost = (counts[gained + lost <= questions] for counts in (gained, lost))
    estimates = [
        difference_by_question(np.repeat([0.0, 1, 0], parts), np.repeat([1.0, 0, 0], parts))
        for parts in zip(gained, lost, questions - gained - lost, strict=True)
    ]
    low, high = np.array([(estimate.low, estimate.high) for estimate in estimates]).T
    grid = np.geomspace(0.0005, 0.7, 30)
    coverages = []
    for gain, loss in itertools.product(grid, grid):
        if gain + loss < 1 and gain >= loss:  # the others are mirrored
            outcomes = np.stack([gained, lost, questions - gained - lost], axis=1)
            chances = scipy.stats.multinomial.pmf(outcomes, questions, [gain, loss, 1 - gain - loss])
            coverages.append(chances[(low <= gain - loss + 1e-12) & (gain - loss - 1e-12 <= high)].sum())
    assert min(coverages) >= 0.93


@pytest.mark.parametrize(
    ("questions", "responses", "first", "second", "is_skewed"),
    [
        (30, 1, 0.02, 0.06, False),
        (100, 1, 0.005, 0.02, False),
        (30, 32, 0.02, 0.04, True),
        (30, 8, 0.02, 0.05, True),
        (15, 32, 0.003, 0.03, True),
        (100, 1, 0.3, 0.7, False),
        (30, 8, 0.3, 0.7, True),
        (100, 4, 0.7, 0.5, True),
    ],
)
def test_interval_of_a_difference_covers_the_true_one(questions, responses, first, second, is_skewed):
    """Two models with independent solve rates, all equal or from a Beta distribution with a + b = 0.5.

    Student's interval alone covers as little as 56% (15 questions with 32 responses).
    """
    rng, draws = np.random.default_rng(0), 1000

    def shares(mean):
        shape = (draws, questions)
        rates = rng.beta(mean / 2, (1 - mean) / 2, shape) if is_skewed else np.full(shape, mean)
        return rng.binomial(responses, rates) / responses

    found = [difference_by_question(*pair) for pair in zip(shares(first), shares(second), strict=True)]
    assert np.mean([estimate.low <= second - first <= estimate.high for estimate in found]) >= 0.93
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=40))
def test_interval_of_a_difference_contains_it_and_is_mirrored_with_the_models(pairs):
    first, second = np.array(pairs).T
    found, mirrored = difference_by_question(first, second), difference_by_question(second, first)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high), abs=1e-9)


def test_many_questions_have_students_interval():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 2, (2, 20_000)).astype(float)
    found, student = difference_by_question(first, second), student_mean(second - first)
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=1e-4)


def test_equal_models_have_an_interval_and_one_question_has_all_differences():
    found = difference_by_question(np.zeros(30), np.zeros(30))
    assert found.value == 0 and found.low == -found.high < -0.05
    one = difference_by_question(np.array([0.25]), np.array([0.75]))
    assert (one.value, one.low, one.high, one.n) == (0.5, -1, 1, 1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0, 0.0], [1.0], r"first\b.*\b2\b.*second\b.*\b1\b"),
        ([], [], r"first\b.*\(0,\)"),
        ([1.0, 0.0], [1.0, 1.5], r"second\[1\]=1.5 is outside"),
        ([-0.5], [0.0], r"first\[0\]=-0.5 is outside"),
    ],
)
def test_values_that_are_no_shares_have_no_difference_over_questions(first, second, message):
    with pytest.raises(ValueError, match=message):
        difference_by_question(np.array(first), np.array(second))


# Equivalence

_SAMPLES = st.lists(st.integers(0, 1000), min_size=2, max_size=8, unique=True).map(lambda of: np.array(of) / 1000)


def test_two_against_two_by_hand():
    """Both variances are 0.02, so se^2 = 0.02 with 2 degrees of freedom, for which P(T > t) has a closed form."""
    found = equivalence_test(np.array([0.0, 0.2]), np.array([0.1, 0.3]), margin=0.5)
    t_high = 0.4 / math.sqrt(0.02)
    assert found.p_value == pytest.approx(0.5 - t_high / (2 * math.sqrt(2 + t_high**2)))
    half = 2.919986 * math.sqrt(0.02)  # Student's t from a table
    assert found.difference.value == pytest.approx(0.1) and found.difference.n == 4
    assert (found.difference.low, found.difference.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)


def test_the_published_example_of_unequal_variances():
    """Lakens, Social Psychological and Personality Science 8 (2017): t(181) = -2.69, p = 0.004.

    The samples have means 5.25 and 5.22, standard deviations 0.95 and 0.83, and 95 and 89 units. The margin is 0.43 of
    the mean standard deviation.
    """

    def sample(mean, std, count):
        values = np.linspace(-1, 1, count)
        return mean + std * (values - values.mean()) / values.std(ddof=1)

    margin = 0.43 * math.sqrt((0.95**2 + 0.83**2) / 2)
    found = equivalence_test(sample(5.22, 0.83, 89), sample(5.25, 0.95, 95), margin)
    assert found.p_value == pytest.approx(0.004, abs=0.0005)
    assert found.p_value == pytest.approx(scipy.stats.t.sf(2.69, 181), rel=0.02)


@given(_SAMPLES, _SAMPLES, st.floats(0.001, 1))
def test_equivalent_samples_are_those_with_an_interval_within_the_margin(first, second, margin):
    found = equivalence_test(first, second, margin)
    largest = max(-found.difference.low, found.difference.high)
    if abs(largest - margin) > 1e-9:
        assert (found.p_value < 0.05) == (largest < margin)
    assert found.difference.low < found.difference.value < found.difference.high


@given(_SAMPLES, _SAMPLES, st.floats(0.001, 1))
def test_the_order_of_the_samples_and_their_level_do_not_matter(first, second, margin):
    found, exchanged = equivalence_test(first, second, margin), equivalence_test(second, first, margin)
    raised = equivalence_test(first + 0.25, second + 0.25, margin)
    assert found.p_value == pytest.approx(exchanged.p_value) == pytest.approx(raised.p_value, rel=1e-6)
    assert found.difference.value == pytest.approx(-exchanged.difference.value)
    assert found.difference.low == pytest.approx(-exchanged.difference.high)


@given(_SAMPLES, _SAMPLES, st.floats(0.001, 0.5))
def test_a_wider_margin_has_a_smaller_p(first, second, margin):
    assert equivalence_test(first, second, 2 * margin).p_value <= equivalence_test(first, second, margin).p_value


def test_samples_that_differ_by_the_margin_are_equivalent_in_one_case_of_twenty():
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        first, second = rng.normal(0.5, 0.01, 8), rng.normal(0.53, 0.02, 5)
        found += equivalence_test(first, second, margin=0.03).p_value < 0.05
    assert 8 <= found <= 34, "20 of 400 on average, with a standard deviation of 4.4"


@pytest.mark.parametrize(
    ("first", "second", "margin", "message"),
    [
        ([0.5], [0.4, 0.5], 0.03, "first has 1 unit"),
        ([0.4, 0.5], [0.5], 0.03, "second has 1 unit"),
        ([0.4, 0.5], [0.5, math.nan], 0.03, r"second\[1\]=nan"),
        ([0.4, 0.5], [0.5, 0.6], 0.0, "margin=0.0"),
        ([0.4, 0.5], [0.5, 0.6], math.nan, "margin=nan"),
        ([0.4, 0.4], [0.5, 0.5], 0.03, "all values"),
    ],
)
def test_samples_without_a_variance_are_rejected(first, second, margin, message):
    with pytest.raises(ValueError, match=message):
        equivalence_test(np.array(first), np.array(second), margin)


# Means over seeds


@pytest.mark.parametrize("seeds", [2, 3, 5, 32])
def test_the_mean_over_seeds_is_covered_in_95_of_100_cases(seeds):
    rng = np.random.default_rng(2)
    found = [student_mean(values) for values in rng.normal(size=(4000, seeds))]
    assert np.mean([one.low <= 0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.012)


def test_one_seed_has_no_interval():
    found = student_mean(np.array([0.4]))
    assert (found.value, found.low, found.high) == (0.4, -math.inf, math.inf)
    with pytest.raises(ValueError, match=r"values\b.*\(0,\)"):
        student_mean(np.array([]))


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
    assert a.accuracies[0].interval == proportion(1, 4) and str(a.accuracies[1]) == f"{proportion(3, 4)} at step 3"
    assert [(one.step, one.value) for one in b.accuracies] == [(0, 0.5), (3, 1.0)]


def test_summary_of_several_samples_a_prompt_states_their_mean():
    """384 samples of 48 prompts: 0.635 is between 30 and 31 of 48."""
    (held_out,) = summarise([(12, {"val-core/a/acc/mean@8": 244 / 384})], {"a": 48}).held_out
    (found,) = held_out.accuracies
    assert str(found).startswith("0.635 [")
    assert proportion(30, 48).low < found.interval.low < proportion(31, 48).low
    assert found.responses == 384


@pytest.mark.parametrize("value", [0.2499, 0.2501, 15 / 960, 17 / 960])
def test_accuracy_is_never_rounded_to_whole_prompts(value):
    (held_out,) = summarise([(0, {"val-core/aime24/acc/mean@32": value})], {"aime24": 30}).held_out
    assert held_out.accuracies[0].interval.value == pytest.approx(value, abs=1e-12)
    assert str(held_out.accuracies[0]).startswith(f"{value:.3f} [")


def test_the_number_of_prompts_in_the_metrics_gives_the_interval():
    """With data.filter_overlong_prompts, the files have more rows than a validation has prompts."""
    metrics = [(step, {"val-core/a/acc/mean@1": step / 4, "val/prompts/a": 4.0 + step}) for step in (0, 1, 2)]
    for known in ({}, {"a": 1000}):
        (held_out,) = summarise(metrics, known).held_out
        assert [one.interval.n for one in held_out.accuracies] == [4, 6] and held_out.prompts == 6
    assert summarise([(0, {"val-core/a/acc/mean@1": 0.5})], {"a": 8}).held_out[0].prompts == 8


def test_repeated_prompts_count_once_in_the_interval_and_each_time_as_responses():
    """30 problems in 32 rows each: the rows of a problem are samples of it."""
    data = {"val-core/a/acc/mean@2": 0.5, "val/prompts/a": 960.0, "val/independent/a": 30.0}
    (held_out,) = summarise([(0, data)], {}).held_out
    (found,) = held_out.accuracies
    assert found.interval == proportion(15, 30) and found.responses == 1920
    assert held_out.prompts == 30 and held_out.rows == 960
    (once,) = summarise([(0, {"val-core/a/acc/mean@2": 0.5, "val/prompts/a": 30.0})], {}).held_out
    assert once.prompts == once.rows == 30


@pytest.mark.parametrize("repeats", [[32] * 30, [1] * 200 + [20] * 10])
def test_intervals_of_repeated_prompts_cover_the_true_accuracy(repeats):
    rng, repeats = np.random.default_rng(0), np.array(repeats)
    labels = np.repeat(np.arange(len(repeats)), repeats)
    independent, true, hits = independent_prompts(labels.tolist()), 0.3 / 1.8, np.zeros(3)
    for _ in range(600):
        rates = rng.beta(0.3, 1.5, len(repeats))
        rows = rng.random(len(labels)) < rates[labels]
        data = {"val-core/a/acc/mean@1": rows.mean(), "val/prompts/a": float(len(rows))}
        without = summarise([(0, data)], {}).held_out[0].accuracies[0].interval
        counted = summarise([(0, data | {"val/independent/a": float(independent)})], {}).held_out[0].accuracies[0]
        by_question = mean_by_question(rows.astype(float), questions=labels)
        assert by_question.value == pytest.approx(rows.mean())
        hits += [found.low <= true <= found.high for found in (without, counted.interval, by_question)]
    assert (hits[1:] / 600 >= 0.92).all() and hits[0] / 600 < 0.85, hits / 600


def test_questions_that_occur_once_have_the_interval_without_labels():
    values, others = np.array([0.0, 0.25, 1.0, 0.5]), np.array([0.5, 0.25, 0.0, 0.5])
    assert mean_by_question(values, questions=[4, 2, 7, 1]) == mean_by_question(values)
    assert difference_by_question(values, others, questions=[4, 2, 7, 1]) == difference_by_question(values, others)
    twice, both = np.repeat(values, 2), np.repeat(others, 2)
    for found, expected in (
        (mean_by_question(twice, questions=[0, 0, 1, 1, 2, 2, 3, 3]), mean_by_question(values)),
        (
            difference_by_question(twice, both, questions=[0, 0, 1, 1, 2, 2, 3, 3]),
            difference_by_question(values, others),
        ),
    ):
        assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert found.n == expected.n


def test_summary_claims_no_interval_for_what_is_no_share():
    (held_out,) = summarise([(1, {"val-core/a/acc/mean@1": 1.5})], {"a": 4}).held_out
    assert [str(one) for one in held_out.accuracies] == ["1.500 at step 1"]


@pytest.mark.parametrize("told_by", [{"val/outside/a": 1.0}, {"val-core/a/acc/mean@1": -0.5}])
def test_summary_claims_no_interval_for_means_of_1_and_minus_1(told_by):
    """At the first validation, they look like an accuracy."""
    first, last = ({"val-core/a/acc/mean@1": value, "val/prompts/a": 8.0} for value in (0.25, 0.5))
    other = {"val-core/b/acc/mean@1": 0.5, "val/prompts/b": 8.0}
    found = summarise([(0, first | other), (1, first | told_by), (2, last)], {"a": 8}).held_out
    assert [str(one) for one in found[0].accuracies] == ["0.250 at step 0", "0.500 at step 2"]
    assert [one.responses for one in found[0].accuracies] == [None, None]
    assert found[0].is_outside and not found[1].is_outside and found[1].accuracies[0].interval.n == 8
    assert why_without_intervals(found) is None and "outside [0, 1]" in why_without_intervals(found[:1])


def test_summary_claims_no_interval_where_the_trials_are_unknown_and_no_change_after_one_validation():
    metrics = [(0, {"val-core/a/acc/mean@1": 0.25}), (1, {"val-core/a/acc/mean@1": math.nan})]
    (held_out,) = summarise(metrics, {}).held_out
    assert [str(one) for one in held_out.accuracies] == ["0.250 at step 0"]


def test_summary_of_a_run_that_made_no_step():
    summary = summarise([], {})
    assert (summary.held_out, summary.steps, summary.seconds_per_step) == ([], 0, None)


def test_an_interval_of_accuracies_is_students_within_their_range():
    student = student_mean(np.array([0.1, 0.9]))
    assert student.low < 0 and student.high > 1
    found = mean_accuracy_over_seeds(np.array([0.1, 0.9]))
    assert (found.value, found.low, found.high, found.n) == (student.value, 0.0, 1.0, 2)
    for values in ([0.4, 0.41], [-1.0, 1.0], [0.5]):  # narrow, rewards, and one seed
        assert mean_accuracy_over_seeds(np.array(values)) == student_mean(np.array(values))
    with pytest.raises(ValueError, match=r"values\[1\]=nan"):
        mean_accuracy_over_seeds(np.array([0.5, np.nan]))


def test_an_interval_over_seeds_contains_that_of_their_responses():
    """Three seeds agree by chance: the interval is that of 90 responses, half of which are right."""
    near, far = np.array([0.5, 0.5, 0.5]), np.array([0.1, 0.5, 0.9])
    found = mean_accuracy_over_seeds(near, trials=90)
    assert (found.low, found.high, found.n) == (proportion(45, 90).low, proportion(45, 90).high, 3)
    assert mean_accuracy_over_seeds(far, trials=90) == mean_accuracy_over_seeds(far), "seeds differ by more than that"
    for values in ([0.3, 0.3, 0.3], [0.5]):
        single = mean_accuracy_over_seeds(np.array(values))
        assert (single.low, single.high) == (-math.inf, math.inf) and str(single) == f"{values[0]:.3f}"


def test_a_difference_over_seeds_contains_that_of_their_responses():
    """Pseudo-trials as of Agresti and Caffo, three for each method: 1.5 of 63 and 31.5 of 63."""
    found = difference_over_seeds(np.zeros(2), np.full(2, 0.5), trials=60)
    first, second = 1.5 / 63, 31.5 / 63
    half = 2.000995 * math.sqrt((first * (1 - first) + second * (1 - second)) / 63)  # t of 59 degrees of freedom
    assert (found.value, found.n) == (0.5, 2)
    assert (found.low, found.high) == pytest.approx((second - first - half, second - first + half), abs=1e-6)
    wide = (np.array([0.1, 0.5]), np.array([0.9, 0.3]))
    assert difference_over_seeds(*wide, trials=60) == student_mean(wide[1] - wide[0])
    for first, second in (([0.2, 0.2], [0.4, 0.4]), ([0.2], [0.4])):
        assert difference_over_seeds(np.array(first), np.array(second)).low == -math.inf
    rewards = np.array([3.0, 4.0])
    assert difference_over_seeds(rewards, rewards + 1, trials=60) == student_mean(np.ones(2)), "no accuracies"


def test_cutting_an_interval_at_the_range_covers_as_often():
    draws = np.random.default_rng(0).beta(8, 2, size=(2000, 3))
    covered = [
        [one.low <= 0.8 <= one.high for one in map(function, draws)]
        for function in (student_mean, mean_accuracy_over_seeds)
    ]
    assert covered[0] == covered[1]
