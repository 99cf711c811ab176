"""Rollouts shared out: the weights of the update, who requests them, and mistakes named before Ray starts."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy.special import roots_sh_jacobi
from scipy.stats import chi

from verl_gsd import chain
from verl_gsd.algorithms.rollouts.budget import Budget
from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import gain_ratios, group_size_weights, term_variance
from verl_gsd.audit import audit
from verl_gsd.errors import ConfigError
from verl_gsd.extension import ExtensionError, Visits
from verl_gsd.groups import Group, Member, group_stats
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.run.checks import validate

BUDGET, DAGRPO = "algorithm.gsd.budget", "algorithm.gsd.dagrpo"
DIAL = {"alpha": 1.0, "ddof": 0, "eps": 0.0}

outcomes = st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=5), min_size=1, max_size=5)


def update(rewards, scores, labels, rollouts, gsd):
    """The gradient of a loss that averages over rows, (D,): sum_j A_j s_j / N, with scores s_j (N, D)."""
    columns = {} if rollouts is None else {"rollouts": torch.tensor(rollouts), "gain_ratio": torch.ones(len(rollouts))}
    advantages = chain.advantages(torch.tensor(rewards, dtype=torch.float64), labels, gsd, columns=columns)
    return (advantages[:, None] * scores).sum(dim=0) / len(rewards)


@given(outcomes, st.lists(st.integers(1, 4), min_size=5, max_size=5), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_prompts_part_in_the_update_does_not_grow_with_its_rollouts(groups, times, alpha):
    """A group with each response several times over is the same prompt seen more often. Its part, of one prompt among
    B, is that of the group as it was: with whatever sizes, the update is the mean over prompts of their groups' own.
    These groups all have the gain of a small one, so the second factor is 1 here."""
    gsd, size = DIAL | {"alpha": alpha}, 2
    rewards, labels, rollouts, scores, own = [], [], [], [], []
    generator = torch.Generator().manual_seed(0)
    for number, group in enumerate(groups):
        group = [round(value, 1) for value in group]
        size = len(group) * times[number]
        of_responses = torch.randn(len(group), 3, dtype=torch.float64, generator=generator)
        own.append(update(group, of_responses, [0] * len(group), None, gsd))
        rewards += group * times[number]
        labels += [number] * size
        rollouts += [size] * size
        scores.append(of_responses.repeat(times[number], 1))
    weighed = update(rewards, torch.cat(scores), labels, rollouts, gsd | {"budget": {}})
    torch.testing.assert_close(weighed, torch.stack(own).mean(dim=0), rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_weights_are_mean_size_over_size_and_add_up_to_the_rows(sizes, ignored):
    labels = [number for number, size in enumerate(sizes) for _ in range(size)] + [99] * ignored
    mask = torch.tensor([label != 99 for label in labels])
    rollouts = torch.tensor([0 if label == 99 else sizes[label] for label in labels])
    stats = group_stats(torch.zeros(len(labels)), labels, mask)
    weight = group_size_weights(rollouts, stats)
    slow = [1.0 if label == 99 else np.mean(sizes) / sizes[label] for label in labels]
    assert weight.tolist() == pytest.approx(slow)
    assert float(weight[mask].sum()) == pytest.approx(sum(sizes))


def test_equal_sizes_change_nothing_and_a_failed_rollout_weighs_as_it_does_with_equal_groups():
    rewards, labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]), [0, 0, 0, 0, 1, 1, 1]  # one of 4 failed
    ratio = gain_ratios(*np.array([[1, 3], [2, 8], [4, 4]]), 4, prior=(0.5, 0.5), **DIAL)
    columns = {"rollouts": torch.full((7,), 4), "gain_ratio": torch.from_numpy(ratio)[torch.tensor(labels)]}
    plain = chain.advantages(rewards, labels, DIAL)
    assert torch.equal(chain.advantages(rewards, labels, DIAL | {"budget": {}}, columns=columns), plain)


def test_a_trainer_that_does_not_say_what_was_asked_for_is_refused():
    """verl's own modes run our estimator too, and know nothing of a budget."""
    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.budget .*rollouts") as refused:
        chain.advantages(torch.tensor([0.0, 1.0]), [0, 0], DIAL | {"budget": {}})
    assert isinstance(refused.value.__cause__, ValueError)


@pytest.mark.parametrize(("rollouts", "row"), [([2, 3, 2], 0), ([2, 2, 0], 2), ([2, 2, float("nan")], 2)])
def test_rollouts_that_are_no_groups_are_named(rollouts, row):
    stats = group_stats(torch.zeros(3), ["a", "a", "b"])
    with pytest.raises(ValueError, match=rf"rollouts\[{row}\] is"):
        group_size_weights(torch.tensor(rollouts), stats)


