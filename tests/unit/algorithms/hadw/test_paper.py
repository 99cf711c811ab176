"""HA-DW against the equations of arXiv 2601.08521, written out in float64 without our code.

Equations 7 to 12 (Section 3.1): y_t = K_t / B_t; C_t = (1 - eta_t) C_{t-1} + eta_t y_t; eta_t = eta * sigma_t;
sigma_t is the population standard deviation of C_{t-1} ... C_{t-m}; the difference is p_hat - C_{t-1}; and
Phi = lambda_scale * exp(D M). Equation 134 (Appendix F) is the hard anchor.
"""

import math

import numpy as np
import pytest
import torch

from verl_gsd.algorithms.hadw.anchors import HardAnchor, SoftAnchor
from verl_gsd.algorithms.hadw.extension import Hadw
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.chain import Rows
from verl_gsd.config import load_with_defaults
from verl_gsd.groups import Group, Member, group_stats

ETA, WINDOW, SIZE = 20.0, 10, 8


def accuracies(steps, seed=0):
    """K_t of B_t = 256 responses, of a policy that improves, then falls back."""
    rng = np.random.default_rng(seed)
    rate = np.concatenate([np.linspace(0.2, 0.7, steps // 2), np.linspace(0.7, 0.4, steps - steps // 2)])
    return rng.binomial(256, rate)


def soft_path(counts, floor, cap, seeds):
    """C_1, C_2, ... by the equations. The first ``seeds`` values are batch accuracies, because C_0 is not stated."""
    path = np.array([], dtype=np.float64)
    for step, correct in enumerate(counts):
        y = np.float64(correct) / 256
        if step < seeds:
            path = np.append(path, y)
            continue
        beliefs = path[-WINDOW:]
        sigma = np.sqrt(np.mean((beliefs - beliefs.mean()) ** 2))
        eta_t = min(max(ETA * sigma, floor), cap)
        path = np.append(path, (1 - eta_t) * path[-1] + eta_t * y)
    return path


@pytest.mark.parametrize(("floor", "cap", "seeds"), [(0.05, 0.2, 1), (0.0, 1.0, 2), (0.1, 0.1, 1)])
def test_the_soft_anchor_follows_equations_7_to_10(floor, cap, seeds):
    anchor, ours = SoftAnchor(ETA, WINDOW, floor, cap, seeds), []
    counts = accuracies(60)
    for correct in counts:
        anchor.observe(float(correct), 256)
        ours.append(anchor.value)
    np.testing.assert_allclose(ours, soft_path(counts, floor, cap, seeds), rtol=1e-12, atol=0)


def test_the_rate_is_of_the_beliefs_and_not_of_the_accuracies():
    """Without the bounds, which hide the difference."""
    anchor = SoftAnchor(1.0, 3, 0.0, 1.0, seeds=2)
    for correct in (64, 128, 192):
        anchor.observe(correct, 256)
    assert anchor.rate == pytest.approx(0.125, rel=1e-12), "the population std of 0.25 and 0.5"
    assert anchor.value == pytest.approx(0.875 * 0.5 + 0.125 * 0.75, rel=1e-12)


def test_the_hard_anchor_is_equation_134_where_the_belief_is_the_mean_of_the_h_minus_1_before():
    h, anchor, seen = 10, HardAnchor(10), []
    for correct in accuracies(40):
        anchor.observe(float(correct), 256)
        seen.append(correct / 256)
        if len(seen) >= h:
            belief = np.mean(seen[-h:-1], dtype=np.float64)
            assert anchor.value == pytest.approx((h - 1) / h * belief + seen[-1] / h, rel=1e-12)


def groups_of(counts, step):
    def group(number, right):
        verdicts = np.array([1.0] * right + [0.0] * (SIZE - right))
        return Group(f"{step}_{number}", "maths", number, verdicts, verdicts, np.zeros(SIZE, np.int64))

    return [group(number, right) for number, right in enumerate(counts)]


def test_algo_hadw_is_the_papers_method_over_a_run():
    """Anchor and weights of ``algo=hadw``, step by step, in float64."""
    section = load_with_defaults("algo", "hadw").algorithm.gsd.hadw
    assert section.preset == HadwSettings().preset == "soft"
    hadw, rng, beliefs = Hadw(section), np.random.default_rng(3), []
    for step in range(25):
        counts = rng.binomial(SIZE, np.linspace(0.1, 0.9, 32) * (0.5 + step / 50))
        groups = groups_of(counts, step)
        rows = [Member(group, place) for group in groups for place in range(SIZE)]
        rewards = np.concatenate([group.rewards for group in groups])
        p_hat = np.repeat(counts / SIZE, SIZE)
        advantages = torch.tensor(rewards - p_hat, dtype=torch.float64)
        columns = hadw.stage_inputs(rows, groups)
        labels = torch.arange(len(groups)).repeat_interleave(SIZE)
        found = hadw.weight(
            Rows(torch.tensor(rewards), group_stats(torch.tensor(rewards), labels), columns), advantages
        ).numpy()
        if beliefs:
            difference = p_hat - beliefs[-1]
            direction = -np.sign(advantages.numpy()) * np.sign(difference)
            expected = 1.3 * np.exp(direction * np.abs(difference))
            mixed = advantages.numpy() != 0
            np.testing.assert_allclose(found[mixed], expected[mixed], rtol=1e-12, atol=0)
        else:
            assert (found == 1).all()
        hadw.end_step(groups)
        y = counts.sum() / (32 * SIZE)
        if beliefs:
            eta_t = min(max(ETA * np.std(beliefs[-WINDOW:]), 0.05), 0.2)
            y = (1 - eta_t) * beliefs[-1] + eta_t * y
        beliefs.append(y)
        assert math.isclose(hadw.bank.overall.value, y, rel_tol=1e-12)
