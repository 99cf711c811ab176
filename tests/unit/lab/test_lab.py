"""The lab's runs against closed forms, exact enumeration, and the functions that training uses."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd import planning
from verl_gsd.algorithms.dagrpo.lab import dagrpo_update, synthetic_judge_scores
from verl_gsd.algorithms.gvpo.lab import gvpo_update
from verl_gsd.algorithms.gvpo.maths import gvpo_loss
from verl_gsd.algorithms.hadw.anchors import FixedAnchor, HardAnchor
from verl_gsd.algorithms.hadw.lab import hadw_update
from verl_gsd.bernoulli import (
    RATE,
    ROUNDS,
    Algorithm,
    BernoulliBatch,
    ascend,
    dial_update,
    log_probs,
    one_group_per_prompt,
    redraw_silent_groups,
    replace_silent_groups,
)
from verl_gsd.dial import dial_advantage
from verl_gsd.lab.algorithms import algorithm, algorithms
from verl_gsd.lab.prompts import mixture, starting_rates
from verl_gsd.lab.simulation import first_update, simulate

DIAL = {"grpo": 1.0, "dr_grpo": 0.0, "alpha=0.5": 0.5, "alpha=2": 2.0}


def batch_of(*correct, group_size=8, prompts=None):
    """Groups with so many right responses, the right ones first."""
    rewards = torch.stack([(torch.arange(group_size) < k).double() for k in correct])
    prompt = torch.arange(len(correct)) if prompts is None else torch.tensor(prompts)
    return BernoulliBatch(prompt, rewards, len(correct), float(rewards.sum()))


def logits(*p):
    return torch.tensor(p, dtype=torch.float64).logit()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# The dial


@settings(deadline=None)
@given(
    size=st.integers(2, 20),
    share=st.floats(0.01, 0.99),
    alpha=st.floats(-2, 3),
    p=st.floats(0.01, 0.99),
)
def test_a_logit_moves_by_its_groups_gain_and_nothing_else(size, share, alpha, p):
    """Theorem 1 with s+ - s- = 1."""
    k = min(max(round(share * size), 1), size - 1)
    sigma = math.sqrt(k * (size - k)) / size
    (moved,) = dial_update(alpha)(logits(p), batch_of(k, group_size=size), 1.0)
    assert float(moved) == pytest.approx(sigma ** (2 - alpha), rel=1e-9)


@pytest.mark.parametrize(("name", "alpha"), DIAL.items())
def test_first_updates_are_the_planners_gains_in_expectation(name, alpha):
    for p in (0.05, 0.3, 0.5, 0.9):
        moved = first_update(algorithm(name), np.full(1000, p)) / RATE
        error = moved.std() / math.sqrt(len(moved))
        assert abs(moved.mean() - planning.gain(p, 8, alpha=alpha)) < 5 * error
        assert alpha != 1 or planning.gain(p, 8, alpha=alpha) == planning.expected_std(p, 8)


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_trajectories_of_grpo_have_the_mean_of_all_that_can_happen(p):
    """Three steps of groups of 4: every sequence of counts, weighed by its probability."""
    size, expected = 4, 0.0
    for counts in itertools.product(range(size + 1), repeat=3):
        logit, chance = math.log(p / (1 - p)), 1.0
        for k in counts:
            q = 1 / (1 + math.exp(-logit))
            chance *= math.comb(size, k) * q**k * (1 - q) ** (size - k)
            logit += RATE * math.sqrt(k * (size - k)) / size
        expected += chance / (1 + math.exp(-logit))
    run = simulate(algorithm("grpo"), np.full(20_000, p), group_size=size, steps=3)
    error = run.final.std() / math.sqrt(len(run.final))
    assert abs(run.final.mean() - expected) < 5 * error


def test_a_prompt_that_stands_twice_in_a_batch_moves_by_both_groups():
    logit = logits(0.3, 0.5)
    moved = dial_update(1.0)(logit, batch_of(4, 2, prompts=[0, 0]), 1.0)
    assert moved.tolist() == pytest.approx([0.5 + math.sqrt(12) / 8, 0.0])


def test_any_alpha_is_an_algorithm():
    (moved,) = algorithm("alpha=-1").start(logits(0.5), rng())(logits(0.5), batch_of(4), 1.0)
    assert float(moved) == pytest.approx(0.5**3)


# Silent groups


def test_the_functions_of_training_give_silent_groups_nothing_so_that_leaving_them_out_changes_nothing():
    batch, logit = batch_of(0, 3, 8, 1), logits(0.1, 0.4, 0.9, 0.2)
    rewards = batch.rewards.flatten()
    advantages = dial_advantage(rewards, batch.index, alpha=2.0, ddof=0, eps=0.0)
    everything = ascend(logit, batch, advantages)
    assert torch.equal(dial_update(2.0)(logit, batch, 1.0), everything)
    assert everything[[0, 2]].tolist() == [0, 0]
    leaf, reference = logit.clone().requires_grad_(), logits(0.2, 0.3, 0.8, 0.4)
    ratio = log_probs(leaf, batch) - log_probs(reference, batch)
    loss, _ = gvpo_loss(ratio.flatten(), rewards, batch.index, beta=0.7)
    (slope,) = torch.autograd.grad(4 * loss, leaf)
    assert torch.allclose(gvpo_update(0.7, reference=reference)(logit, batch, 1.0), -slope, rtol=1e-12, atol=1e-15)
    assert slope[[0, 2]].abs().max() < 1e-15


#: Rows in which a demonstration joins a group of failures.
DEMONSTRATED = ("dagrpo", "dagrpo_anchors", "gvpo_demonstrations")


@pytest.mark.parametrize("name", [name for name in algorithms() if name not in DEMONSTRATED])
def test_a_batch_of_silent_groups_moves_nothing(name):
    start = logits(0.001, 0.999)
    one = algorithm(name)
    assert one.start(start, rng())(start, batch_of(0, 8), one.rate).tolist() == [0, 0]


def test_gvpo_moves_a_group_of_failures_as_if_its_last_response_were_right():
    start = logits(0.001, 0.999)
    plain, shown = (algorithm(name).start(start, rng()) for name in ("gvpo", "gvpo_demonstrations"))
    moved = shown(start, batch_of(0, 8), 1.0)
    torch.testing.assert_close(moved, plain(start, batch_of(1, 8), 1.0))
    assert moved[0] > 0 and moved[1] == 0


# Drawing


def test_replacing_silent_groups_by_other_prompts_costs_one_over_the_mixed_share():
    p = torch.from_numpy(starting_rates(mixture(), 6000))
    batch = replace_silent_groups(p, 8, rng())
    assert len(batch.prompt) == 6000
    assert (batch.rewards.amin(dim=1) < batch.rewards.amax(dim=1)).all()
    silent = float(np.mean(planning.silent_rate(p.numpy(), 8)))
    assert batch.generated / 6000 == pytest.approx(1 / (1 - silent), rel=0.03)


def test_a_hard_prompts_share_of_dapos_groups_is_its_chance_to_be_mixed():
    p = torch.tensor([0.05, 0.5], dtype=torch.float64).repeat(3000)
    batch = replace_silent_groups(p, 8, rng())
    mixed = planning.mixed_rate([0.05, 0.5], 8)
    assert float((batch.prompt % 2 == 0).double().mean()) == pytest.approx(mixed[0] / mixed.sum(), abs=0.02)


def test_redrawing_the_same_prompt_takes_up_to_four_draws():
    p = torch.tensor([0.05, 0.5, 0.99], dtype=torch.float64).repeat(2000)
    batch = redraw_silent_groups(p, 8, rng())
    silent = planning.silent_rate(p.numpy(), 8)
    assert batch.generated / len(p) == pytest.approx(np.mean(1 + silent + silent**2 + silent**3), rel=0.02)
    assert torch.equal(batch.prompt, torch.arange(len(p)))


def test_dapo_ends_a_step_where_next_to_nothing_is_mixed():
    p = torch.full((400,), 1 - 1e-4, dtype=torch.float64)
    batch = replace_silent_groups(p, 8, rng())
    assert len(batch.prompt) < 400
    assert 400 * (ROUNDS - 1) < batch.generated <= 400 * ROUNDS


# HA-DW


def test_hadw_is_grpo_until_it_has_an_anchor_and_multiplies_both_kinds_after():
    logit, batch = logits(0.3, 0.6), batch_of(2, 6)
    update = hadw_update(HardAnchor(), lambda_scale=1.3)
    assert torch.equal(update(logit, batch, 0.5), dial_update(1.0)(logit, batch, 0.5))
    anchor = 8 / 16  # of the first batch
    expected = []
    for k, p in ((2, 0.3), (6, 0.6)):
        sigma, distance = math.sqrt(k * (8 - k)) / 8, k / 8 - anchor
        right, wrong = 1.3 * math.exp(-distance), 1.3 * math.exp(distance)
        expected.append(0.5 * sigma * (right * (1 - p) + wrong * p))
    assert update(logit, batch, 0.5).tolist() == pytest.approx(expected, rel=1e-12)


def test_hadw_with_a_factor_of_one_is_grpo():
    logit, batch = logits(0.3, 0.7), batch_of(3, 3)
    update = hadw_update(FixedAnchor(3 / 8), lambda_scale=1.0)
    assert torch.equal(update(logit, batch, 0.5), dial_update(1.0)(logit, batch, 0.5))


def test_the_anchor_sees_every_group_generated_evicted_ones_too():
    anchor = HardAnchor()
    batch = dataclasses.replace(
        batch_of(4), generated=3, right=20.0
    )  # beside it, one group all right, one all wrong...
    hadw_update(anchor)(logits(0.5), batch, 0.5)
    assert anchor.value == 20 / 24


# DaGRPO


def test_dagrpo_that_keeps_every_pair_is_the_dial():
    logit, batch = logits(0.1, 0.4, 0.9, 0.2), batch_of(0, 3, 8, 1)
    update = dagrpo_update(rng(), delta=-math.inf, demonstrations=False)
    assert torch.allclose(update(logit, batch, 0.5), dial_update(1.0)(logit, batch, 0.5), rtol=1e-12, atol=1e-15)


def test_the_mask_takes_from_a_prompt_what_share_of_its_pairs_it_drops():
    logit, batch = logits(0.4), batch_of(3)
    judged = synthetic_judge_scores(batch.rewards, 0.9, rng(7))[0]
    kept = sum(float(judged[right] - judged[wrong] >= 3) for right in range(3) for wrong in range(3, 8)) / 15
    assert 0 < kept < 1
    moved = dagrpo_update(rng(7), delta=3.0, demonstrations=False)(logit, batch, 1.0)
    assert float(moved) == pytest.approx(kept * math.sqrt(15) / 8)


def test_a_demonstration_teaches_where_everything_failed():
    """One of 8 right: A+ = sqrt 7 with the ratio's gradient, A- = -1/sqrt 7 with the score -p."""
    p, gamma = 0.02, 0.1
    moved = dagrpo_update(rng(), delta=3.0, demonstrations=True)(logits(p), batch_of(0), 1.0)
    of_demonstration = math.sqrt(7) * gamma * p / (p + gamma) ** 2 * (1 - p)
    of_failures = 7 * (-1 / math.sqrt(7)) * -p
    assert float(moved) == pytest.approx((of_demonstration + of_failures) / 8, rel=1e-9)
    without = dagrpo_update(rng(), delta=3.0, demonstrations=False)(logits(p), batch_of(0), 1.0)
    assert float(without) == 0