# The expected part of a prompt in the update, from all outcomes of its responses

PRIOR = (0.5, 0.5)
DIALS = [
    {"alpha": alpha, "ddof": ddof, "eps": eps}
    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0)
    for ddof, eps in ((0, 0.0), (1, 1e-6), (1, 0.1))
]


def outcomes_of(size, values=(0.0, 1.0)):
    return torch.tensor(list(itertools.product(values, repeat=size)), dtype=torch.float64)


def parts(sizes, chances, scores, gsd, columns=None, values=(0.0, 1.0)):
    """(prompts,) expected part of each prompt in the update: the mean over all outcomes of sum_j A_j s_j / (B n).

    Args:
        chances, scores: for each prompt, what a response of each of ``values`` is likely to be, and its score.
        columns: name -> one entry per prompt.
    """
    joint = outcomes_of(sum(sizes), values)  # every outcome of all prompts' responses is a batch
    prompt = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = (torch.arange(len(joint))[:, None] * len(sizes) + prompt).flatten()
    of_rows = {name: entries[prompt].repeat(len(joint)) for name, entries in (columns or {}).items()}
    advantages = chain.advantages(joint.flatten(), labels, gsd, columns=of_rows).view_as(joint)
    values, chances, scores = (torch.tensor(of, dtype=torch.float64) for of in (values, chances, scores))
    value = torch.searchsorted(values, joint)
    terms = chances[prompt, value].prod(dim=1, keepdim=True) * advantages * scores[prompt, value] / sum(sizes)
    return torch.zeros(len(sizes), dtype=torch.float64).index_add(0, prompt, terms.sum(dim=0))


def bernoulli_parts(sizes, rates, gsd, columns=None):
    """``parts`` of prompts with these solve rates. The scores are those of a logit."""
    chances = [[1 - p, p] for p in rates]
    return parts(sizes, chances, [[-p, 1 - p] for p in rates], gsd, columns)


def weighed(sizes, correct, total, gsd):
    """The columns of a budget for prompts with these counts, and the section that uses them."""
    mean = sum(sizes) // len(sizes)
    ratio = gain_ratios(np.array(correct), np.array(total), np.array(sizes), mean, prior=PRIOR, **gsd)
    columns = {"rollouts": torch.tensor(sizes), "gain_ratio": torch.from_numpy(ratio)}
    return gsd | {"budget": {}}, columns


