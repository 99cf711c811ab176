"""Allocation of rollouts to prompts, compared with slow references and with all other allocations."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd import planning
from verl_gsd.planning.counts import posterior


def greedy(p, total, value, minimum, maximum):
    """Give one rollout at a time to the prompt that gains most; if gains are equal, to the smaller group."""
    sizes = [minimum] * len(p)
    for _ in range(total - minimum * len(p)):
        open_ = [i for i in range(len(p)) if maximum is None or sizes[i] < maximum]
        best = max(open_, key=lambda i: (round(value(p[i], sizes[i] + 1) - value(p[i], sizes[i]), 13), -sizes[i]))
        sizes[best] += 1
    return sizes


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), min_size=1, max_size=8),
    st.integers(0, 40),
    st.integers(1, 3),
    st.none() | st.integers(3, 12),
    st.sampled_from(["expected_std", "mixed"]),
)
def test_allocation_is_as_good_as_a_slow_greedy_allocation(p, spare, minimum, maximum, objective):
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
def test_fidelity_raises_the_prompt_with_the_lowest_fidelity_first(p, spare):
    sizes = planning.allocate(p, 2 * len(p) + spare, objective="fidelity")
    reached = planning.fidelity(p, sizes)
    for i, size in enumerate(sizes):
        if size > 2:  # its last raise came when no other prompt stood lower
            assert planning.fidelity(p[i], size - 1) <= reached.min() + 1e-12


def test_fidelity_gives_the_minimum_to_prompts_that_no_group_size_helps():
    assert planning.allocate([0.0, 0.5, 1.0], 30, objective="fidelity").tolist() == [2, 26, 2]
    assert planning.allocate([0.0, 1.0], 9, objective="fidelity").tolist() == [5, 4]


def posterior_value(objective, correct, total, prior):
    """size -> the objective of a group of that size, summed over the beta-binomial distribution (slow)."""
    a, b = prior[0] + correct, prior[1] + total - correct

    def value(size):
        k = np.arange(size + 1)
        worth = {"expected_std": np.sqrt(k * (size - k)) / size, "mixed": (k > 0) & (k < size)}[objective]
        return float(scipy.stats.betabinom(size, a, b).pmf(k) @ worth)

    return value


counts = st.tuples(st.floats(0, 1), st.floats(0, 30)).map(lambda pair: (pair[0] * pair[1], pair[1]))


@settings(max_examples=50)
@given(
    st.lists(counts, min_size=1, max_size=4),
    st.integers(0, 8),
    st.integers(1, 3),
    st.none() | st.integers(3, 7),
    st.sampled_from(["expected_std", "mixed"]),
    st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
)
def test_no_other_allocation_from_counts_is_better(known, spare, minimum, maximum, objective, prior):
    correct, total = np.array(known).T
    rollouts = minimum * len(known) + spare
    if maximum is not None:
        rollouts = min(rollouts, maximum * len(known))
    sizes = planning.allocate_from_counts(
        correct, total, rollouts, objective=objective, prior=prior, minimum=minimum, maximum=maximum
    )
    assert sizes.dtype == np.int64 and sizes.sum() == rollouts and sizes.min() >= minimum
    largest = rollouts if maximum is None else maximum
    assert sizes.max() <= largest
    values = [functools.cache(posterior_value(objective, c, n, prior)) for c, n in known]
    best = max(
        sum(value(size) for value, size in zip(values, choice, strict=True))
        for choice in itertools.product(range(minimum, minimum + spare + 1), repeat=len(known))
        if sum(choice) == rollouts and max(choice) <= largest
    )
    got = sum(value(int(size)) for value, size in zip(values, sizes, strict=True))
    assert got == pytest.approx(best, abs=1e-10)


@given(st.lists(counts, min_size=1, max_size=5), st.integers(0, 60))
def test_fidelity_from_counts_raises_the_prompt_with_the_lowest_fidelity_first(known, spare):
    correct, total = np.array(known).T
    sizes = planning.allocate_from_counts(correct, total, 2 * len(known) + spare, objective="fidelity")
    assert sizes.sum() == 2 * len(known) + spare

    def reached(entry, size):
        a, b = 1 + correct[entry], 1 + total[entry] - correct[entry]
        limit = math.exp(scipy.special.betaln(a + 0.5, b + 0.5) - scipy.special.betaln(a, b))
        return planning.posterior_expected_std(correct[entry], total[entry], size) / limit

    lowest = min(reached(entry, int(size)) for entry, size in enumerate(sizes))
    for entry, size in enumerate(sizes):
        assert size == 2 or reached(entry, int(size) - 1) <= lowest + 1e-10


def test_allocation_to_many_prompts_equals_a_slow_greedy_allocation():
    """One prompt gets far more rollouts than the others, so its list of computed gains must be extended."""
    rng = np.random.default_rng(0)
    total = rng.gamma(2, 4000, 60) + 1000
    correct = rng.gamma(2, 0.1, 60)
    correct[7], total[7] = 0.0, 0.0
    known = zip(correct, total, strict=True)
    value = [functools.cache(posterior_value("expected_std", c, n, (1, 1))) for c, n in known]
    for rollouts in (120, 200, 1000):
        sizes = planning.allocate_from_counts(correct, total, rollouts)
        slow = greedy(range(60), rollouts, lambda entry, size: value[entry](size), 2, None)
        assert sizes.sum() == rollouts
        worth = [sum(value[entry](int(size)) for entry, size in enumerate(one)) for one in (sizes, slow)]
        assert worth[0] == pytest.approx(worth[1], rel=1e-12)
        assert np.abs(sizes - slow).max() <= 1, "but for gains that rounding tells apart"
    assert sizes[7] > 2 * (16 + 880 // 60)


@pytest.mark.parametrize("objective", ["expected_std", "mixed", "fidelity"])
def test_every_prompt_gets_the_minimum_if_nothing_more_is_to_be_allocated(objective):
    for minimum in (1, 2):
        assert (
            planning.allocate([0.1, 0.5], 2 * minimum, objective=objective, minimum=minimum).tolist() == [minimum] * 2
        )
        from_counts = planning.allocate_from_counts(
            [1, 0], [2, 2], 2 * minimum, objective=objective, minimum=minimum, maximum=minimum
        )
        assert from_counts.tolist() == [minimum] * 2 and from_counts.dtype == np.int64


graded = st.lists(st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1), max_size=10)


@given(graded, st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)))
def test_the_posterior_of_partial_credit_has_the_spread_of_its_verdicts(verdicts, prior):
    correct, partial = sum(verdicts), sum(verdict * (1 - verdict) for verdict in verdicts)
    a, b = posterior(correct, len(verdicts), prior, partial)
    both = prior[0] + prior[1] + len(verdicts)
    assert a > 0 and b > 0 and a + b == pytest.approx(both)
    mean = (prior[0] + correct) / both
    square = (prior[0] + sum(verdict**2 for verdict in verdicts)) / both
    assert a * b / both**2 == pytest.approx(square - mean**2, rel=1e-6, abs=1e-12)
    lean = prior[0] + correct - (prior[1] + len(verdicts) - correct)
    assert abs(lean) < 1e-9 or (a - b) * lean >= 0, "a tie falls to the side that rounding gives it"
    if set(verdicts) <= {0.0, 1.0}:
        assert (a, b) == (correct + prior[0], len(verdicts) - correct + prior[1])


@pytest.mark.parametrize("left", [1e-150, 1e-160, 1e-200, 1e-300, 5e-324])
def test_partial_credit_that_is_nearly_forgotten_is_no_error(left):
    """The product of two such counts underflows to 0, and the partial credit does not."""
    a, b = posterior(4 * left, 8 * left, (0.5, 0.5), 2 * left)
    assert (a, b) == (pytest.approx(0.5), pytest.approx(0.5))


def test_equal_partial_credit_is_not_worth_more_rollouts():
    """Eight visits of 8: always 0.5, half right, 1 in 8 right, always right."""
    correct, partial = [32, 32, 8, 64], [16.0, 0, 0, 0]
    for objective in ("expected_std", "mixed"):
        half_credit, split, hard, mastered = planning.allocate_from_counts(
            correct, [64] * 4, 32, objective=objective, prior=(0.5, 0.5), partial=partial
        )
        assert half_credit <= mastered < min(split, hard)
    silent = planning.posterior_silent_rate(correct, [64] * 4, 8, (0.5, 0.5), partial=partial)
    assert silent[0] > silent[3] > 0.9 and silent[1] < 0.02


def test_unknown_prompts_get_equal_sizes_and_few_failures_do_not_make_a_prompt_impossible():
    assert planning.allocate_from_counts([0] * 5, [0] * 5, 43).tolist() == [9, 9, 9, 8, 8]
    known_to_be_hard, failed_twice, split = planning.allocate_from_counts([0, 0, 50], [1000, 2, 100], 24)
    assert known_to_be_hard == 2 < split < failed_twice, "of the prompt in the dark the next rollouts may tell most"
    assert planning.allocate([0, 0, 0.5], 24).tolist()[:2] == [2, 2]


def test_large_counts_give_the_same_allocation_as_rates():
    p = np.array([0.02, 0.1, 0.3, 0.5, 0.9])
    from_counts = planning.allocate_from_counts(p * 1e7, np.full(5, 1e7), 60)
    assert from_counts.tolist() == planning.allocate(p, 60).tolist()


def test_allocation_is_symmetric_in_correct_and_wrong_and_independent_of_order():
    correct, total = np.array([0.3, 2.0, 5.5, 1.0]), np.array([4.0, 8.0, 11.0, 1.0])
    sizes = planning.allocate_from_counts(correct, total, 31)
    assert np.abs(planning.allocate_from_counts(total - correct, total, 31) - sizes).max() <= 1
    turned = planning.allocate_from_counts(correct[::-1], total[::-1], 31)
    assert turned.tolist() == sizes[::-1].tolist()


def test_posteriors_accept_fractional_counts():
    for size in (1, 2, 5, 30):
        value = posterior_value("expected_std", 1.25, 3.5, (1, 1))
        assert planning.posterior_expected_std(1.25, 3.5, size) == pytest.approx(value(size), abs=1e-12)
        mixed = posterior_value("mixed", 1.25, 3.5, (1, 1))
        assert 1 - planning.posterior_silent_rate(1.25, 3.5, size) == pytest.approx(mixed(size), abs=1e-12)
    tenths = sum([0.1] * 3)  # 0.30000000000000004
    assert planning.posterior_silent_rate(tenths, 0.3, 8) == pytest.approx(planning.posterior_silent_rate(0.3, 0.3, 8))
