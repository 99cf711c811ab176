"""The dial against a slow reference, its special cases, and the gradient it promises."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.dial import centre, dial_advantage, floor_metrics, gain_of_sigma, reward_scale
from verl_gsd.groups import group_stats

alphas = st.floats(-3, 3) | st.sampled_from([0.0, 1.0, 2.0, -1.0])
rewards = st.sampled_from([0.0, 1.0]) | st.floats(-10, 10, width=32).map(lambda value: round(value, 3))
batches = st.lists(st.tuples(st.integers(0, 4), rewards), min_size=1, max_size=40)


def reference_scale(rows):
    """Of (label, reward) per response: the range of the ordinary rewards, a tenth of their size, or a usual group's."""
    values = sorted(reward for _, reward in rows)
    dropped = len(values) // 100
    low, *_, high = [*values[dropped : len(values) - dropped], values[-1 - dropped]]
    groups = {}
    for label, reward in rows:
        groups.setdefault(label, []).append(reward)
    ranges = sorted(max(group) - min(group) for group in groups.values() if max(group) > min(group))
    usual = ranges[(len(ranges) - 1) // 2] if ranges else 0.0
    return max(high - low, abs(high) / 10, abs(low) / 10, usual)


def reference(rows, alpha, ddof, eps):
    scale = reference_scale(rows)
    result = []
    for label, reward in rows:
        members = [other for name, other in rows if name == label]
        if len(set(members)) == 1:
            result.append(0.0)
            continue
        mu = math.fsum(members) / len(members)
        sigma = math.sqrt(math.fsum((other - mu) ** 2 for other in members) / (len(members) - ddof))
        floor = scale / (2 * math.sqrt(len(members))) if alpha > 1 else 0.0
        result.append((reward - mu) / ((sigma + eps) * (max(sigma, floor) + eps) ** (alpha - 1)))
    return result


@given(batches, alphas, st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-6, 0.1]))
def test_advantages_are_the_formula(rows, alpha, ddof, eps):
    index, values = zip(*rows, strict=True)
    got = dial_advantage(torch.tensor(values, dtype=torch.float64), index, alpha=alpha, ddof=ddof, eps=eps)
    assert got.tolist() == pytest.approx(reference(rows, alpha, ddof, eps), rel=1e-9, abs=1e-9)


@given(batches, alphas)
def test_advantages_of_a_group_sum_to_zero(rows, alpha):
    index, values = zip(*rows, strict=True)
    got = dial_advantage(torch.tensor(values, dtype=torch.float64), index, alpha=alpha, eps=1e-3)
    for label in set(index):
        members = [value for name, value in zip(index, got.tolist(), strict=True) if name == label]
        assert sum(members) == pytest.approx(0, abs=1e-9 * max(1.0, *map(abs, members)) * len(members))


def test_alpha_0_is_dr_grpo_and_alpha_1_is_grpo():
    values = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert dial_advantage(values, [0] * 4, alpha=0).tolist() == [0.75, -0.25, -0.25, -0.25]
    # A+ = sqrt((G-k)/k), A- = -sqrt(k/(G-k))
    exact = [math.sqrt(3)] + [-math.sqrt(1 / 3)] * 3
    assert dial_advantage(values, [0] * 4, ddof=0, eps=0).tolist() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("correct", range(1, 8))
def test_mean_absolute_advantage_and_sum_of_squares_for_binary_rewards(correct):
    values = torch.tensor([1.0] * correct + [0.0] * (8 - correct), dtype=torch.float64)
    sigma = math.sqrt(correct * (8 - correct)) / 8
    grpo, dr = (dial_advantage(values, [0] * 8, alpha=alpha, ddof=0, eps=0) for alpha in (1, 0))
    assert grpo.abs().mean().item() == pytest.approx(2 * sigma)
    assert dr.abs().mean().item() == pytest.approx(2 * sigma**2)
    assert grpo.square().sum().item() == pytest.approx(8), "the same for every mixed group: it says nothing"


@pytest.mark.parametrize("size", [2, 3])
def test_grpo_and_dr_grpo_differ_by_a_constant_in_groups_of_two_and_three(size):
    ratios = set()
    for correct in range(1, size):
        values = torch.tensor([1.0] * correct + [0.0] * (size - correct), dtype=torch.float64)
        grpo, dr = (dial_advantage(values, [0] * size, alpha=alpha, ddof=0, eps=0) for alpha in (1, 0))
        ratios |= {round(ratio, 9) for ratio in (grpo / dr).tolist()}
    assert len(ratios) == 1