@pytest.mark.parametrize("sizes", [(2, 4), (2, 10), (5, 3), (2, 4, 6)], ids=str)
@pytest.mark.parametrize("dial", [dial for dial in DIALS if dial["alpha"] == 0], ids=str)
def test_at_alpha_0_the_expected_part_of_every_prompt_is_that_with_equal_groups(sizes, dial):
    """For every solve rate, whatever the budget assumed: the factor is (n-1) / (G-1)."""
    equal, rates = [sum(sizes) // len(sizes)] * len(sizes), [0.02, 0.5, 0.9][: len(sizes)]
    for counts in ((0, 0), (0, 9), (3, 4)):
        gsd, columns = weighed(sizes, *([count] * len(sizes) for count in counts), dial)
        torch.testing.assert_close(
            bernoulli_parts(sizes, rates, gsd, columns), bernoulli_parts(equal, rates, dial), rtol=1e-9, atol=0
        )
        weights = columns["gain_ratio"] * equal[0] / columns["rollouts"]
        assert weights.tolist() == pytest.approx([(equal[0] - 1) / (size - 1) for size in sizes])


def test_at_alpha_0_the_expected_part_is_exact_for_graded_rewards():
    values, dial = (0.0, 0.3, 1.0), DIAL | {"alpha": 0.0}
    chances, scores = [[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]], [[-1.0, 1.0, -1.0], [0.5, -2.0, 0.5]]
    for chance, score in zip(chances, scores, strict=True):
        assert np.dot(chance, score) == pytest.approx(0), "as the scores of every policy"
    gsd, columns = weighed((2, 4), (0, 2), (3, 4), dial)
    adaptive = parts((2, 4), chances, scores, gsd, columns, values)
    torch.testing.assert_close(adaptive, parts((3, 3), chances, scores, dial, values=values), rtol=1e-9, atol=0)


@pytest.mark.parametrize("counts", [(0.0, 0.0), (0.0, 8.0), (4.0, 8.0), (2.5, 3.5)], ids=str)
@pytest.mark.parametrize("dial", DIALS, ids=str)
def test_the_expected_part_of_a_prompt_is_exact_on_average_over_the_budgets_posterior(dial, counts):
    correct, total = counts
    sizes, equal = (2, 8), (5, 5)
    gsd, columns = weighed(sizes, [correct] * 2, [total] * 2, dial)
    # The mean over the posterior is a Gauss-Jacobi sum, which is exact for polynomials of the rate.
    a, b = PRIOR[0] + correct, PRIOR[1] + total - correct
    rates, chances = roots_sh_jacobi(8, a + b - 1, a)
    adaptive = sum(bernoulli_parts(sizes, [p, p], gsd, columns) * w for p, w in zip(rates, chances, strict=True))
    of_equal = sum(bernoulli_parts(equal, [p, p], dial) * w for p, w in zip(rates, chances, strict=True))
    torch.testing.assert_close(adaptive, of_equal, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dial", DIALS, ids=str)
def test_the_expected_part_of_a_prompt_is_exact_if_its_solve_rate_is_known(dial):
    sizes, rate, visits = (2, 8), 0.2, 1e7
    gsd, columns = weighed(sizes, [rate * visits] * 2, [visits] * 2, dial)
    torch.testing.assert_close(
        bernoulli_parts(sizes, [rate] * 2, gsd, columns), bernoulli_parts((5, 5), [rate] * 2, dial), rtol=1e-5, atol=0
    )


GRADED = {
    "tests passed, of 10": lambda random, shape: random.binomial(10, 0.6, shape) / 10,
    "tests passed, of 3": lambda random, shape: random.binomial(3, 0.3, shape) / 3,
    "a judge's score": lambda random, shape: np.clip(0.8 + 0.05 * random.standard_normal(shape), 0, 1),
    "uniform": lambda random, shape: random.random(shape),
    "none, half or all": lambda random, shape: random.integers(0, 3, shape) / 2,
}


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("verifier", GRADED)
def test_the_expected_part_of_a_prompt_with_partial_credit_is_nearly_that_with_equal_groups(verifier, alpha):
    """Prompts with few rollouts weighed up to 1.6 times as much, as if rewards were 0 or 1."""
    random, equal, dial = np.random.default_rng(0), 8, {"alpha": alpha, "ddof": 1, "eps": 1e-6}
    seen = GRADED[verifier](random, 4000)
    counts = (np.array([value]) for value in (seen.sum(), seen.size, (seen * (1 - seen)).sum()))
    correct, total, partial = (80 / 4000 * count for count in counts)

    def gain(size):
        rewards = torch.from_numpy(GRADED[verifier](random, (20_000, size)))
        advantages = chain.advantages(rewards.flatten(), torch.arange(20_000).repeat_interleave(size), dial)
        return float((advantages.view_as(rewards) * rewards).mean())

    gain_of_equal = gain(equal)
    for size in (2, 4, 16, 24):
        (ratio,) = gain_ratios(correct, total, np.array([size]), equal, prior=PRIOR, partial=partial, **dial)
        assert ratio * gain(size) / gain_of_equal == pytest.approx(1, abs=0.08)


def test_the_gain_of_normal_verdicts_is_that_of_the_chi_distribution():
    """Equal to a sum over a fine grid of the distribution of sqrt(G) sigma, and finite for every alpha."""
    tiny = {"prior": (1e-9, 1e-9), "partial": np.array([2500 - 1e-6]), "eps": 0.0}  # a spread of nearly 0: w is 0
    for alpha, size, ddof in itertools.product((-1.0, 0.0, 1.0, 1.5), (2, 3, 9), (0, 1)):
        of_sizes = []
        for group_size in (8, size):
            grid = np.linspace(0, 20, 40_001)[1:]
            sigma = grid / np.sqrt(group_size)
            values = sigma**2 / (sigma * np.sqrt(group_size / (group_size - ddof))) ** alpha
            of_sizes.append(np.sum(values * chi.pdf(grid, group_size - 1)))
        (ratio,) = gain_ratios(np.array([5000.0]), np.array([1e4]), np.array([size]), 8, alpha=alpha, ddof=ddof, **tiny)
        assert ratio == pytest.approx(of_sizes[0] / of_sizes[1], rel=2e-3)
    (ratio,) = gain_ratios(np.array([5000.0]), np.array([1e4]), np.array([2]), 8, alpha=5.0, ddof=0, **tiny)
    assert ratio == pytest.approx(1), "as at alpha 2"


# Rewards with a term beside the verdict

LENGTHS = (-0.3, 0.0)
#: Name -> (rewards, (p of a right response) -> their probabilities, bounds of the parts at alpha 1).
SHAPED = {
    "length penalty": (
        (*LENGTHS, *(1 + term for term in LENGTHS)),
        lambda p: np.outer([1 - p, p], [0.5, 0.5]).ravel(),
        (0.9, 1.03),
    ),
    "a fifth is cut off": (
        (-0.5, 0.0, 0.5, 1.0),
        lambda p: np.outer([1 - p, p], [0.2, 0.8]).ravel(),
        (0.81, 1.04),
    ),
    "share of 3 tests passed": ((0.0, 1 / 3, 2 / 3, 1.0), lambda p: tests_passed(p ** (1 / 3)), (0.89, 1.03)),
}


def tests_passed(rate):
    return np.array([math.comb(3, n) * rate**n * (1 - rate) ** (3 - n) for n in range(4)])


def is_right(rewards):
    """A response is right if its reward is that of a right one of ``SHAPED``, or if all tests passed."""
    return (rewards >= 0.5) & ~np.isclose(rewards, 2 / 3)


def exact_gain(values, chances, size, alpha):
    """E[sum_j A_j R_j] / G of groups of ``size``, over the numbers of responses with each of ``values``."""
    total = 0.0
    for split in itertools.combinations(range(size + len(values) - 1), len(values) - 1):
        counts = np.diff((-1, *split, size + len(values) - 1)) - 1
        spread = np.repeat(values, counts).std()
        if len(np.flatnonzero(counts)) > 1:
            log_chance = math.lgamma(size + 1) - sum(map(math.lgamma, counts + 1)) + counts @ np.log(chances)
            total += math.exp(log_chance) * spread**2 / (spread * math.sqrt(size / (size - 1))) ** alpha
    return total


def shaped_groups(values, chances, number=400):
    """Groups of 8 of a data source whose prompts have a solve rate of a tenth and a half."""
    random = np.random.default_rng(0)
    rewards = [random.choice(values, 8, p=chances(0.1 if group % 2 else 0.5)) for group in range(number)]
    return [
        Group(f"uid{at}", "math", at, row, is_right(row).astype(float), np.ones(8, np.int64))
        for at, row in enumerate(rewards)
    ]


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("reward", SHAPED)
def test_the_expected_part_of_a_prompt_with_a_shaped_reward_is_nearly_that_with_equal_groups(reward, alpha):
    """By the verdicts alone, parts were 0.8 to 1.4 of that at alpha 1."""
    values, chances, (least, most) = SHAPED[reward]
    terms = term_variance(shaped_groups(values, chances))
    known = {"prior": PRIOR, "alpha": alpha, "ddof": 1, "eps": 0.0}
    with_term, of_verdicts = [], []
    for rate, size in itertools.product((0.02, 0.1, 0.5), (2, 4, 12)):
        gains = [exact_gain(values, chances(rate), responses, alpha) for responses in (size, 8)]
        for found, variance in ((with_term, terms), (of_verdicts, 0.0)):
            counts = np.array([rate * 1e7]), np.array([1e7]), np.array([size])
            found.append(gain_ratios(*counts, 8, terms=variance, **known)[0] * gains[0] / gains[1])
    errors, errors_before = (np.abs(np.log(found)) for found in (with_term, of_verdicts))
    if alpha == 0:
        assert with_term == pytest.approx(np.ones(len(with_term)), rel=1e-6)
        return
    assert errors.mean() < 0.6 * errors_before.mean()
    if alpha == 1:
        assert least < min(with_term) and max(with_term) < most and errors_before.max() > 0.2


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0])
def test_the_gain_with_a_normal_term_is_exact(alpha):
    random, rate, spread, gains = np.random.default_rng(0), 0.2, 0.3, []
    for size in (5, 2):
        shape = 400_000, size
        rewards = (random.random(shape) < rate) + spread * random.standard_normal(shape)
        gains.append(np.mean(rewards.std(axis=1) ** (2 - alpha)))
    counts, known = (np.array([rate * 1e8]), np.array([1e8]), np.array([2])), {"prior": PRIOR, "ddof": 0, "eps": 0.0}
    (ratio,) = gain_ratios(*counts, 5, terms=spread**2, alpha=alpha, **known)
    assert ratio == pytest.approx(gains[0] / gains[1], rel=0.01)


