"""GVPO's mathematics: against a loop that spells it out, the properties it must have, and where it converges."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.algorithms.gvpo import maths
from verl_gsd.algorithms.gvpo.maths import gvpo_loss

BETA = 0.3


def spelled_out(s, rewards, labels, beta, normalizer="k-1"):
    """1/2 sum (beta (s - mean s) - A)^2 over the normaliser, averaged over groups of two or more; plain Python."""
    groups = [[row for row, label in enumerate(labels) if label == wanted] for wanted in dict.fromkeys(labels)]
    losses = []
    for rows in groups:
        k = len(rows)
        if k < 2:
            continue
        mean_s, mean_r = sum(s[row] for row in rows) / k, sum(rewards[row] for row in rows) / k
        squares = [(beta * (s[row] - mean_s) - (rewards[row] - mean_r)) ** 2 for row in rows]
        losses.append(0.5 * sum(squares) / {"k-1": k - 1, "k": k, "none": 1}[normalizer])
    return sum(losses) / len(losses) if losses else 0.0


def batch(seed=0, sizes=(4, 3, 2, 5), dtype=torch.float64):
    """Rows of groups of several sizes, in mixed order: (log-ratios, rewards, labels)."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    s, rewards = generator.normal(size=(2, len(labels)))
    return torch.tensor(s, dtype=dtype), torch.tensor(rewards, dtype=dtype), [f"prompt {label}" for label in labels]


def gradient(s, rewards, labels, **settings):
    s = s.clone().requires_grad_()
    loss, _ = gvpo_loss(s, rewards, labels, **settings)
    loss.backward()
    return s.grad


rows_of_groups = st.lists(
    st.tuples(st.integers(0, 3), st.floats(-5, 5, width=32), st.floats(-2, 2, width=32)), min_size=1, max_size=12
)


@given(rows_of_groups, st.sampled_from(["k-1", "k", "none"]))
@pytest.mark.filterwarnings("ignore:GVPO")
def test_the_loss_is_what_the_loop_says(rows, normalizer):
    labels, s, rewards = zip(*rows, strict=True)
    tensors = torch.tensor(s, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64)
    loss, metrics = gvpo_loss(*tensors, list(labels), beta=BETA, normalizer=normalizer)
    assert float(loss) == pytest.approx(spelled_out(s, rewards, labels, BETA, normalizer), rel=1e-10, abs=1e-12)
    if "gvpo/mse" in metrics:
        assert metrics["gvpo/mse"] == pytest.approx(2 * spelled_out(s, rewards, labels, BETA), rel=1e-10, abs=1e-12)


@given(rows_of_groups)
def test_weights_of_a_group_sum_to_zero(rows):
    labels, s, rewards = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    group = labels.long()
    found = maths.gvpo_weights(maths.centred(rewards, group), s, group, beta=BETA)
    for label in set(labels.tolist()):
        assert abs(float(found[labels == label].sum())) <= 1e-12
        if (labels == label).sum() == 1:
            assert float(found[labels == label]) == 0


def test_the_gradient_of_each_row_is_that_of_equation_8():
    s, rewards, labels = batch()
    found = gradient(s, rewards, labels, beta=BETA)
    n_groups = len(set(labels))
    for row, label in enumerate(labels):
        mine = torch.tensor([other == label for other in labels])
        weight = (rewards[row] - rewards[mine].mean()) - BETA * (s[row] - s[mine].mean())
        assert float(found[row]) == pytest.approx(float(-BETA * weight / (mine.sum() - 1) / n_groups), rel=1e-10)


def test_on_the_old_policy_it_is_the_mean_baseline_times_beta():
    _, rewards, labels = batch(sizes=(4, 4))
    found = gradient(torch.zeros(8, dtype=torch.float64), rewards, labels, beta=BETA)
    group = torch.tensor([int(label[-1]) for label in labels])
    advantages = maths.centred(rewards, group)
    torch.testing.assert_close(found, -BETA * advantages / 3 / 2, rtol=1e-12, atol=1e-15)