def test_rloo_is_dr_grpo_times_g_over_g_minus_1():
    values = torch.tensor([0.3, 0.9, 0.1, 0.4, 0.8], dtype=torch.float64)
    rloo = [value - (values.sum().item() - value) / 4 for value in values.tolist()]
    assert dial_advantage(values, [0] * 5, alpha=0).tolist() == pytest.approx([4 / 5 * one for one in rloo])


def test_groups_that_are_unanimous_or_of_one_get_exactly_zero():
    values = torch.tensor([0.7] * 7 + [0.3])
    for alpha in (-2, 0, 1, 5):
        for eps in (0.0, 1e-6):
            assert dial_advantage(values, [0] * 7 + [1], alpha=alpha, eps=eps).tolist() == [0.0] * 8


def test_a_masked_row_gets_zero_and_does_not_count():
    values = torch.tensor([1.0, 0.0, 1.0, 0.0])
    mask = torch.tensor([True, True, False, True])
    got = dial_advantage(values, ["a"] * 4, mask=mask)
    assert got[2] == 0
    assert torch.equal(got[mask], dial_advantage(values[mask], ["a"] * 3))


def without_floor(values, labels, alpha, ddof, eps):
    """The paper's formula in the dial's own precision; the rewards (N,) have no unanimous group."""
    rewards, labels = torch.tensor(values), torch.tensor(labels)
    result = torch.zeros(len(rewards))
    for label in labels.unique():
        members = rewards[labels == label]
        mean = members.double().mean()
        sigma = (members.double() - mean).square().mean().sqrt() * math.sqrt(len(members) / (len(members) - ddof))
        divisor = (sigma.float() + eps).double() ** alpha
        result[labels == label] = ((members - mean.float()).double() / divisor).float()
    return result


two_values = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 0.1), (2.0, 3.0), (-0.5, 0.0)])
sizes = st.lists(
    st.integers(2, 600).flatmap(lambda k: st.tuples(st.just(k), st.integers(1, k - 1))), min_size=1, max_size=4
)


@given(two_values, sizes, st.floats(1.01, 3), st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-6]))
def test_two_reward_values_never_reach_the_floor(pair, groups, alpha, ddof, eps):
    """Bit for bit, in groups of any size and however few responses are right."""
    values = [pair[place < right] for size, right in groups for place in range(size)]
    labels = [number for number, (size, _) in enumerate(groups) for _ in range(size)]
    got = dial_advantage(torch.tensor(values), labels, alpha=alpha, ddof=ddof, eps=eps)
    assert torch.equal(got, without_floor(values, labels, alpha, ddof, eps))


grades = st.floats(0, 1).map(lambda value: round(value, 9))


@given(st.lists(st.lists(grades, min_size=2, max_size=16), min_size=1, max_size=5), st.floats(1.01, 3))
def test_no_graded_group_has_larger_advantages_than_the_floor_allows(groups, alpha):
    """Rewards from 0 to 1, in a batch that has both. The bound is 2^(alpha - 1) times the largest of a 0/1 group."""
    groups = [[0.0, 1.0], *groups]
    labels = [number for number, group in enumerate(groups) for _ in group]
    values = torch.tensor([value for group in groups for value in group], dtype=torch.float64)
    got = dial_advantage(values, labels, alpha=alpha, ddof=0, eps=0)
    for number, group in enumerate(groups):
        size, largest = (
            len(group),
            max(abs(value) for label, value in zip(labels, got.tolist(), strict=True) if label == number),
        )
        assert largest <= math.sqrt(size - 1) * (2 * math.sqrt(size)) ** (alpha - 1) * (1 + 1e-9)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    "values", [[0.83, 0.8301, 0.8299, 0.83], [0.7] * 7 + [0.7000001], [0.0] * 7 + [1e-4], [0.1 + 0.2, 0.3, 0.3, 0.3]]
)
def test_a_nearly_unanimous_group_does_not_dominate_a_batch(values, alpha):
    """Beside a group of its size with one right response, which has the largest advantages that 0 and 1 allow. Alone,
    its rewards are the scale."""
    batch, labels = torch.tensor([*values, 1.0] + [0.0] * (len(values) - 1)), [0] * len(values) + [1] * len(values)
    near, hardest = dial_advantage(batch, labels, alpha=alpha).abs().view(2, -1).amax(dim=1).tolist()
    assert near < 1.5 * 2 ** (alpha - 1) * hardest
    if max(values) > 0.1:
        assert dial_advantage(torch.tensor(values), [0] * len(values), alpha=alpha).abs().max() < 1e4