def one_group(rewards, verdicts):
    rewards, verdicts = np.array(rewards, dtype=float), np.array(verdicts, dtype=float)
    return Group("uid", "math", 0, rewards, verdicts, np.ones(len(rewards), np.int64))


def test_the_variance_of_a_term_is_zero_if_the_verdict_is_the_reward_and_has_no_scale():
    random = np.random.default_rng(0)
    verdicts = (random.random((300, 8)) < random.random((300, 1))).astype(float)
    assert term_variance([one_group(row, row) for row in verdicts]) == 0
    rounded = np.float32(0.1) + np.float32(0.7) * verdicts.astype(np.float32)
    assert term_variance([one_group(*rows) for rows in zip(rounded, verdicts, strict=True)]) == 0
    assert term_variance([]) == term_variance([one_group([0.3], [1])]) == 0
    terms = 0.2 * random.standard_normal(verdicts.shape)
    for scale, start in ((1.0, 0.0), (40.0, -20.0)):
        rewards = start + scale * (verdicts + terms)
        found = term_variance([one_group(*rows) for rows in zip(rewards, verdicts, strict=True)])
        assert found == pytest.approx(0.04, rel=0.1)
    rewards = verdicts + terms
    rewards[0, 0] -= 20
    found = term_variance([one_group(*rows) for rows in zip(rewards, verdicts, strict=True)])
    assert found < 0.06, "one extreme reward; its variance alone would be 0.2"
    assert term_variance([one_group(row, [0] * 8) for row in terms]) == pytest.approx(0.04, rel=0.1), "none is right"
    unrelated = [one_group([0.0, 1.0, 0.0, 1.0], [0, 0, 1, 1])]
    assert term_variance(unrelated) == pytest.approx(1e6)