def test_no_constant_of_a_group_matters_nor_the_order_nor_rows_of_no_group():
    s, rewards, labels = batch()
    wanted, expected = gvpo_loss(s, rewards, labels)[0], gradient(s, rewards, labels)
    shift = torch.tensor([{"0": 3.0, "1": -7.0, "2": 0.5, "3": 11.0}[label[-1]] for label in labels])
    for moved_s, moved_rewards in ((s + shift, rewards), (s, rewards + shift)):
        torch.testing.assert_close(gvpo_loss(moved_s, moved_rewards, labels)[0], wanted, rtol=1e-10, atol=0)
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(1))
    shuffled = [labels[row] for row in order]
    torch.testing.assert_close(gradient(s[order], rewards[order], shuffled), expected[order], rtol=1e-10, atol=1e-15)
    # Padding: whatever stands there, NaN included.
    padded_s, padded_rewards = (torch.cat([values, torch.tensor([math.nan, 5.0])]) for values in (s, rewards))
    mask = torch.tensor([True] * len(s) + [False] * 2)
    found = gradient(padded_s, padded_rewards, [*labels, "prompt 0", "pad"], mask=mask)
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros(2)]), rtol=1e-12, atol=0)


def test_an_incomplete_group_is_centred_over_the_rows_that_are_there():
    s, rewards, labels = batch(sizes=(4, 4))
    mask = torch.ones(8, dtype=torch.bool)
    mask[labels.index("prompt 0")] = False
    kept = torch.nonzero(mask).flatten().tolist()
    found = gradient(s, rewards, labels, mask=mask)
    expected = gradient(s[kept], rewards[kept], [labels[row] for row in kept])
    torch.testing.assert_close(found[kept], expected, rtol=1e-12, atol=0)


def test_scaling_beta_and_rewards_scales_the_loss_by_the_square():
    s, rewards, labels = batch()
    once, thrice = gvpo_loss(s, rewards, labels, beta=0.1)[0], gvpo_loss(s, 3 * rewards, labels, beta=0.3)[0]
    torch.testing.assert_close(thrice, 9 * once, rtol=1e-12, atol=0)


