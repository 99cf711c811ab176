"""The finding of a budget's half-life, for simulated runs whose solve rates hold, or change."""

import numpy as np
import pytest
from report_runs import group, metrics

from verl_gsd.algorithms.rollouts import findings
from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.report.reading import read_run
from verl_gsd.report.steps import step_table
from verl_gsd.trainer.metrics import with_prediction

KEY = "algorithm.gsd.budget.half_life"
#: A pass over the data takes this many trainer steps, as a pass over DAPO-Math-17k in batches of 128 prompts does.
STEPS_PER_PASS, PROMPTS, PASSES, SIZE = 133, 400, 6, 8


def finding_of_run(run, rates, half_life):
    """The finding of a run, or None.

    Args:
        rates: (PASSES, PROMPTS) the solve rates in each pass. All prompts of a pass leave in one step.
    """
    rng, store, lines = np.random.default_rng(0), PromptStore(half_life=half_life), []
    keys = [("math", index) for index in range(PROMPTS)]
    for number, rates_of_pass in enumerate(rates):
        step = 1 + number * STEPS_PER_PASS
        right = rng.binomial(SIZE, rates_of_pass)
        left = [
            LeftGroup(group([1.0] * k + [0.0] * (SIZE - k), index=index), "trained", {})
            for index, k in enumerate(right)
        ]
        table = with_prediction(step_records(left, step=step, attempt=1, alpha=1.0), store, step, store.prior)
        write_step(run, table, step=step, attempt=1)
        silent = posterior_silent_rate(*store.recent(keys, step), SIZE, store.prior)
        known = float((store.recent(keys, step)[1] > 0).mean())
        lines.append((step, {"budget/share/known": known, "budget/mixed/expected": 1 - float(np.mean(silent))}))
        for key, k in zip(keys, right, strict=True):
            store.observe(key, float(k), SIZE, step)
    metrics(run, lines)
    config = {KEY: half_life}
    found = [one for finder in findings.FINDERS for one in finder(step_table(read_run(run, "run")), config)]
    return found[0] if found else None


@pytest.mark.parametrize("half_life", [None, 400, 200, 100, 50, 25])
@pytest.mark.parametrize("beta", [(0.3, 0.3), (0.2, 0.2), (0.1, 0.6)])
def test_rates_that_hold_never_lead_to_a_shorter_half_life(tmp_path, beta, half_life):
    rates = np.broadcast_to(np.random.default_rng(1).beta(*beta, PROMPTS), (PASSES, PROMPTS))
    finding = finding_of_run(tmp_path, rates, half_life)
    if half_life is None or half_life > 200:
        assert finding is None
    if half_life is not None and half_life <= 50:
        assert finding is not None, "the budget knows little more than the prior"
    if finding is not None:
        assert "too fast" in finding.title
        assert any(text.startswith(f"{KEY}={2 * half_life} ") for text in finding.overrides)


def test_partial_credit_is_no_sign_of_a_law(tmp_path):
    """Eight accuracies of 0.5 sum to 4, as those of a prompt with solve rate 0.5 do."""
    verdicts = [LeftGroup(group([float(index % 2)] * SIZE, index=index), "trained", {}) for index in range(40)]
    partly = [LeftGroup(group([0.5] * SIZE, index=index), "trained", {}) for index in range(40, 80)]
    laws = []
    for name, left in {"binary": verdicts, "both": verdicts + partly}.items():
        store = PromptStore(half_life=None)
        table = with_prediction(step_records(left, step=1, attempt=1, alpha=1.0), store, 1, store.prior)
        for key in [("math", index) for index in range(80)]:
            store.observe(key, 4.0, SIZE, 1)
        again = with_prediction(step_records(left, step=2, attempt=1, alpha=1.0), store, 2, store.prior)
        for step, rows in enumerate((table, again), start=1):
            write_step(tmp_path / name, rows, step=step, attempt=1)
        metrics(tmp_path / name, [(1, {}), (2, {})])
        steps = step_table(read_run(tmp_path / name, "run"))
        laws.append((steps["law_a"][-1], steps["law_b"][-1]))
    assert laws[0] == pytest.approx(laws[1]) and max(laws[0]) < 0.1


def test_following_the_advice_ends_the_finding_if_rates_hold(tmp_path):
    rates, half_life = np.broadcast_to(np.random.default_rng(1).beta(0.2, 0.2, PROMPTS), (PASSES, PROMPTS)), 25
    for attempt in range(6):
        finding = finding_of_run(tmp_path / str(attempt), rates, half_life)
        if finding is None:
            break
        half_life = int(next(text for text in finding.overrides if text.startswith(KEY)).split()[0].split("=")[1])
    assert finding is None and 100 < half_life <= 800


@pytest.mark.parametrize("half_life", [None, 1000, 200])
def test_rates_that_changed_lead_to_a_shorter_half_life(tmp_path, half_life):
    """The policy solves half of each prompt's responses for four passes, and then nearly all of them."""
    rates = np.full((PASSES, PROMPTS), 0.5)
    rates[4:] = 0.97
    finding = finding_of_run(tmp_path, rates, half_life)
    assert "outdated" in finding.title
    shorter = "..." if half_life is None else half_life // 2
    assert any(text.startswith(f"{KEY}={shorter} ") for text in finding.overrides)