def test_a_term_of_one_data_source_changes_no_prompt_of_another():
    store, keys = PromptStore(), [("math", 1), ("code", 1)]
    for key in keys:
        store.observe(key, 1, 8, step=1)
    budget = Budget({"minimum": 2}, services(8, store))
    planned(budget, keys)
    budget._requested = dict.fromkeys(budget._requested, 4)
    plain = [0.0, 0.0, 1.0, 1.0]
    shaped = [0.0, -0.4, 1.0, 0.8]
    groups = [
        Group(f"uid{at}", *key, np.array(rewards), np.array(plain), np.ones(4, np.int64))
        for at, (key, rewards) in enumerate(zip(keys, (plain, shaped), strict=True))
    ]
    ratios = budget.stage_inputs([Member(group, 0) for group in groups], groups)["gain_ratio"].tolist()
    expected = [
        gain_ratios(*np.array([[1], [8], [4]]), 8, prior=PRIOR, terms=term_variance([group]), **DIAL)[0]
        for group in groups
    ]
    assert ratios == pytest.approx(expected) and abs(ratios[0] - ratios[1]) > 0.01


# The extension


def services(group_size, store, step=1):
    """What a budget reads of a run."""
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": group_size}}, "algorithm": {"gsd": DIAL}})
    return SimpleNamespace(config=config, prompts=store, step=step)


def planned(budget, keys):
    """The rollouts that ``budget`` requests, by uid, and the metrics of that."""
    uids = [f"uid{number}" for number in range(len(keys))]
    visits = Visits(uids, keys, {"index": list(range(len(keys)))}, 8)
    budget.before_rollout(visits)
    return dict(zip(uids, visits.requested.tolist(), strict=True)), budget.end_step([])


keys_seen = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 8), st.integers(1, 8)), max_size=30)


@given(
    keys_seen,
    st.sampled_from(["expected_std", "mixed"]),
    st.none() | st.integers(9, 20),
    st.none() | st.floats(0.5, 100),
)
def test_every_batch_has_as_many_rollouts_as_with_equal_groups(seen, objective, maximum, half_life):
    section = {"objective": objective, "minimum": 3, "maximum": maximum, "half_life": half_life}
    settings, store = BudgetSettings.of(section), PromptStore(half_life=half_life)
    for step, (index, correct, total) in enumerate(seen):
        store.observe(("math", index), min(correct, total), total, step)
    keys = [("math", index) for index in range(10)]
    asked, metrics = planned(Budget(section, services(8, store, step=len(seen))), keys)
    sizes = list(asked.values())
    assert sum(sizes) == 8 * len(keys) and min(sizes) >= 3 and max(sizes) <= (maximum or 80)
    silent = posterior_silent_rate(*store.recent(keys, len(seen)), np.array(sizes), settings.prior)
    assert metrics["budget/mixed/expected"] == pytest.approx(1 - np.mean(silent))
    if objective == "mixed":
        assert metrics["budget/mixed/expected"] >= metrics["budget/mixed/expected_if_equal"] - 1e-9
    assert metrics["budget/share/floor"] == sizes.count(3) / 10
    assert metrics["budget/share/known"] == len({index for index, _, _ in seen}) / 10
    assert ("budget/share/cap" in metrics) == (maximum is not None)
    assert metrics["budget/rollouts/p50"] == np.median(sizes)
    for name, syllable in itertools.product(metrics, ("max", "min", "sum", "total")):
        assert syllable not in name


