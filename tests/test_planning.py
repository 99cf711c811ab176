"""The planner: the paper's figures, slow references, and unbiasedness by enumeration."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd import planning

BIG_MATH = Path(__file__).parents[2] / "shared" / "data" / "bigmath_solve_counts_k64.json"
rates = st.floats(0, 1)
sizes = st.integers(1, 40)


def binomial(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def sigma(k, n):
    return math.sqrt(k * (n - k)) / n


@given(rates, sizes, st.sampled_from([1.0, 0.0, 2.0, -1.0, 0.5]))
def test_rates_are_their_sums(p, size, alpha):
    assert planning.silent_rate(p, size) == pytest.approx(p**size + (1 - p) ** size, abs=1e-12)
    assert planning.mixed_rate(p, size) == pytest.approx(1 - p**size - (1 - p) ** size, abs=1e-12)
    slow = sum(binomial(k, size, p) * sigma(k, size) ** (2 - alpha) for k in range(1, size))
    assert planning.gain(p, size, alpha) == pytest.approx(slow, rel=1e-10, abs=1e-12)


def test_spot_values_of_the_paper():
    assert [round(sigma(k, 8), 4) for k in (1, 2, 3, 4)] == [0.3307, 0.4330, 0.4841, 0.5]
    assert planning.fidelity(0.5, 8) == pytest.approx(0.9278, abs=5e-5)
    assert planning.fidelity(0.05, 8) == pytest.approx(0.5390, abs=5e-5)
    assert np.round(planning.silent_rate([0.5, 0.25, 0.05], 8), 4).tolist() == [0.0078, 0.1001, 0.6634]


@pytest.mark.parametrize(
    ("tolerance", "smallest", "laws"),
    [
        (0.1, [7, 9, 22, 42], [5, 6, 14, 26]),
        (0.05, [11, 14, 36, 69], [10, 12, 28, 53]),
        (0.01, [51, 61, 144, 273], [50, 60, 139, 263]),
    ],
)
def test_group_sizes_for_a_fidelity(tolerance, smallest, laws):
    p = np.array([0.5, 0.3, 0.1, 0.05])
    assert planning.required_group_size(p, tolerance).tolist() == smallest
    assert planning.required_group_size(1 - p, tolerance).tolist() == smallest
    law = 1 / (8 * tolerance * p * (1 - p))
    assert law.round().tolist() == laws
    assert (law < smallest).all(), "the paper's law understates the need"


@pytest.mark.parametrize(("tolerance", "smallest"), [(0.1, [5, 7, 11, 22, 45, 230]), (0.05, [6, 9, 14, 29, 59, 299])])
def test_group_sizes_for_a_mixed_group(tolerance, smallest):
    got = planning.required_group_size([0.5, 0.3, 0.2, 0.1, 0.05, 0.01], tolerance, "mixed")
    assert got.tolist() == smallest


@given(st.floats(0.005, 0.995), st.floats(0.02, 0.5), st.sampled_from(["fidelity", "mixed"]))
def test_the_required_size_is_the_smallest_that_serves(p, tolerance, criterion):
    reached = {"fidelity": planning.fidelity, "mixed": planning.mixed_rate}[criterion]
    size = int(planning.required_group_size(p, tolerance, criterion))
    assert reached(p, size) >= 1 - tolerance
    assert size == 2 or reached(p, size - 1) < 1 - tolerance


def test_sizes_of_one_function_are_taken_by_the_others():
    sizes = planning.required_group_size([0.5, 0.3], [0.1, 0.05])
    assert sizes.tolist() == [7, 14]
    assert (planning.fidelity([0.5, 0.3], sizes) >= [0.9, 0.95]).all()
    both = planning.silent_rate_from_counts(3, 64, sizes)
    assert both.tolist() == [planning.silent_rate_from_counts(3, 64, int(size)) for size in sizes]
    both = planning.posterior_expected_std(3, 64, sizes)
    assert both.tolist() == [planning.posterior_expected_std(3, 64, int(size)) for size in sizes]


def test_large_groups_are_summed_where_it_matters():
    """Above 1024 the sum runs over likely counts alone."""
    for p, size in ((0.5, 1500), (0.001, 3000), (0.9, 1100)):
        chances = scipy.stats.binom(size, p).pmf(np.arange(size + 1))
        slow = sum(chance * sigma(k, size) for k, chance in enumerate(chances))
        assert planning.expected_std(p, size) == pytest.approx(slow, rel=1e-9)
    assert planning.required_group_size(1e-6, 0.1) == pytest.approx(2041495, rel=1e-3)
    assert planning.required_group_size(0.5, 1e-6) == 500001


@given(st.floats(0.01, 0.99), st.integers(2, 20), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0, 1]))
def test_gain_is_the_weight_the_dial_gives(p, size, alpha, ddof):
    eps = 0.1
    slow = sum(
        binomial(k, size, p) * sigma(k, size) ** 2 / (sigma(k, size) * math.sqrt(size / (size - ddof)) + eps) ** alpha
        for k in range(1, size)
    )
    assert planning.gain(p, size, alpha, ddof=ddof, eps=eps) == pytest.approx(slow, rel=1e-10)


def test_no_size_serves_at_the_ends():
    assert planning.required_group_size([0.0, 1.0], 0.1).tolist() == [math.inf, math.inf]
    assert planning.fidelity([0.0, 1.0], 8).tolist() == [0, 0]
    assert planning.silent_rate([0.0, 1.0], 8).tolist() == [1, 1]


def test_large_groups_neither_overflow_nor_lose_the_tail():
    assert planning.expected_std(0.5, 100_000) == pytest.approx(0.5 * (1 - 1 / (8 * 100_000 * 0.25)), rel=1e-9)
    assert planning.mixed_rate(1e-12, 8) == pytest.approx(8e-12, rel=1e-9)
    assert planning.expected_std(1e-9, 8) == pytest.approx(1e-9 * math.sqrt(7), rel=1e-6)


@pytest.mark.parametrize(("n", "size"), [(6, 2), (6, 4), (6, 6), (9, 5)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_estimates_from_counts_are_unbiased_and_the_plug_in_is_not(n, size, p):
    counts = np.arange(n + 1)
    chances = np.array([binomial(c, n, p) for c in counts])
    for estimate, truth in (
        (planning.silent_rate_from_counts(counts, n, size), planning.silent_rate(p, size)),
        (planning.expected_std_from_counts(counts, n, size), planning.expected_std(p, size)),
        (planning.disagreement_from_counts(counts, n), p * (1 - p)),
    ):
        assert chances @ estimate == pytest.approx(truth, rel=1e-12)
    assert chances @ planning.silent_rate(counts / n, size) > planning.silent_rate(p, size) + 1e-3


def test_estimates_from_counts_are_means_over_all_subsets():
    outcomes = [1] * 3 + [0] * 4
    groups = [sum(group) for group in itertools.combinations(outcomes, 4)]
    silent = sum(k in (0, 4) for k in groups) / len(groups)
    assert planning.silent_rate_from_counts(3, 7, 4) == pytest.approx(silent)
    assert planning.expected_std_from_counts(3, 7, 4) == pytest.approx(sum(sigma(k, 4) for k in groups) / len(groups))


def test_from_the_same_rollouts_the_estimate_is_the_indicator_itself():
    """Why silence is to be predicted from earlier visits: at G = n the estimate only says what was seen."""
    assert planning.silent_rate_from_counts(np.arange(9), 8, 8).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    counts = np.arange(9)
    chances = np.array([binomial(c, 8, 0.25) for c in counts])
    assert chances @ planning.silent_rate(counts / 8, 8) == pytest.approx(0.2297, abs=5e-5)


@pytest.mark.parametrize(("correct", "n", "prior"), [(0, 0, (1, 1)), (2, 3, (1, 1)), (0, 4, (0.5, 2.0))])
def test_posterior_means_are_integrals(correct, n, prior):
    a, b = correct + prior[0], n - correct + prior[1]
    # p = Beta quantiles by the midpoint rule on a fine grid of the density
    p = (np.arange(200_000) + 0.5) / 200_000
    density = p ** (a - 1) * (1 - p) ** (b - 1)
    density /= density.sum()
    silent = planning.posterior_silent_rate(correct, n, 8, prior)
    assert silent == pytest.approx(density @ planning.silent_rate(p, 8), rel=2e-3)
    assert planning.posterior_expected_std(correct, n, 8, prior) == pytest.approx(
        density @ planning.expected_std(p, 8), rel=2e-3
    )


def greedy(p, total, value, minimum, maximum):
    """One rollout at a time to the prompt that gains most, the smaller group first among equals."""
    sizes = [minimum] * len(p)
    for _ in range(total - minimum * len(p)):
        open_ = [i for i in range(len(p)) if maximum is None or sizes[i] < maximum]
        best = max(open_, key=lambda i: (round(value(p[i], sizes[i] + 1) - value(p[i], sizes[i]), 13), -sizes[i]))
        sizes[best] += 1
    return sizes


@given(
    st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=8),
    st.integers(0, 40),
    st.integers(1, 3),
    st.none() | st.integers(3, 12),
    st.sampled_from(["expected_std", "mixed"]),
)
def test_allocation_is_worth_as_much_as_the_slow_greedy_one(p, spare, minimum, maximum, objective):
    value = {"expected_std": planning.expected_std, "mixed": planning.mixed_rate}[objective]
    total = minimum * len(p) + spare
    if maximum is not None:
        total = min(total, maximum * len(p))
    sizes = planning.allocate(p, total, objective=objective, minimum=minimum, maximum=maximum)
    assert sizes.sum() == total and sizes.min() >= minimum and (maximum is None or sizes.max() <= maximum)
    slow = greedy(p, total, value, minimum, maximum)
    assert sum(value(np.array(p), sizes)) == pytest.approx(sum(value(np.array(p), np.array(slow))), abs=1e-9)
    for rate in set(p):
        same = [size for one, size in zip(p, sizes.tolist(), strict=True) if one == rate]
        assert same == sorted(same, reverse=True) and same[0] - same[-1] <= 1


@given(st.lists(st.sampled_from([0.02, 0.1, 0.25, 0.5, 0.9]), min_size=1, max_size=6), st.integers(0, 60))
def test_fidelity_raises_the_lowest_first(p, spare):
    sizes = planning.allocate(p, 2 * len(p) + spare, objective="fidelity")
    reached = planning.fidelity(p, sizes)
    for i, size in enumerate(sizes):
        if size > 2:  # its last raise came when no other prompt stood lower
            assert planning.fidelity(p[i], size - 1) <= reached.min() + 1e-12


def test_fidelity_gives_nothing_beyond_the_minimum_where_nothing_helps():
    assert planning.allocate([0.0, 0.5, 1.0], 30, objective="fidelity").tolist() == [2, 26, 2]
    assert planning.allocate([0.0, 1.0], 9, objective="fidelity").tolist() == [5, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planning.silent_rate([0.1, 1.2], 8), r"p\[1\] is 1\.2; write a rate between 0 and 1"),
        (lambda: planning.fidelity(float("nan"), 8), r"p is nan; write a rate"),
        (lambda: planning.expected_std(0.5, [8, 0]), r"group_size\[1\] is 0; write a whole number"),
        (lambda: planning.expected_std(0.5, 2.5), r"group_size is 2\.5"),
        (lambda: planning.silent_rate([[0.1, 0.2], [0.3, 1.2]], 8), r"p\[1, 1\] is 1\.2"),
        (lambda: planning.silent_rate(0.5, [8, float("inf")]), r"group_size\[1\] is inf"),
        (lambda: planning.gain(0.5, 8, float("nan")), "alpha=nan: write a finite number"),
        (lambda: planning.silent_rate_from_counts([1, 2], [8, 3], 4), r"n\[1\] is 3.*; write the group size or more"),
        (lambda: planning.silent_rate_from_counts(1, 2**40, 8), r"n is 1.*; write a whole number"),
        (lambda: planning.silent_rate_from_counts([1, 9], 8, 4), r"correct\[1\] is 9; write no more than n"),
        (lambda: planning.silent_rate_from_counts(-1, 8, 4), r"correct is -1"),
        (lambda: planning.silent_rate_from_counts(1.5, 8, 4), r"correct is 1\.5"),
        (lambda: planning.posterior_silent_rate(1, 2, 8, prior=(0, 1)), r"prior=\(0, 1\): write two numbers above 0"),
        (lambda: planning.required_group_size(0.5, [0.1, 0]), r"tolerance\[1\] is 0.*; write a number between 0 and 1"),
        (lambda: planning.required_group_size(0.5, 1e-17), "tolerance is 1e-17; write a number between 0 and 1"),
        (lambda: planning.required_group_size(0.5, 0.1, "sigma"), "criterion='sigma': write one of fidelity, mixed"),
        (lambda: planning.allocate([0.5, -0.1], 10), r"p\[1\] is -0\.1"),
        (lambda: planning.allocate([], 10), "p is empty"),
        (lambda: planning.allocate([[0.1, 0.5]], 16), r"p has shape \(1, 2\); write one rate a prompt"),
        (lambda: planning.allocate([0.5], 10.5), "total=10.5: write a whole number"),
        (lambda: planning.allocate([0.5], float("nan")), "total=nan: write a whole number"),
        (lambda: planning.allocate([0.5], 10, minimum=2.5), "minimum=2.5: write a whole number"),
        (lambda: planning.allocate([0.5] * 3, 5), "total=5 does not give 3 prompts the minimum of 2 each"),
        (lambda: planning.allocate([0.5] * 3, 50, maximum=8), "total=50 is more than 3 prompts may take"),
        (lambda: planning.allocate([0.5], 10, minimum=4, maximum=3), "maximum=3 is below minimum=4"),
        (lambda: planning.allocate([0.5], 10, minimum=0), "minimum=0: write 1 or more"),
        (lambda: planning.allocate([0.5], 10, objective="std"), "objective='std': write one of expected_std"),
    ],
)
def test_bad_input_is_refused_and_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture(scope="module")
def big_math():
    if not BIG_MATH.is_file():
        pytest.skip(f"the Big-Math counts are not at {BIG_MATH}")
    return np.array(json.loads(BIG_MATH.read_text()))


SOLVED = np.arange(65)


def test_big_math_ends(big_math):
    assert big_math.sum() == 215_608
    assert np.round(100 * big_math[[0, -1]] / big_math.sum(), 1).tolist() == [4.0, 7.2]


def test_big_math_silent_rates(big_math):
    share = big_math / big_math.sum()
    group_sizes = (4, 8, 16, 32, 64)
    plug_in = [round(100 * share @ planning.silent_rate(SOLVED / 64, size), 2) for size in group_sizes]
    unbiased = [round(100 * share @ planning.silent_rate_from_counts(SOLVED, 64, size), 2) for size in group_sizes]
    assert plug_in == [59.27, 44.28, 32.24, 23.01, 16.53]
    # 58.585 to within rounding: the page has 58.59 where these counts give 58.585.
    assert unbiased == pytest.approx([58.59, 43.07, 30.19, 19.64, 11.18], abs=0.006)


def test_big_math_gradient_mass(big_math):
    p = SOLVED / 64
    for alpha, at_the_ends, in_the_middle in ((0, 13.9, 22.8), (1, 24.7, 17.5)):
        mass = big_math * (p * (1 - p)) ** ((2 - alpha) / 2)
        mass = 100 * mass / mass.sum()
        assert round(mass[(p < 0.1) | (p > 0.9)].sum(), 1) == at_the_ends
        assert round(mass[(p >= 0.4) & (p <= 0.6)].sum(), 1) == in_the_middle


def test_big_math_allocation(big_math):
    interior = np.repeat(SOLVED[1:-1] / 64, big_math[1:-1])
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


def test_big_math_rollouts_in_proportion_to_difficulty_are_worse_than_equal_shares(big_math):
    """8 a prompt on average in proportion to 1/(p(1-p)), fractions by lot."""
    p, share = SOLVED[1:-1] / 64, big_math[1:-1] / big_math[1:-1].sum()
    wanted = 8 / (p * (1 - p)) / (share @ (1 / (p * (1 - p))))
    lower = np.floor(wanted)
    for value, figure in ((planning.expected_std, 0.1691), (planning.mixed_rate, 0.413)):
        mean = (lower + 1 - wanted) * value(p, lower) + (wanted - lower) * value(p, lower + 1)
        assert share @ mean == pytest.approx(figure, abs=5e-4)
        assert share @ mean < share @ value(p, 8)


def test_big_math_dynamic_sampling_factor(big_math):
    silent = big_math / big_math.sum() @ planning.silent_rate(SOLVED / 64, 8)
    assert 1 / (1 - silent) == pytest.approx(1.80, abs=0.006)