def half_right(groups=128, size=8):
    """Rewards of 0 and 1 with a solve rate per group, from hardest to easiest, and the groups' labels."""
    chances = torch.linspace(0.02, 0.98, groups)
    values = (torch.rand(groups, size, generator=torch.Generator().manual_seed(0)) < chances[:, None]).float()
    return values.flatten(), [number for number in range(groups) for _ in range(size)]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("outlier", [-100.0, -10.0, -1.0, 50.0])
@pytest.mark.parametrize("row", [0, 517, 1023])
def test_one_outlier_changes_no_other_group(outlier, row, alpha):
    """Of 1,024 rewards of 0 and 1, whatever the other rewards of its group are."""
    values, labels = half_right()
    changed = values.clone()
    changed[row] = outlier
    elsewhere = torch.tensor(labels) != labels[row]
    before, after = (dial_advantage(one, labels, alpha=alpha)[elsewhere] for one in (values, changed))
    assert torch.equal(after, before)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_one_outlier_changes_graded_groups_by_at_most_a_few_percent(alpha):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(128, 1, generator=generator) + 0.1 * torch.randn(128, 8, generator=generator)
    values, labels = values.double().clamp(0, 1).flatten(), [number for number in range(128) for _ in range(8)]
    before = dial_advantage(values, labels, alpha=alpha)
    for outlier in (-100.0, -10.0, 10.0, 1e6):
        changed = torch.cat([torch.tensor([outlier], dtype=torch.float64), values[1:]])
        after = dial_advantage(changed, labels, alpha=alpha)
        torch.testing.assert_close(after[8:], before[8:], rtol=0.03, atol=0)


@given(st.randoms(use_true_random=True), st.integers(1, 120), st.sampled_from([1e-3, 0.1, 1.0]), st.integers(0, 4))
def test_the_scale_is_that_of_the_slow_reference_and_bounds_the_advantages(random, n_groups, width, outliers):
    """Also in batches of more than 100 responses, of which the most extreme do not count."""
    groups = [
        [level + width * random.random() for _ in range(random.randint(2, 8))]
        for level in (random.random() for _ in range(n_groups))
    ]
    rows = [(number, value) for number, group in enumerate(groups) for value in group]
    for place in random.sample(range(len(rows)), min(outliers, len(rows))):
        rows[place] = rows[place][0], random.choice([-100.0, 1e4])
    labels, values = zip(*rows, strict=True)
    rewards = torch.tensor(values, dtype=torch.float64)
    scale = reward_scale(rewards, group_stats(rewards, labels))
    assert scale == pytest.approx(reference_scale(rows), rel=1e-12)
    got = dial_advantage(rewards, labels, alpha=2, ddof=0, eps=0)
    for (label, _), advantage in zip(rows, got.tolist(), strict=True):
        size = len(groups[label])
        assert abs(advantage) * scale <= 2 * math.sqrt(size * (size - 1)) * (1 + 1e-6)


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("around", [0.0, 0.7])
def test_many_nearly_unanimous_groups_do_not_set_the_scale(around, alpha):
    """121 groups with ranges of about 1e-4, and 7 with two right responses of eight."""
    noise = 1e-4 * torch.rand(121 * 8, generator=torch.Generator().manual_seed(2))
    values, labels = torch.cat([around + noise, torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0] * 7)]), list(range(128)) * 8
    advantages = dial_advantage(values, sorted(labels), alpha=alpha).abs()
    hardest = dial_advantage(torch.tensor([1.0] + [0.0] * 7), [0] * 8, alpha=alpha).abs().max()
    assert advantages[: 121 * 8].max() < 1.5 * 2 ** (alpha - 1) * hardest