def test_prompts_that_nobody_visited_have_equal_groups_and_what_is_known_of_them_counts_less_and_less():
    store = PromptStore()
    run = services(8, store)
    budget = Budget({"half_life": 10, "prior": [0.5, 0.25]}, run)
    assert store.half_life == 10 and store.prior == (0.5, 0.25), "the memory of prompts forgets as the budget says"
    budget = Budget({"half_life": 10}, run)
    keys = [("math", index) for index in range(4)]
    assert set(planned(budget, keys)[0].values()) == {8}
    for index, correct in enumerate((0, 4, 8, 5)):
        store.observe(("math", index), correct, 8, step=1)
    run.step = 2
    soon, _ = planned(budget, keys)
    assert soon["uid0"] == soon["uid2"] != soon["uid1"], "a rate and one minus it are worth the same"
    run.step = 1000
    assert set(planned(budget, keys)[0].values()) == {8}, "forgotten"


def test_prompts_with_equal_partial_credit_get_no_more_rollouts_than_settled_ones():
    store = PromptStore()
    budget, keys = Budget({"half_life": None}, services(8, store, step=8)), [("math", index) for index in range(4)]
    for step in range(8):
        for key, (correct, partial) in zip(keys, [(4, 2.0), (4, 0.0), (1, 0.0), (8, 0.0)], strict=True):
            store.observe(key, correct, 8, step, partial)
    asked, metrics = planned(budget, keys)
    assert asked["uid0"] <= asked["uid3"] < asked["uid2"]
    assert not [name for name in metrics if "mixed" in name], "two verdicts with partial credit nearly always differ"
    _, metrics = planned(budget, keys[1:])
    assert metrics["budget/mixed/expected_if_equal"] < 0.6, "the last prompt is silent"


def test_the_objective_mixed_rejects_partial_credit_in_the_first_step():
    group = Group("uid0", "math", 1, np.zeros(2), np.array([1.0, 0.25]), np.ones(2, np.int64))
    for objective in ("mixed", "expected_std"):
        budget = Budget({"objective": objective}, services(2, PromptStore()))
        planned(budget, [("math", 1)])
        if objective == "mixed":
            with pytest.raises(ValueError, match=r"objective=mixed .*index=1 has acc=0\.25\b.*objective=expected_std"):
                budget.stage_inputs([Member(group, 0)], [group])
        else:
            assert budget.stage_inputs([Member(group, 0)], [group])["rollouts"].tolist() == [2]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("correct", [0, 20])
def test_a_demonstration_has_the_advantage_that_it_has_with_equal_groups(alpha, correct):
    """Its group is mixed for certain. The chance of a mixed group made it 1.6 times as large on unsolved prompts."""
    store, dial = PromptStore(), DIAL | {"alpha": alpha, "ddof": 1}
    counts = [correct, 16, 3, 40]
    for index, of_prompt in enumerate(counts):
        store.observe(("math", index), of_prompt, 40, step=1)
    run = services(8, store)
    run.config.algorithm.gsd = dial
    budget = Budget({}, run)
    visits = Visits([f"uid{index}" for index in range(4)], [("math", i) for i in range(4)], {"index": [0, 1, 2, 3]}, 8)
    budget.before_rollout(visits)
    sizes = visits.requested.tolist()
    assert sizes[0] != 8
    groups = [
        Group(uid, *key, *np.zeros((2, size)), np.ones(size, np.int64), demonstrations=int(number == 0))
        for number, (uid, key, size) in enumerate(zip(visits.uids, visits.keys, sizes, strict=True))
    ]
    members = [Member(group, place) for group in groups for place in range(len(group.rewards))]
    rewards = torch.tensor([float(number == 0) for size in sizes for number in range(size)], dtype=torch.float64)
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    columns = budget.stage_inputs(members, groups)
    got = chain.advantages(rewards, labels, dial | {"budget": {}}, columns=columns, extensions={"budget": budget})
    equal = chain.advantages(torch.tensor([1.0] + [0.0] * 7, dtype=torch.float64), [0] * 8, dial)
    assert got[0].item() == pytest.approx(equal[0].item(), rel=1e-9)
    ratios = columns["gain_ratio"].tolist()
    wanted = gain_ratios(np.array(counts), np.full(4, 40), np.array(sizes), 8, prior=(0.5, 0.5), **dial)
    assert ratios[sizes[0] :: sizes[1]][0] == wanted[1], "a group without a demonstration"


