"""The controlled run of arXiv 2607.00152: independent Bernoulli policies, one a prompt, and no language model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_gsd import planning
from verl_gsd.algorithms.dial import dial_advantage

BIG_MATH = Path(__file__).parents[2] / "shared" / "data" / "bigmath_solve_counts_k64.json"
SOLVED = np.arange(1, 64)
GROUP_SIZE, RATE, STEPS, DRAWS = 8, 0.5, 150, 4


@pytest.fixture(scope="module")
def interior():
    """Share of Big-Math's prompts solved 1 to 63 times out of 64."""
    if not BIG_MATH.is_file():
        pytest.skip(f"the Big-Math counts are not at {BIG_MATH}")
    counts = np.array(json.loads(BIG_MATH.read_text()))[1:-1]
    return counts / counts.sum()


def train(interior, alpha, redraw, prompt_count=6000):
    """(final solve rates, groups drawn a prompt and step, share of redraws above p = .9, rates at the start)."""
    torch.manual_seed(0)
    quantiles = (np.arange(prompt_count) + 0.5) / prompt_count
    start = torch.from_numpy(SOLVED[np.searchsorted(interior.cumsum(), quantiles)] / 64).clip(0.02, 0.98)
    logit = start.logit()
    index = torch.arange(prompt_count).repeat_interleave(GROUP_SIZE)
    drawn = redrawn = redrawn_mastered = 0
    for _ in range(STEPS):
        p = logit.sigmoid()
        rewards = torch.bernoulli(p.repeat_interleave(GROUP_SIZE))
        drawn += prompt_count
        for _ in range(DRAWS - 1 if redraw else 0):
            groups = rewards.view(-1, GROUP_SIZE)
            silent = groups.amin(dim=1) == groups.amax(dim=1)
            groups[silent] = torch.bernoulli(p[silent, None].expand(-1, GROUP_SIZE))
            drawn, redrawn = drawn + int(silent.sum()), redrawn + int(silent.sum())
            redrawn_mastered += int((p[silent] > 0.9).sum())
        advantages = dial_advantage(rewards, index, alpha=alpha, ddof=0, eps=0)
        score = rewards - p[index]  # d log pi / d logit
        logit = logit + RATE * (advantages * score).view(-1, GROUP_SIZE).mean(dim=1)
    return logit.sigmoid(), drawn / (prompt_count * STEPS), redrawn_mastered / max(redrawn, 1), start


@pytest.mark.parametrize(("alpha", "share"), [(1, 17.0), (0, 14.3)])
def test_share_of_the_first_update_that_goes_to_the_extremes(interior, alpha, share):
    """In expectation; one run of 6000 prompts scatters by .4 around it."""
    p = (SOLVED / 64).clip(0.02, 0.98)
    update = interior * planning.gain(p, GROUP_SIZE, alpha=alpha, ddof=0)
    assert 100 * update[(p < 0.1) | (p > 0.9)].sum() / update.sum() == pytest.approx(share, abs=0.8)


def test_dividing_by_sigma_helps_the_hardest_and_redrawing_spends_on_the_mastered(interior):
    hardest = {}
    for name, alpha, redraw in (("grpo", 1, False), ("dr_grpo", 0, False), ("dapo", 1, True)):
        p, drawn, mastered, start = train(interior, alpha, redraw)
        hardest[name] = float(p[start.argsort(stable=True)[: len(start) // 4]].mean())
        if redraw:
            assert drawn == pytest.approx(3.5, abs=0.05)
            assert mastered == pytest.approx(0.986, abs=0.003)
    assert hardest["grpo"] == pytest.approx(0.99, abs=0.005)
    assert hardest["dr_grpo"] == pytest.approx(0.88, abs=0.02)  # .887 to .899 by seed
    assert hardest["dapo"] > hardest["grpo"]
