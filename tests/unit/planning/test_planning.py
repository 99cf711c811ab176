"""The planner's rates and estimates against the paper's figures, slow references and enumerations."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd import planning
from verl_gsd.planning.distinct import distinct_counts, distinct_pairs, distinct_rows

rates = st.floats(0, 1)
sizes = st.integers(1, 40)


def binomial(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def sigma(k, n):
    return math.sqrt(k * (n - k)) / n


@given(rates, sizes, st.sampled_from([1.0, 0.0, 2.0, -1.0, 0.5]))
def test_rates_equal_their_defining_sums(p, size, alpha):
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
def test_the_required_size_is_the_smallest_that_reaches_the_target(p, tolerance, criterion):
    reached = {"fidelity": planning.fidelity, "mixed": planning.mixed_rate}[criterion]
    size = int(planning.required_group_size(p, tolerance, criterion))
    assert reached(p, size) >= 1 - tolerance
    assert size == 2 or reached(p, size - 1) < 1 - tolerance


def test_functions_accept_the_group_sizes_that_others_return():
    sizes = planning.required_group_size([0.5, 0.3], [0.1, 0.05])
    assert sizes.tolist() == [7, 14]
    assert (planning.fidelity([0.5, 0.3], sizes) >= [0.9, 0.95]).all()
    both = planning.silent_rate_from_counts(3, 64, sizes)
    assert both.tolist() == [planning.silent_rate_from_counts(3, 64, int(size)) for size in sizes]
    both = planning.posterior_expected_std(3, 64, sizes)
    assert both.tolist() == [planning.posterior_expected_std(3, 64, int(size)) for size in sizes]


def test_sums_over_likely_counts_are_accurate_for_large_groups():
    """Above a group size of 1024 the sum runs only over the likely counts."""
    for p, size in ((0.5, 1500), (0.001, 3000), (0.9, 1100)):
        chances = scipy.stats.binom(size, p).pmf(np.arange(size + 1))
        slow = sum(chance * sigma(k, size) for k, chance in enumerate(chances))
        assert planning.expected_std(p, size) == pytest.approx(slow, rel=1e-9)
    assert planning.required_group_size(1e-6, 0.1) == pytest.approx(2041495, rel=1e-3)
    assert planning.required_group_size(0.5, 1e-6) == 500001


@given(st.floats(0.01, 0.99), st.integers(2, 20), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0, 1]))
def test_gain_is_the_weight_under_the_dial(p, size, alpha, ddof):
    eps = 0.1
    slow = sum(
        binomial(k, size, p) * sigma(k, size) ** 2 / (sigma(k, size) * math.sqrt(size / (size - ddof)) + eps) ** alpha
        for k in range(1, size)
    )
    assert planning.gain(p, size, alpha, ddof=ddof, eps=eps) == pytest.approx(slow, rel=1e-10)


def test_no_group_size_is_large_enough_at_rates_0_and_1():
    assert planning.required_group_size([0.0, 1.0], 0.1).tolist() == [math.inf, math.inf]
    assert planning.fidelity([0.0, 1.0], 8).tolist() == [0, 0]
    assert planning.silent_rate([0.0, 1.0], 8).tolist() == [1, 1]


def test_large_groups_do_not_overflow_or_lose_the_tail():
    assert planning.expected_std(0.5, 100_000) == pytest.approx(0.5 * (1 - 1 / (8 * 100_000 * 0.25)), rel=1e-9)
    assert planning.mixed_rate(1e-12, 8) == pytest.approx(8e-12, rel=1e-9)
    assert planning.expected_std(1e-9, 8) == pytest.approx(1e-9 * math.sqrt(7), rel=1e-6)


@pytest.mark.parametrize(("n", "size"), [(6, 2), (6, 4), (6, 6), (9, 5)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_estimates_from_counts_are_unbiased_and_plug_in_estimates_are_not(n, size, p):
    counts = np.arange(n + 1)
    chances = np.array([binomial(c, n, p) for c in counts])
    for estimate, truth in (
        (planning.silent_rate_from_counts(counts, n, size), planning.silent_rate(p, size)),
        (planning.expected_std_from_counts(counts, n, size), planning.expected_std(p, size)),
    ):
        assert chances @ estimate == pytest.approx(truth, rel=1e-12)
    assert chances @ planning.silent_rate(counts / n, size) > planning.silent_rate(p, size) + 1e-3


def test_estimates_from_counts_are_means_over_all_subsets():
    outcomes = [1] * 3 + [0] * 4
    groups = [sum(group) for group in itertools.combinations(outcomes, 4)]
    silent = sum(k in (0, 4) for k in groups) / len(groups)
    assert planning.silent_rate_from_counts(3, 7, 4) == pytest.approx(silent)
    assert planning.expected_std_from_counts(3, 7, 4) == pytest.approx(sum(sigma(k, 4) for k in groups) / len(groups))


def test_with_as_many_responses_as_the_group_size_the_estimate_is_the_indicator():
    """Silent groups must be predicted from earlier visits: at G = n the estimate only repeats the observation."""
    assert planning.silent_rate_from_counts(np.arange(9), 8, 8).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    counts = np.arange(9)
    chances = np.array([binomial(c, 8, 0.25) for c in counts])
    assert chances @ planning.silent_rate(counts / 8, 8) == pytest.approx(0.2297, abs=5e-5)


@pytest.mark.parametrize(("correct", "n", "prior"), [(0, 0, (1, 1)), (2, 3, (1, 1)), (0, 4, (0.5, 2.0))])
def test_posterior_means_equal_their_integrals(correct, n, prior):
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
    for alpha, dial in ((0.0, {}), (1.5, {"ddof": 1, "eps": 0.1}), (3.0, {"ddof": 1})):
        assert planning.posterior_gain(correct, n, 8, alpha, prior, **dial) == pytest.approx(
            density @ planning.gain(p, 8, alpha, **dial), rel=2e-3
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planning.silent_rate([0.1, 1.2], 8), r"\bp\[1\].*\b1\.2\b"),
        (lambda: planning.fidelity(float("nan"), 8), r"\bp\b.*\bnan\b"),
        (lambda: planning.expected_std(0.5, [8, 0]), r"group_size\[1\].*\b0\b"),
        (lambda: planning.expected_std(0.5, 2.5), r"group_size\b.*\b2\.5\b"),
        (lambda: planning.silent_rate([[0.1, 0.2], [0.3, 1.2]], 8), r"\bp\[1, 1\].*\b1\.2\b"),
        (lambda: planning.silent_rate(0.5, [8, float("inf")]), r"group_size\[1\].*\binf\b"),
        (lambda: planning.gain(0.5, 8, float("nan")), "alpha=nan"),
        (lambda: planning.silent_rate_from_counts([1, 2], [8, 3], 4), r"\bn\[1\].*\b3\b.*group size"),
        (lambda: planning.silent_rate_from_counts(1, 2**40, 8), r"\bn\b.*\b1\S*e\+12"),
        (lambda: planning.silent_rate_from_counts([1, 9], 8, 4), r"correct\[1\].*\b9\b.*\bn\b"),
        (lambda: planning.silent_rate_from_counts(-1, 8, 4), r"correct\b.*-1\b"),
        (lambda: planning.silent_rate_from_counts(1.5, 8, 4), r"correct\b.*\b1\.5\b"),
        (lambda: planning.posterior_silent_rate(1, 2, 8, prior=(0, 1)), r"prior=\(0, 1\)"),
        (lambda: planning.required_group_size(0.5, [0.1, 0]), r"tolerance\[1\].*\b0\b"),
        (lambda: planning.required_group_size(0.5, 1e-17), r"tolerance\b.*\b1e-17\b"),
        (lambda: planning.required_group_size(0.5, 0.1, "sigma"), "criterion='sigma' is unknown.*fidelity, mixed"),
        (lambda: planning.allocate([0.5, -0.1], 10), r"\bp\[1\].*-0\.1\b"),
        (lambda: planning.allocate([], 10), r"\bp\b.*empty"),
        (lambda: planning.allocate([[0.1, 0.5]], 16), r"\bp\b.*\(1, 2\)"),
        (lambda: planning.allocate([0.5], 10.5), r"total=10\.5\b"),
        (lambda: planning.allocate([0.5], float("nan")), "total=nan"),
        (lambda: planning.allocate([0.5], 10, minimum=2.5), r"minimum=2\.5\b"),
        (lambda: planning.allocate([0.5] * 3, 5), r"total=5\b.*\b3\b.*minimum.*\b2\b"),
        (lambda: planning.allocate([0.5] * 3, 50, maximum=8), r"total=50\b.*\b3\b"),
        (lambda: planning.allocate([0.5], 10, minimum=4, maximum=3), r"maximum=3\b.*minimum=4\b"),
        (lambda: planning.allocate([0.5], 10, minimum=0), "minimum=0"),
        (lambda: planning.allocate([0.5], 10, objective="std"), "objective='std' is unknown.*expected_std"),
        (lambda: planning.posterior_expected_std(1.5, 1.2, 4), r"correct\b.*\b1\.5\b.*\bn\b"),
        (lambda: planning.posterior_silent_rate(0, float("inf"), 4), r"\bn\b.*\binf\b"),
        (lambda: planning.allocate_from_counts([0.5, 2], [1, 1], 8), r"correct\[1\].*\b2\b.*\bn\b"),
        (lambda: planning.allocate_from_counts([0, float("nan")], [1, 1], 8), r"correct\[1\].*\bnan\b"),
        (lambda: planning.allocate_from_counts([0], [-1], 8), r"\bn\[0\].*-1\b"),
        (lambda: planning.allocate_from_counts(0, 1, 8), r"correct\b.*\(\)"),
        (lambda: planning.allocate_from_counts([], [], 8), r"correct\b.*empty"),
        (lambda: planning.allocate_from_counts([0], [1], 1), r"rollouts=1\b.*\b1\b.*minimum.*\b2\b"),
        (lambda: planning.allocate_from_counts([0], [1], 9, maximum=8), r"rollouts=9\b.*\b1\b"),
        (lambda: planning.allocate_from_counts([0], [1], 8.5), r"rollouts=8\.5\b"),
        (lambda: planning.allocate_from_counts([0], [1], 8, prior=(0, 1)), r"prior=\(0, 1\)"),
    ],
)
def test_invalid_input_raises_an_error_that_names_it(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 1.5, 2.0]), st.integers(0, 3)), min_size=1, max_size=30))
def test_distinct_pairs_are_those_of_numpy(pairs):
    first, second = np.array(pairs, dtype=float).T
    expected = np.unique(np.stack([first, second]), axis=1, return_inverse=True, return_counts=True)
    for found, wanted in zip(distinct_pairs(first, second), expected, strict=True):
        assert found.tolist() == wanted.tolist()


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 9.0]), max_size=8), st.sampled_from([float, int]))
def test_distinct_counts_are_those_of_numpy(values, dtype):
    """Fractions and numbers above their quantity are sorted, other numbers are not."""
    entries = np.array(values, dtype=dtype)
    for found, wanted in zip(distinct_counts(entries), np.unique(entries, return_inverse=True), strict=True):
        assert found.tolist() == wanted.tolist() and found.dtype == wanted.dtype


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_distinct_rows_stand_for_all_rows(rows):
    columns = np.array(rows, dtype=float).reshape(-1, 3).T
    row, kind = distinct_rows(*columns)
    assert [rows[place] for place in row[kind]] == rows
    assert len(row) == len(set(rows))