def test_groups_of_one_alone_give_zero_with_a_counted_warning_and_a_gradient_of_zero():
    s = torch.tensor([1.0, 2.0], requires_grad=True)
    with pytest.warns(UserWarning, match=r"GVPO.*2 of 2"):
        loss, metrics = gvpo_loss(s, torch.tensor([0.0, 1.0]), ["a", "b"])
    loss.backward()
    assert loss.item() == 0 and s.grad.tolist() == [0, 0]
    assert metrics == {"gvpo/groups_of_one": 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_float32_at_least(dtype):
    s, rewards, labels = batch(dtype=dtype)
    assert gvpo_loss(s, rewards, labels)[0].dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0}, "beta=0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"normalizer": "k+1"}, "normalizer=k\\+1"),
        ({"mask": torch.zeros(14, dtype=torch.bool)}, "mask"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        gvpo_loss(*batch(), **settings)


def test_bad_rows_are_named():
    s, rewards, labels = batch()
    s[3] = math.inf
    with pytest.raises(ValueError, match=r"log_ratio\[3\].*inf"):
        gvpo_loss(s, rewards, labels)
    with pytest.raises(ValueError, match=r"rewards\b.*\(13,\).*\(14,\)"):
        gvpo_loss(batch()[0], rewards[1:], labels[1:])


# The row form


def sequences(seed=0, sizes=(4, 3, 2, 5), width=6):
    """Log-probabilities of tokens, a mask with tool tokens and padding, and one response without a token."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    log_prob = -torch.rand(rows, width, generator=generator, dtype=torch.float64)
    reference = -torch.rand(rows, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    mask[0] = False
    log_prob[~mask] = math.nan  # what stands there must not matter
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rewards = torch.randn(rows, generator=generator, dtype=torch.float64)
    return log_prob, reference, mask, group, rewards


def log_ratios(log_prob, reference, mask):
    return torch.where(mask, log_prob - reference, 0).sum(dim=-1)


def row_gradient(division, ablated=None):
    """d loss / d log_prob of the row form, one backward a share of ``division``, which lists rows."""
    log_prob, reference, mask, group, rewards = sequences()
    s, l_ref = log_ratios(log_prob, reference, mask), torch.where(mask, reference, 0).sum(dim=-1)
    weights = maths.gvpo_weights(
        maths.centred(rewards, group), maths.log_ratio_term(s, l_ref, **(ablated or {})), group, beta=BETA
    )
    c = maths.group_coefficients(group)
    log_prob.requires_grad_()
    for rows in division:
        maths.gvpo_row_loss(log_prob[rows], mask[rows], weights[rows], c[rows], beta=BETA).backward()
    return log_prob.grad


@pytest.mark.parametrize("share", [1, 3, 5, 14])
def test_detached_weights_give_the_gradient_of_the_loss_for_any_division_of_the_rows(share):
    log_prob, reference, mask, group, rewards = sequences()
    log_prob.requires_grad_()
    gvpo_loss(log_ratios(log_prob, reference, mask), rewards, group, beta=BETA)[0].backward()
    mixed = torch.randperm(14, generator=torch.Generator().manual_seed(2)).tolist()
    division = [mixed[start : start + share] for start in range(0, 14, share)]
    found = row_gradient(division)
    assert (log_prob.grad[0] == 0).all() and log_prob.grad.isfinite().all()
    torch.testing.assert_close(found, log_prob.grad, rtol=1e-10, atol=1e-15)


def test_the_ablations_of_table_2_leave_out_what_they_name():
    log_prob, reference, mask, group, rewards = sequences()
    new = torch.where(mask, log_prob, 0).sum(dim=-1)
    old = torch.where(mask, reference, 0).sum(dim=-1)
    advantages, c = maths.centred(rewards, group), maths.group_coefficients(group)
    every_row = [list(range(14))]
    for ablated, weights in (
        ({"var": False}, advantages + BETA * maths.centred(old, group)),
        ({"cov": False}, advantages - BETA * maths.centred(new, group)),
        ({"var": False, "cov": False}, advantages),
        ({}, advantages - BETA * (maths.centred(new, group) - maths.centred(old, group))),
    ):
        expected = (-BETA * c * weights).unsqueeze(1) * mask
        torch.testing.assert_close(row_gradient(every_row, ablated), expected, rtol=1e-9, atol=1e-13)


def test_on_the_old_policy_the_gradients_of_var_and_cov_cancel():
    """So that with one mini-batch and one epoch GVPO is plain REINFORCE."""
    log_prob, _, mask, group, rewards = sequences()
    same = torch.where(mask, log_prob, 0).sum(dim=-1)
    tilted = maths.log_ratio_term(torch.zeros_like(same), same)
    weights = maths.gvpo_weights(maths.centred(rewards, group), tilted, group, beta=BETA)
    assert torch.equal(weights, maths.centred(rewards, group))


def test_coefficients_count_groups_of_two_or_more():
    group = torch.tensor([0, 0, 0, 1, 2, 2, -1])
    assert maths.group_coefficients(group).tolist() == [1 / 4, 1 / 4, 1 / 4, 0, 1 / 2, 1 / 2, 0]
    assert maths.group_coefficients(group, "k").tolist() == [1 / 6, 1 / 6, 1 / 6, 0, 1 / 4, 1 / 4, 0]
    assert maths.group_coefficients(group, "none").tolist() == [1 / 2, 1 / 2, 1 / 2, 0, 1 / 2, 1 / 2, 0]
    assert maths.group_coefficients(torch.tensor([-1, -1])).tolist() == [0, 0]


@pytest.mark.parametrize("k", [2, 4])
def test_dividing_by_k_less_one_estimates_half_of_equation_9_without_bias(k):
    """Over every group of k that can be drawn from five answers, weighed by its probability."""
    generator = torch.Generator().manual_seed(3)
    probability = torch.softmax(torch.randn(5, generator=generator, dtype=torch.float64), 0)
    s, rewards = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    groups = torch.tensor(list(itertools.product(range(5), repeat=k)))
    d = BETA * s - rewards
    equation_9 = float((probability * (d - (probability * d).sum()).square()).sum())
    expected = 0.0
    for drawn in groups:
        loss, _ = gvpo_loss(s[drawn], rewards[drawn], [0] * k, beta=BETA)
        expected += float(probability[drawn].prod() * loss)
    assert expected == pytest.approx(equation_9 / 2, rel=1e-10)


def test_figures_of_a_mini_batch():
    s, rewards = torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([0.0, 1.0, 0.0, 5.0])
    group = torch.tensor([0, 0, 1, 2])
    group[2] = 0
    found = maths.gvpo_metrics(s, maths.centred(rewards, group), group, beta=0.5, tokens=torch.tensor([3, 2, 1, 7]))
    assert found["gvpo/groups_of_one"] == 1
    assert found["gvpo/s_std"] == pytest.approx(1.0) and found["gvpo/beta_s_std"] == pytest.approx(0.5)
    assert found["gvpo/sequence_kl"] == pytest.approx(-2.0)
    assert found["gvpo/pull_over_push"] == pytest.approx((0.5 + 0 + 0.5) / (1 / 3 + 2 / 3 + 1 / 3))
    assert found["gvpo/s_length_correlation"] == pytest.approx(-1)
    assert found["gvpo/mse"] == pytest.approx(((-0.5 + 1 / 3) ** 2 + (2 / 3) ** 2 + (0.5 + 1 / 3) ** 2) / 2)


# Where it converges: two prompts with five answers each, a softmax over each, pi* known in closed form.

REFERENCE = torch.tensor([[0.5, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.2, 0.4]], dtype=torch.float64)
REWARD = torch.tensor([[0.0, 1.0, 0.0, 0.4, 0.2], [3.0, 2.0, 2.2, 2.0, 2.5]], dtype=torch.float64)
STAR = torch.softmax(REFERENCE.log() + REWARD / BETA, dim=-1)
SAMPLERS = {
    "uniform": lambda policy: torch.full((2, 5), 0.2, dtype=torch.float64),
    "skewed": lambda policy: torch.tensor([[0.05, 0.05, 0.1, 0.2, 0.6], [0.6, 0.2, 0.1, 0.05, 0.05]]).double(),
    "on-policy": lambda policy: policy,
}


def trained(loss, sampler, steps=200, groups=16, k=4):
    """Total variation from pi* of a tabular policy after ``steps`` of gradient descent on sampled groups."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prompt = torch.arange(2).repeat_interleave(groups * k)
    label = torch.arange(2 * groups).repeat_interleave(k)
    for _ in range(steps):
        log_policy = torch.log_softmax(logits, dim=-1)
        drawn = torch.multinomial(sampler(log_policy.detach().exp()), groups * k, replacement=True, generator=generator)
        answer = drawn.flatten()
        optimizer.zero_grad()
        loss(log_policy[prompt, answer], REFERENCE.log()[prompt, answer], REWARD[prompt, answer], label).backward()
        optimizer.step()
        schedule.step()
    return float((torch.softmax(logits.detach(), dim=-1) - STAR).abs().sum(dim=-1).max() / 2)


def of_the_package(log_policy, log_reference, rewards, label):
    return gvpo_loss(log_policy - log_reference, rewards, label, beta=BETA)[0]


def std_normalised(log_policy, log_reference, rewards, label):
    group = torch.as_tensor(label)
    a = maths.centred(rewards, group).view(-1, 4)
    return gvpo_loss(log_policy - log_reference, (a / (a.std(dim=1, keepdim=True) + 1e-6)).flatten(), label, beta=BETA)[
        0
    ]


def mixed_centring(log_policy, log_reference, rewards, label):
    """One centre for a micro-batch that holds both prompts, as copies have it that group by position."""
    return gvpo_loss(log_policy - log_reference, rewards, label % 16, beta=BETA)[0]


def weights_not_detached(log_policy, log_reference, rewards, label):
    weights = maths.gvpo_weights(maths.centred(rewards, label), log_policy - log_reference, label, beta=BETA)
    return -BETA * (maths.group_coefficients(label) * weights * log_policy).sum()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_converges_to_the_one_optimum_from_any_sampler(sampler):
    steps = 400 if sampler == "on-policy" else 200  # what is rare under the policy is seldom drawn
    assert trained(of_the_package, SAMPLERS[sampler], steps) < 1e-4


# With demonstrations: an expert's answer takes the place of a group's last one.

EXPERT = torch.tensor([1, 0])  # the only right answer to each prompt
RIGHT = torch.eye(5, dtype=torch.float64)[EXPERT]
ALL_FAIL, ALWAYS, NEVER = "all_fail", "always", "never"
WEAK = 1.0  # a beta with which pi* still fails often, so that the choice by failures matters


def with_demonstrations(drawn, prompt, rewards, mode):
    """The answers (groups, k), each group's last one replaced where ``mode`` wants a demonstration."""
    wanted = rewards.amax(dim=1) == 0 if mode == ALL_FAIL else torch.full((len(drawn),), mode == ALWAYS)
    shown = drawn.clone()
    shown[wanted, -1] = EXPERT[prompt[wanted]]
    return shown, wanted


def trained_with_demonstrations(mode, *, noise=0.0, k=3, steps=400, groups=16):
    """(total variation from pi*, share of groups with a demonstration) of an on-policy tabular policy.

    Right answers have the reward 1, others 0. With ``noise``, a reward is drawn: an answer is right with a chance
    between ``noise`` and 1 - ``noise``, and pi* has the mean reward. pi_theta' is the reference throughout.
    """
    generator = torch.Generator().manual_seed(4)
    chance = RIGHT * (1 - 2 * noise) + noise
    star = torch.softmax(REFERENCE.log() + chance / WEAK, dim=-1)
    logits = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prompt = torch.arange(2).repeat_interleave(groups)
    label = torch.arange(2 * groups).repeat_interleave(k)
    shown_groups = 0
    for _ in range(steps):
        log_policy = torch.log_softmax(logits, dim=-1)
        policy = log_policy.detach().exp()
        drawn = torch.multinomial(policy, groups * k, replacement=True, generator=generator).view(2 * groups, k)
        rewards = torch.bernoulli(chance[prompt.unsqueeze(1), drawn], generator=generator)
        answers, shown = with_demonstrations(drawn, prompt, rewards, mode)
        rewards[shown, -1] = 1.0  # verified
        shown_groups += int(shown.sum())
        s = (log_policy - REFERENCE.log())[prompt.unsqueeze(1), answers]
        optimizer.zero_grad()
        gvpo_loss(s.flatten(), rewards.flatten(), label, beta=WEAK)[0].backward()
        optimizer.step()
        schedule.step()
    distance = (torch.softmax(logits.detach(), dim=-1) - star).abs().sum(dim=-1).max() / 2
    return float(distance), shown_groups / (2 * groups * steps)


@pytest.mark.parametrize("mode", [ALL_FAIL, ALWAYS])
def test_demonstrations_move_no_optimum_however_they_are_chosen(mode):
    distance, shown = trained_with_demonstrations(mode)
    assert distance < 1e-6
    assert shown > 0.1, "otherwise this says nothing of demonstrations"


def test_with_noise_in_the_rewards_they_do():
    """A demonstration's reward of 1 is no draw of the same noise, and groups of unlucky draws get one."""
    distances = {mode: trained_with_demonstrations(mode, noise=0.2)[0] for mode in (NEVER, ALL_FAIL, ALWAYS)}
    assert distances.pop(NEVER) < 0.01, "what the noise of the draws leaves"
    assert min(distances.values()) > 0.02


@pytest.mark.parametrize("mode", [ALL_FAIL, ALWAYS])
def test_the_loss_of_every_group_is_zero_at_the_optimum(mode):
    """Every draw of three answers, with and without its demonstration, not only on average."""
    for number in range(2):
        star = torch.softmax(REFERENCE[number].log() + RIGHT[number] / WEAK, dim=-1)
        s = star.log() - REFERENCE[number].log()
        drawn = torch.tensor(list(itertools.product(range(5), repeat=3)))
        prompt = torch.full((len(drawn),), number)
        answers, shown = with_demonstrations(drawn, prompt, RIGHT[number][drawn], mode)
        assert shown.any()
        for group in answers:
            rewards = RIGHT[number][group]
            assert spelled_out(s[group].tolist(), rewards.tolist(), [0] * 3, WEAK) < 1e-25
            assert gradient(s[group], rewards, [0] * 3, beta=WEAK).abs().max() < 1e-12


@pytest.mark.parametrize("broken", [std_normalised, mixed_centring, weights_not_detached])
def test_what_copies_do_does_not(broken):
    assert trained(broken, SAMPLERS["uniform"]) > 0.02


# What the row form is given


def test_low_precision_is_widened():
    group, far = torch.zeros(8, dtype=torch.int64), 9000 + 10 * torch.arange(8.0)
    found = maths.gvpo_weights(torch.zeros(8, dtype=torch.float16), far.half(), group, beta=BETA)
    assert found.dtype == torch.float32 and found.isfinite().all() and abs(found.sum()) < 1e-2
    log_prob = torch.full((1, 16000), -8.0, dtype=torch.float16, requires_grad=True)
    tiny = torch.tensor([1e-5], dtype=torch.float16)
    loss = maths.gvpo_row_loss(log_prob, torch.ones(1, 16000), tiny, torch.tensor([1.0]), beta=BETA)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_whole_numbers_as_rewards_are_exact():
    loss, _ = gvpo_loss(torch.zeros(2, dtype=torch.float64), torch.tensor([2**24 + 1, 2**24]), ["a", "a"])
    assert loss == 0.25


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: maths.gvpo_row_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 1), torch.ones(2), beta=1),
            "weights",
        ),
        (
            lambda: maths.gvpo_row_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2), torch.ones(1), beta=1),
            "coeff",
        ),
        (lambda: maths.gvpo_row_loss(torch.zeros(6), torch.ones(6), torch.ones(6), torch.ones(6), beta=1), r"\(B, T\)"),
        (lambda: maths.gvpo_weights(torch.ones(1), torch.ones(2), torch.tensor([0, 0]), beta=1), "advantages"),
        (lambda: maths.gvpo_weights(torch.ones(2), torch.ones(2, 1), torch.tensor([0, 0]), beta=1), "term"),
    ],
)
def test_shapes_are_refused_and_not_broadcast(call, words):
    with pytest.raises(ValueError, match=words):
        call()