@given(batches, st.sampled_from([0.125, 4.0, 1024.0]), st.floats(1.01, 3))
def test_rewards_times_c_have_advantages_times_c_to_the_1_minus_alpha(rows, factor, alpha):
    labels, values = zip(*rows, strict=True)
    rewards = torch.tensor(values, dtype=torch.float64)
    stats, scaled = group_stats(rewards, labels), group_stats(factor * rewards, labels)
    assert reward_scale(factor * rewards, scaled) == factor * reward_scale(rewards, stats)
    got = dial_advantage(factor * rewards, labels, alpha=alpha, eps=0)
    expected = dial_advantage(rewards, labels, alpha=alpha, eps=0) * factor ** (1 - alpha)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("values", "scale"), [([0.0, 1.0], 1.0), ([3.0, 3.0], 0.3), ([0.0, 0.0], 0.0), ([5.0], 0.5)])
def test_the_scale_of_the_smallest_batches(values, scale):
    rewards = torch.tensor(values)
    assert reward_scale(rewards, group_stats(rewards, [0] * len(values))) == pytest.approx(scale)


def test_with_two_reward_values_the_scale_is_their_difference_even_if_one_is_rare():
    rewards = torch.tensor([1.0] + [0.0] * 1599, dtype=torch.float64)
    stats = group_stats(rewards, [row // 8 for row in range(1600)])
    assert reward_scale(rewards, stats) == 1


def test_the_dial_has_no_jump_at_alpha_1():
    values, labels = torch.tensor([0.5, 0.5001, 0.5, 0.4998, 0.0, 1.0], dtype=torch.float64), [0, 0, 0, 0, 1, 1]
    grpo, beyond = (dial_advantage(values, labels, alpha=alpha) for alpha in (1.0, 1 + 1e-9))
    torch.testing.assert_close(beyond, grpo, rtol=1e-6, atol=0)


def test_metrics_of_the_floor_count_the_groups_that_it_changes():
    """Their sigmas have the divisor of the dial, and unanimous groups do not count."""
    values = [0.0, 1.0, 0.5, 0.5, 0.83, 0.8301, 0.4, 0.4, 0.9, 0.9002]
    rewards, index = torch.tensor(values), [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    stats = group_stats(rewards.double(), index)
    scale = reward_scale(rewards, stats)
    got = floor_metrics(stats, alpha=2.0, ddof=1, scale=scale)
    floors = [scale / (2 * math.sqrt(size)) for size in (4, 2, 2)]
    assert got.keys() == {"dial/floor/reward_scale", "dial/floor/sigma", "dial/floor/groups"}
    assert got["dial/floor/reward_scale"] == scale == 1
    assert got["dial/floor/sigma"] == pytest.approx(sum(floors) / 3)
    changed = dial_advantage(rewards, index, alpha=2.0) != without_floor(values, index, 2.0, 1, 1e-6)
    assert got["dial/floor/groups"] == len({index[row] for row in torch.nonzero(changed).flatten().tolist()}) == 2
    assert floor_metrics(stats, alpha=1.0, ddof=1, scale=scale) == {}
    assert floor_metrics(group_stats(rewards[6:8], [2, 2]), alpha=2.0, ddof=1, scale=1.0) == {}, "no mixed group"


def test_rows_of_no_group_do_not_set_the_scale_of_the_floor():
    values, labels = torch.tensor([0.5, 0.51, 0.5, 0.49, 9.0]), ["a"] * 4 + ["pad"]
    mask = torch.tensor([True] * 4 + [False])
    assert torch.equal(
        dial_advantage(values, labels, alpha=2, mask=mask)[:4], dial_advantage(values[:4], ["a"] * 4, alpha=2)
    )


@given(batches, alphas)
def test_the_gain_is_the_factor_of_the_advantages(rows, alpha):
    """A_i sigma^2 = (R_i - mu) gain, also where the floor holds."""
    labels, values = zip(*rows, strict=True)
    rewards = torch.tensor(values, dtype=torch.float64)
    stats = group_stats(rewards, labels)
    got = dial_advantage(rewards, labels, alpha=alpha, ddof=0, eps=0)
    gain = gain_of_sigma(stats.std, stats.size, alpha=alpha, scale=reward_scale(rewards, stats))
    expected = centre(rewards, stats) * stats.per_row(gain.masked_fill(stats.unanimous, 0))
    torch.testing.assert_close(got * stats.per_row(stats.std).square(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert dial_advantage(torch.tensor([0, 1], dtype=dtype), [0, 0]).dtype == dtype
    assert dial_advantage(torch.tensor([0, 1], dtype=torch.float16), [0, 0]).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"ddof": 2}, "ddof=2"),
        ({"eps": -1e-6}, "eps=-1e-06"),
        ({"alpha": 100.0, "eps": 0.0}, r"row 2\b.*alpha=100\.0\b.*\beps\b"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dial_advantage(torch.tensor([0.0, 1.0, 0.0, 0.01]), [0, 0, 1, 1], **settings)


@given(batches, alphas)
def test_float32_rewards_near_zero_lose_no_more_than_float32_rounding(rows, alpha):
    index, values = zip(*rows, strict=True)
    got = dial_advantage(torch.tensor(values), index, alpha=alpha, eps=1e-3)
    exact = dial_advantage(torch.tensor(values, dtype=torch.float32).double(), index, alpha=alpha, eps=1e-3)
    # mu is rounded to float32 before it is subtracted: an error of half an ulp of the largest reward, then divided.
    scale = max(abs(value) for value in values) * 6e-8 * max(20.0 ** -min(alpha, 0), 1e-3 ** -max(alpha, 0))
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=2 * scale + 1e-12)


def test_rewards_whose_spread_is_no_number_are_refused_and_not_silenced():
    with pytest.raises(ValueError, match=r"row 0\b.*rewards"):
        dial_advantage(torch.tensor([1e200, -1e200], dtype=torch.float64), [0, 0])
    large = dial_advantage(torch.tensor([1e30, -1e30]), [0, 0], alpha=2.0)
    assert large.tolist() == pytest.approx([5e-31, -5e-31], rel=1e-5)


class Policy(torch.nn.Module):
    """A softmax over five answers to one prompt, by a small network: no direction of its gradient is special."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5)).double()

    def forward(self, answers):
        return self.net(torch.linspace(-1, 1, 4).double()).log_softmax(0)[answers]

    def gradient(self, answers, weights):
        """d/d theta of (1/G) sum_i w_i log pi(y_i), flat."""
        self.zero_grad()
        (torch.as_tensor(weights) * self(answers)).mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters()])


@pytest.mark.parametrize("alpha", [1.0, 0.0, 2.0, -1.0, 0.5])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_gradient_is_sigma_to_the_2_minus_alpha_times_the_difference_of_mean_scores(alpha, shift):
    """Theorem 1 (alpha = 1) and its continuation: g = sigma^(2-alpha) (s+ - s-), whatever constant is added."""
    policy, answers = Policy(), torch.tensor([0, 1, 1, 2, 3, 4, 4, 0])
    right = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0], dtype=torch.float64)
    g = policy.gradient(answers, dial_advantage(right + shift, [0] * 8, alpha=alpha, ddof=0, eps=0))
    # A mean over the right (wrong) responses is the sum with weights G/k (G/(G-k)), divided by G.
    difference = policy.gradient(answers, right * 8 / 3) - policy.gradient(answers, (1 - right) * 8 / 5)
    sigma = math.sqrt(3 * 5) / 8
    assert g.norm() > 1e-3
    torch.testing.assert_close(g, sigma ** (2 - alpha) * difference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5])
def test_for_graded_rewards_the_gradient_is_the_regression_slope_of_score_on_reward(alpha):
    """g = sigma^(2-alpha) b with b = Cov(R, s) / Var(R)."""
    policy, answers = Policy(), torch.tensor([0, 1, 2, 3, 4, 2])
    graded = torch.tensor([0.1, 0.9, 0.4, 0.4, 0.75, 0.0], dtype=torch.float64)
    g = policy.gradient(answers, dial_advantage(graded, [0] * 6, alpha=alpha, ddof=0, eps=0))
    variance = graded.var(correction=0)
    slope = policy.gradient(answers, (graded - graded.mean()) / variance)
    torch.testing.assert_close(g, variance.sqrt() ** (2 - alpha) * slope, rtol=1e-9, atol=1e-12)


def test_ddof_1_scales_a_groups_gradient_by_a_power_of_its_size():
    values = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=torch.float64)
    for alpha in (0.0, 0.5, 1.0, 2.0):
        paper, verl = (dial_advantage(values, [0] * 6, alpha=alpha, ddof=ddof, eps=0) for ddof in (0, 1))
        torch.testing.assert_close(verl, (5 / 6) ** (alpha / 2) * paper)