@pytest.mark.parametrize("accuracy", [-1.0, 1.5, np.nan])
def test_a_response_without_an_accuracy_ends_the_run_before_its_update(accuracy):
    budget = Budget({}, services(2, PromptStore()))
    planned(budget, [("math", 1)])
    group = Group("uid0", "math", 1, np.zeros(2), np.array([1.0, accuracy]), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=rf"algorithm\.gsd\.budget .*index=1 has acc={accuracy}\."):
        budget.stage_inputs([Member(group, 0)], [group])


def test_a_source_that_a_checkpoint_left_without_accuracies_ends_the_run_before_its_update():
    """Its prompts would stay unknown for the whole run, although the reward function is right now."""
    store = PromptStore()
    store.leave_out("maths")
    budget = Budget({}, services(2, store))
    planned(budget, [("maths", 1)])
    group = Group("uid0", "maths", 1, np.zeros(2), np.array([1.0, 0.0]), np.ones(2, np.int64))
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.budget .*data_source=maths.*algorithm\.gsd\.state=fresh"):
        budget.stage_inputs([Member(group, 0)], [group])


def test_a_group_is_known_by_what_was_asked_for_whatever_came_of_it():
    budget = Budget({}, services(4, PromptStore()))
    planned(budget, [("math", 1), ("math", 2)])
    group = Group("uid0", "math", 1, np.zeros(3), np.zeros(3), np.ones(3, np.int64))  # one of 4 failed
    assert budget.on_group_left(group, "trained").rollouts_requested == 4
    members = [Member(group, 0), None, Member(group, 2)]
    columns = budget.stage_inputs(members, [group])
    assert columns["rollouts"].tolist() == [4, 0, 4] and columns["gain_ratio"].tolist() == [1, 1, 1]
    assert budget.record(group) == budget.record(group) == {"asked": 4}
    budget.end_step([group])
    with pytest.raises(KeyError):  # a run keeps nothing of what has left
        budget.record(group)


def test_a_prompts_gain_is_what_earlier_visits_tell_and_the_dial_of_the_run():
    store = PromptStore()
    for index, correct in enumerate((0, 4, 8)):
        store.observe(("math", index), correct, 8, step=1)
    run = services(8, store)
    run.config.algorithm.gsd = DIAL | {"alpha": 0.5, "ddof": 1, "eps": 0.01}
    budget, keys = Budget({"prior": [1.0, 2.0]}, run), [("math", index) for index in range(4)]
    visits = Visits([f"uid{index}" for index in range(4)], keys, {"index": list(range(4))}, 8)
    budget.before_rollout(visits)
    groups = [
        Group(uid, *key, *np.zeros((2, 2)), np.ones(2, np.int64)) for uid, key in zip(visits.uids, keys, strict=True)
    ]
    found = budget.stage_inputs([Member(group, 0) for group in groups], groups)
    correct, total = store.recent(keys, 1)
    wanted = gain_ratios(correct, total, visits.requested, 8, prior=(1.0, 2.0), alpha=0.5, ddof=1, eps=0.01)
    assert found["gain_ratio"].tolist() == wanted.tolist() and len(set(visits.requested.tolist())) > 1
    weight = budget.weight(chain.Rows(torch.zeros(4), group_stats(torch.zeros(4), visits.uids), found), torch.zeros(4))
    assert weight.tolist() == pytest.approx(8 / visits.requested * wanted)


def test_a_column_of_somebody_elses_is_an_error():
    visits = Visits(["uid0"], [("math", 1)], {"__rollout_n__": torch.tensor([3])}, 4)
    with pytest.raises(ValueError, match=r"__rollout_n__.*algorithm\.gsd\.budget"):
        Budget({}, services(4, PromptStore())).before_rollout(visits)
    assert visits.requested is None


# The section