def test_the_judge_is_right_as_often_as_it_is_said_to_be():
    scores = synthetic_judge_scores(batch_of(*[4] * 500).rewards, 0.9, rng())
    right, wrong = scores[:, :4].reshape(-1, 1), scores[:, 4:].reshape(1, -1)
    found = float(((right > wrong).double() + 0.5 * (right == wrong).double()).mean())
    assert found == pytest.approx(0.9, abs=0.02)  # rounding costs 0.003, and 2000 scores of each kind scatter
    assert set(scores.unique().tolist()) <= set(range(11))


# GVPO


def test_one_step_of_gvpo_is_reinforce():
    (moved,) = gvpo_update(0.1)(logits(0.3), batch_of(3), 1.0)
    assert float(moved) == pytest.approx(0.1 * (15 / 64) * 8 / 7)


def test_further_steps_over_a_batch_are_pulled_back():
    beta, rate, d = 0.5, 2.0, 0.0
    for _ in range(4):
        d += rate / 4 * beta * (1 - beta * d) * (15 / 64) * 8 / 7
    (moved,) = gvpo_update(beta, passes=4)(logits(0.3), batch_of(3), rate)
    assert float(moved) == pytest.approx(d, rel=1e-9)


def test_a_fixed_reference_ends_at_the_reference_tilted_by_the_reward():
    """pi* ~ pi' exp(R/beta): the logit 1/beta above its start, whatever that was (Theorem 3.1)."""
    beta, start = 2.0, np.linspace(0.2, 0.7, 40)
    one = Algorithm("gvpo", "", one_group_per_prompt, lambda logit, generator: gvpo_update(beta, reference=logit), 1.0)
    end = simulate(one, start, steps=100).final
    moved = np.log(end / (1 - end)) - np.log(start / (1 - start))
    assert moved == pytest.approx(np.full(40, 1 / beta), abs=1e-6)