@pytest.fixture
def check(compose_fast, tiny_task):
    def check(*words, algo="grpo"):
        words = [f"algo={algo}", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        validate.validate(*compose_fast("budget=adaptive", *words))

    return check


@pytest.mark.parametrize("algo", ["grpo", "hadw_gspo", "dagrpo"])
def test_what_goes_with_a_budget(check, algo):
    check(algo=algo)
    check(f"{BUDGET}.maximum=20", f"{BUDGET}.prior=[0.5,0.5]", f"{BUDGET}.half_life=null", algo=algo)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"objective": "fidelity"}, r"^objective=fidelity: .*expected_std, mixed"),
        ({"prior": 1}, r"^prior=1: .*\[a,b\]"),
        ({"prior": [1, 0]}, r"^prior=\[1, 0\]: .*\[a,b\]"),
        ({"prior": [1]}, r"^prior=\[1\]: .*\[a,b\]"),
        ({"prior": [1, True]}, r"^prior=\[1, True\]: .*\[a,b\]"),
        ({"minimum": 1}, r"^minimum=1: .*2"),
        ({"minimum": 2.5}, r"^minimum=2\.5: .*2"),
        ({"minimum": None}, r"^minimum=null: "),
        ({"maximum": "many"}, r"^maximum=many: .*null"),
        ({"half_life": 0}, r"^half_life=0: .*null"),
        ({"floor": 2}, r"^floor: .*minimum"),
        (3, r"^3 is not a section\. .*null"),
    ],
)
def test_mistakes_in_the_section_are_named(section, message):
    with pytest.raises(ValueError, match=message):
        BudgetSettings.of(section)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ([f"{BUDGET}.half_life=0"], [r"budget\.half_life=0: .*null"]),
        ([f"{BUDGET}.maximum=0"], [r"budget\.maximum=0 with actor_rollout_ref\.rollout\.n"]),
        ([f"{BUDGET}.minimum=8"], [r"budget\.minimum=8 with actor_rollout_ref\.rollout\.n=8: "]),
        ([f"{BUDGET}.maximum=8"], [r"budget\.maximum=8 with actor_rollout_ref\.rollout\.n=8: "]),
        (["trainer.v1.trainer_mode=sync"], [r"trainer_mode=sync: .*trainer_mode=gsd_sync"]),
        (
            [
                "+trainer.v1.sync.parameter_sync_step=2",
                "trainer.v1.trainer_mode=gsd_colocate_async",
                "algorithm.filter_groups.enable=true",
                "trainer.v1.sampler.sync_refill_failed_groups=true",
            ],
            [
                r"parameter_sync_step=2: .*parameter_sync_step=1, .*budget=uniform",
                r"trainer_mode=gsd_colocate_async: .*trainer_mode=gsd_sync, .*budget=uniform",
                r"filter_groups\.enable=true: .*algorithm\.filter_groups\.enable=false, .*budget=uniform",
                r"sync_refill_failed_groups=true: .*false, .*budget=uniform",
            ],
        ),
    ],
)
def test_mistakes_are_named_with_what_to_write(check, words, messages):
    with pytest.raises(ConfigError) as refused:
        check(*words)
    problems = str(refused.value).splitlines()
    for message in messages:
        assert any(re.search(message, problem) for problem in problems), message


@pytest.mark.parametrize(
    ("algo", "words", "message"),
    [
        ("dapo", (), r"filter_groups\.enable=true: "),
        ("gvpo", ("algorithm.gsd.gvpo.grouping=prepass",), r"gsd\.budget: algorithm\.gsd\.gvpo .*budget=uniform"),
        ("dagrpo", (f"{DAGRPO}.demonstrations.mode=always",), r"gsd\.budget: .*mode=always .*all_fail, .*budget="),
    ],
)
def test_algorithms_whose_groups_have_sizes_of_their_own_are_refused(check, algo, words, message):
    with pytest.raises(ConfigError) as refused:
        check(*words, algo=algo)
    (said,) = str(refused.value).splitlines()
    assert re.search(message, said)


def test_training_data_with_sizes_of_its_own_is_refused(check, tiny_task, tmp_path):
    rows = pq.read_table(tiny_task / "train.parquet")
    pq.write_table(rows.append_column("__rollout_n__", [[4] * len(rows)]), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=r"data\.train_files=.*train\.parquet .*__rollout_n__"):
        check(f"data.train_files={tmp_path}/train.parquet")
    check(f"data.val_files={tmp_path}/train.parquet")  # verl's own, for validation


def test_uniform_is_no_budget(compose_fast, tiny_task):
    words = ("algo=dapo", "task=arithmetic", "hardware=cpu", "budget=uniform", f"task.directory={tiny_task}")
    config, line = compose_fast(*words)
    validate.validate(config, line)
    assert config.algorithm.gsd.budget is None


def test_the_audit_says_what_a_budget_does_and_where_it_does_nothing(compose_fast):
    config, _ = compose_fast("algo=hadw_gspo", "task=arithmetic", "hardware=cpu", "budget=adaptive")
    assert "(budget)" in "\n".join(audit(config).lines())
    assert audit(config).warnings == ()
    config.trainer.total_epochs = 1
    (warning,) = audit(config).warnings
    assert "total_epochs=1: " in warning


def test_the_defaults_are_those_of_the_file():
    from verl_gsd.config import load

    section = load("budget", "adaptive").algorithm.gsd.budget
    assert BudgetSettings.of(section) == BudgetSettings()
