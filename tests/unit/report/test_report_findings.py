"""Each finding: data for which it is reported, and data for which it is not."""

import re
import shlex

import numpy as np
import pytest
import report_runs
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from typer.testing import CliRunner

from verl_gsd import config as groups_of_config
from verl_gsd.algorithms.dagrpo import findings as dagrpo
from verl_gsd.algorithms.gvpo import findings as gvpo
from verl_gsd.algorithms.hadw import findings as hadw
from verl_gsd.algorithms.rollouts import findings as rollouts
from verl_gsd.cli.main import app
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.extension import declarations, load
from verl_gsd.report.findings import THRESHOLDS, collect_findings, groups, policy, rewards, updates
from verl_gsd.report.findings.finding import recent_mean, scaled
from verl_gsd.report.reading import read_run
from verl_gsd.report.steps import source_column, step_table
from verl_gsd.run.checks.validate import OF_THIS_MACHINE, validate

STEPS = 30


def table(**columns):
    """A table of ``STEPS`` steps. ``__`` in a name stands for a slash; a number is the value at every step."""
    return {"step": np.arange(1, STEPS + 1)} | {
        name.replace("__", "/"): np.broadcast_to(values, STEPS).astype(float) for name, values in columns.items()
    }


def falling(first, last):
    return np.linspace(first, last, STEPS)


def from_first_step(before, after, time_constant=3, steps=STEPS):
    """A figure that changes from the first step on, and reaches its new value after a few time constants."""
    return after + (before - after) * np.exp(-np.arange(steps) / time_constant)


def known_after(step, values):
    return np.where(np.arange(STEPS) >= step, values, np.nan)


def of_sessions(**shares):
    uses = ("taught", "silent", "filtered", "surplus", "stale", "failed")
    return table(rollouts=100, **{f"rollouts_{use}": 100 * shares.get(use, 0) for use in uses})


def seen(groups, wrong, predicted, right=0.0):
    """Groups that were likely to be mixed: shares without a right and without a wrong response, predicted alike."""
    sums = {"groups": groups, "silent": groups * (wrong + right), "predicted": groups * 2 * predicted}
    sums |= {"wrong": groups * wrong, "wrong_predicted": groups * predicted}
    sums |= {"wrong_variance": groups * predicted * (1 - predicted)}
    return table(**{f"likely_{name}": value / STEPS for name, value in sums.items()})


def expecting(expected, observed, **further):
    """A budget expects this share of the groups to be mixed."""
    columns = {"budget__share__known": 1, "budget__mixed__expected": expected, "mixed": observed}
    columns |= {
        "law_a": 1.0,
        "law_b": 1.0,
        "seen_predicted_by_law": further.get("seen_predicted_without_forgetting", 0),
    }
    return table(**columns | {"seen_silent": 1 - observed, "seen_predicted": 1 - expected} | further)


HALF_LIFE = {"algorithm.gsd.budget.half_life": 100}
HELD_OUT = "val-core/math/acc/mean@1"


def held_out(*values, prompts=np.nan):
    column = np.full(STEPS, np.nan)
    column[: len(values)] = values
    return table(val__prompts__math=prompts) | {HELD_OUT: column}


#: Twenty validations of a verifier that returns 1 and -1. Chance makes the first better than the last.
SIGNED_WAVE = 0.05 + 0.15 * np.array([1, 1, -1, 1, 1, *[1, -1] * 5, -1, -1, 1, -1, -1])
LATE = np.repeat([0.1, 0.9], STEPS // 2)
SOFT = {"algorithm.gsd.hadw.preset": "soft"}
FIXED = {"algorithm.gsd.hadw.preset": "fixed"}
NUMBER = {"algorithm.gsd.hadw.preset": 0.5}
LONGEST = {"data.max_response_length": 512}
MIN_MASK = {f"algorithm.gsd.dagrpo.{key}": value for key, value in (("mask", "min"), ("judge.scorer", "openai"))}
FAILING = {"judge_failed": 0.2}
#: The metric of a run whose data sets the number of rollouts per prompt.
SIZED = {"group__sizes_in_data": 1}
MODE = "trainer.v1.trainer_mode"
VERIFIER = "reward.custom_reward_function.path"
JUDGE_URL = "algorithm.gsd.dagrpo.judge.base_url=http://localhost:1/v1"
CLIPPING = "actor_rollout_ref.actor.optim.clip_grad"

#: What noise adds to a figure, so that no figure is constant.
WAVE = 0.02 * np.resize([1.0, -1.0, 0.5], STEPS)
#: A figure that drifts up and down, and is low in the first steps.
SLOW_NOISE = 0.12 - 0.08 * np.cos(2 * np.pi * np.arange(STEPS) / 10)
NORMS = np.exp(10 * WAVE)
LOST = np.where(np.arange(STEPS) >= 20, np.nan, NORMS)
SPIKE = np.where(np.arange(STEPS) == 20, 1e10, NORMS)


def held_out_reward(values, spread=0.5):
    """Validations of a verifier that returns no ``acc``."""
    column = np.full(STEPS, np.nan)
    column[: len(values)] = values
    return table(val__prompts__math=2000, reward_spread=spread) | {"val-core/math/reward/mean@1": column}


FALLEN = WAVE + np.where(LATE < 0.5, 0.5, 0.3)


def long_run(loss, reward):
    """A table of 60 steps, of which the finding of the loss needs as many."""
    steps = np.arange(1, 61)
    return {"step": steps, "actor/pg_loss": loss, "accuracy": reward}


LONG_WAVE = 0.02 * np.resize([1.0, -1.0, 0.5], 60)
OSCILLATING = np.resize([1.0, -1.0], 60) * np.linspace(0, 1, 60) ** 2
GROWING = np.linspace(-0.8, 0.8, 60)
BY_SCORE = {"critic/score/mean": 0.3 + LONG_WAVE}

FIRES = [
    (groups.silent, table(silent=0.6, all_wrong=0.5, all_right=0.1), {}, "algo=dagrpo_anchors"),
    (groups.silent, table(silent=0.6, all_wrong=0.1, all_right=0.5), {}, "rollout.n=..."),
    (
        groups.silent,
        table(silent=0.6, all_wrong=0.5, all_right=0.1),
        {"actor_rollout_ref.rollout.n": 8},
        "rollout.n=16",
    ),
    (groups.silent, table(silent=LATE, all_wrong=LATE, all_right=0), {}, "filter_groups.enable=true"),
    (groups.silent, table(silent=0.6, all_wrong=0.1, all_right=0.5, **SIZED), {}, "train_files=...  # larger groups"),
    (
        groups.silent,
        table(silent=0.6, all_wrong=0.1, all_right=0.5, **SIZED),
        {"actor_rollout_ref.rollout.n": 1},
        "train_files=...  # larger groups",
    ),
    (groups.alone, table(alone=0.1, **SIZED), {}, "data.train_files=...  # responses per prompt"),
    (groups.unused, of_sessions(taught=0.7, surplus=0.3) | table(**SIZED), {}, "train_files=...  # larger groups"),
    (groups.noisy, seen(600, 0.5, 0.1), {}, "temperature"),
    (groups.noisy, seen(600, 0.25, 0.1, right=0.3), {}, "temperature"),
    (groups.alone, table(alone=0.1), {}, "rollout.n=8"),
    (groups.unused, of_sessions(taught=0.7, surplus=0.3), {}, "rollout.n=..."),
    (groups.unused, of_sessions(taught=0.7, stale=0.3), {}, "max_off_policy_strategy=wait"),
    (groups.failed, table(failed=0.1), {}, "sync_refill_failed_groups=true"),
    (rewards.failing, table(lost_rewards=0.1, rollouts=64), {}, "custom_reward_function.path"),
    (rewards.failing, table(lost_rewards=LATE, rollouts=64, reward__failures__raised=1), {}, "custom_reward_function"),
    (
        rewards.failing,
        table(lost_rewards=1, rollouts=64, reward__failures__too_slow=1),
        {"algorithm.gsd.limits.reward_seconds": 30.0, "reward.num_workers": 8},
        "reward_seconds=60",
    ),
    (
        rewards.failing,
        table(lost_rewards=1, rollouts=64, reward__failures__prompt_too_long=1),
        {"data.max_prompt_length": 512},
        "data.max_prompt_length=1024",
    ),
    (rewards.slow, table(reward__share_of_step=0.9), {"reward.num_workers": 8}, "reward.num_workers=16"),
    (rewards.slow, table(reward__share_of_step=0.9), {MODE: "gsd_sync"}, "reward.num_workers"),
    (policy.entropy, table(entropy=falling(1, 0.01)), {}, "clip_ratio_high=0.28"),
    (policy.length, table(tokens_per_response=falling(400, 50)), {}, "loss_agg_mode=token-mean"),
    (policy.length, table(response_length__mean=falling(400, 50)), {}, "loss_agg_mode=token-mean"),
    (policy.entropy, table(entropy=from_first_step(0.5, 0.05)), {}, "clip_ratio_high=0.28"),
    (policy.length, table(tokens_per_response=from_first_step(800, 250)), {}, "loss_agg_mode=token-mean"),
    (
        policy.length,
        table(tokens_per_response=np.repeat([400, 1200, 350], STEPS // 3)),
        {},
        "loss_agg_mode=token-mean",
    ),
    (rewards.shifted_verdicts, table(accuracy=WAVE + known_after(0, LATE)), {}, "gives the same verdict"),
    (
        rewards.shifted_verdicts,
        table(unrated=1, reward_spread=1, reward=WAVE + known_after(0, LATE)),
        {},
        "gives the same verdict",
    ),
    (
        rewards.shifted_verdicts,
        table(unrated=0.5, reward_spread=1, reward=WAVE + known_after(0, LATE), accuracy=0.5 + WAVE),
        {},
        "gives the same verdict",
    ),
    (rewards.rising_unverified, table(verifier__unverified=falling(0.01, 0.3)), {}, "can read the answers"),
    (rewards.rising_unverified, table(verifier__unverified=from_first_step(0.02, 0.17)), {}, "can read the answers"),
    (updates.gradient_spikes, table(actor__grad_norm=SPIKE), {}, "algo=dagrpo_mask"),
    (updates.gradient_spikes, table(actor__grad_norm=SPIKE), {CLIPPING: 1.0}, f"{CLIPPING}=0.5"),
    (
        updates.gradient_spikes,
        table(actor__grad_norm=np.where(np.arange(STEPS) == 20, np.nan, NORMS), actor__pg_loss=0.1),
        {},
        "optim.lr",
    ),
    (
        updates.gradient_spikes,
        table(actor__grad_norm=LOST, actor__pg_loss=LOST, actor__lr=1e-6),
        {},
        "optim.lr",
    ),
    (updates.gradient_spikes, table(actor__grad_norm=np.nan, actor__pg_loss=np.nan, actor__lr=1e-6), {}, "optim.lr"),
    (updates.oscillating_loss, long_run(OSCILLATING, 0.3 + LONG_WAVE), {}, "optim.lr"),
    (updates.oscillating_loss, long_run(OSCILLATING, np.full(60, np.nan)) | BY_SCORE, {}, "optim.lr"),
    (policy.cut, table(response_length__max=512, response_length__clip_ratio=0.5), LONGEST, "max_response_length=1024"),
    (policy.unlearning, held_out(0.3, 0.5, 0.4, 0.41, prompts=2000), {}, "optim.lr"),
    (policy.unlearning, held_out(*(0.5 - 0.01 * LONG_WAVE[:10]), *(0.3 - 0.01 * LONG_WAVE[:10])), {}, "optim.lr"),
    (policy.unlearning, held_out(0.5, *[0.36] * 19, prompts=500), {}, "optim.lr"),
    (policy.unlearning, held_out(0.5, 0.5, *[0.42] * 18, prompts=800), {}, "optim.lr"),
    (policy.unlearning, held_out_reward(FALLEN), {}, "optim.lr"),
    (policy.unlearning, held_out_reward(40 * FALLEN - 10, spread=20.0), {}, "optim.lr"),
    (hadw.frozen_anchor, table(anchor=0.4, hadw__accuracy=0.6), {}, "preset=hard"),
    (hadw.frozen_anchor, table(anchor=known_after(1, 0.4), hadw__accuracy=0.6), SOFT, "preset=hard"),
    (gvpo.strong_pull, table(gvpo__pull_over_push=5), {}, "policy_loss.beta"),
    (rollouts.wrong_rates, expecting(0.7, 0.4), {}, "budget=uniform"),
    (rollouts.wrong_rates, expecting(0.7, 0.4, seen_predicted_without_forgetting=0.55), HALF_LIFE, "half_life=200"),
    (
        rollouts.wrong_rates,
        expecting(0.7, 0.4, law_a=2.1, law_b=0.15, seen_predicted_without_forgetting=0.36, seen_predicted_by_law=0.56),
        HALF_LIFE,
        "budget.prior=[2.1,0.15]'  # ",
    ),
    (
        rollouts.wrong_rates,
        expecting(0.7, 0.4, law_a=0.05, law_b=0.05, seen_predicted_without_forgetting=0.3, seen_predicted_by_law=0.58),
        HALF_LIFE,
        "budget.prior=[0.05,0.05]'  # ",
    ),
    (
        rollouts.wrong_rates,
        expecting(0.7, 0.4, seen_predicted_without_forgetting=0.5, seen_predicted_by_law=0.6),
        HALF_LIFE,
        "half_life=200",
    ),
    (
        dagrpo.missing_demonstrations,
        table(
            dagrpo__demonstrations__wanted=10,
            dagrpo__demonstrations__found=0,
            dagrpo__demonstrations__rejected__empty=3,
        ),
        {},
        "source=expert_or_self",
    ),
    (dagrpo.failed_judgements, table(**FAILING), {}, "base_url"),
    (
        dagrpo.failed_judgements,
        table(**FAILING, judge__failures__over_budget=9, judge__failures__connection=1),
        {},
        "budget_s",
    ),
    (dagrpo.failed_judgements, table(**FAILING, judge__failures__unreadable=9), {}, "answer=choice"),
    (dagrpo.slow_judge, table(judge__share_of_step=0.8), {}, "concurrency"),
    (dagrpo.tied_scores, table(dagrpo__pairs__tied=0.8), {}, "quantile"),
    (dagrpo.contradicted_verifier, table(pairs_contradicted=0.5), {}, "judge.model"),
    (dagrpo.drifting_judge, table(judge_score=5 + WAVE + 3 * LATE), {}, "quantile"),
    (dagrpo.drifting_judge, table(pairs_contradicted=falling(0.05, 0.25) + WAVE / 2), {}, "judge calibrate"),
    (dagrpo.drifting_judge, table(pairs_contradicted=from_first_step(0.15, 0.35)), {}, "judge calibrate"),
    (dagrpo.few_pairs_kept, table(pairs_kept=0.01), {"algorithm.gsd.dagrpo.delta": 3.0}, "delta=1.5"),
    (dagrpo.few_pairs_kept, table(pairs_kept=0.01), MIN_MASK, "mask=pairs"),
]

QUIET = [
    (groups.silent, table(silent=0.5), {}),
    (groups.silent, table(silent=np.repeat([0.9, 0.1], STEPS // 2)), {}),
    (groups.noisy, seen(600, 0.15, 0.1), {}),
    (groups.noisy, seen(50, 0.9, 0.1), {}),
    (groups.noisy, seen(600, 0.06, 0.11, right=0.36), {}),  # a policy that learns, measured in the laboratory
    (groups.noisy, seen(600, 0.0, 0.1, right=0.9), {}),
    (groups.noisy, seen(105, 0.40, 0.24), {}),
    (groups.noisy, seen(600, 0.5, 0.1), HALF_LIFE),  # under a budget, earlier responses decide the sizes of groups
    (groups.noisy, seen(600, 0.5, 0.1), {"algorithm.gsd.sampler.explore": 0.1}),
    (groups.alone, table(alone=0.01), {}),
    (groups.alone, table(alone=1.0), {"algorithm.adv_estimator": "reinforce_plus_plus"}),
    (groups.silent, table(silent=1.0, all_wrong=0.5, all_right=0.5), {"actor_rollout_ref.rollout.n": 1}),
    (groups.unused, of_sessions(taught=0.85, surplus=0.1, stale=0.05), {}),
    (groups.unused, of_sessions(taught=0.1, filtered=0.9), {}),
    (groups.failed, table(failed=0.01), {}),
    (rewards.failing, table(lost_rewards=0, rollouts=64), {}),
    (rewards.failing, table(rollouts=64), {}),
    (rewards.slow, table(reward__share_of_step=0.3), {}),
    (rewards.slow, table(reward__share_of_step=0.9), {MODE: "gsd_colocate_async"}),
    (policy.entropy, table(entropy=falling(1, 0.5)), {}),
    (policy.entropy, table(entropy=known_after(STEPS - 5, falling(1, 0))), {}),
    (policy.entropy, table(entropy=from_first_step(0.5, 0.15)), {}),
    (policy.entropy, table(entropy=np.where(np.arange(STEPS) == 0, 3.2, 0.4 + WAVE)), {}),
    (policy.length, table(tokens_per_response=falling(400, 300)), {}),
    (policy.length, table(tokens_per_response=from_first_step(800, 500)), {}),
    (policy.length, table(tokens_per_response=np.where(np.arange(STEPS) == 0, 3000, 400 + 1000 * WAVE)), {}),
    (policy.length, table(tokens_per_response=np.repeat([400, 1200, 450], STEPS // 3)), {}),
    (rewards.shifted_verdicts, table(accuracy=falling(0.1, 0.9)), {}),
    (rewards.shifted_verdicts, table(accuracy=1 / (1 + np.exp(np.linspace(6, -6, STEPS)))), {}),
    (rewards.shifted_verdicts, table(accuracy=np.where(np.arange(STEPS) == 15, 0.9, 0.1 + WAVE)), {}),
    (rewards.rising_unverified, table(verifier__unverified=np.resize([0.0, 0.3, 0.1], STEPS)), {}),
    (rewards.rising_unverified, table(verifier__unverified=known_after(3, 0.0) + np.resize([0, 0.3, 0.1], STEPS)), {}),
    (rewards.rising_unverified, table(verifier__unverified=SLOW_NOISE), {}),
    (updates.gradient_spikes, table(actor__grad_norm=NORMS, actor__pg_loss=0.1), {}),
    (updates.gradient_spikes, table(actor__grad_norm=falling(5, 0.1)), {}),
    (updates.gradient_spikes, table(actor__pg_loss=0.1, actor__lr=1e-6), {}),  # the norm is not logged
    (updates.gradient_spikes, table(actor__grad_norm=LOST, actor__pg_loss=LOST, actor__lr=LOST), {}),  # no update
    (updates.gradient_spikes, table(actor__grad_norm=np.resize([0.0, 1.0, 1.1], STEPS)), {}),
    (updates.oscillating_loss, long_run(OSCILLATING, np.linspace(0.1, 0.9, 60)), {}),
    (updates.oscillating_loss, long_run(LONG_WAVE, 0.3 + LONG_WAVE), {}),
    (updates.oscillating_loss, long_run(1e-5 * OSCILLATING, 0.3 + LONG_WAVE), {}),
    (dagrpo.drifting_judge, table(judge_score=falling(4, 8), pairs_contradicted=0.1 + WAVE), {}),
    (policy.cut, table(response_length__max=512, response_length__clip_ratio=0.1), LONGEST),
    (policy.cut, table(response_length__max=100, response_length__clip_ratio=0.9), LONGEST),
    (policy.cut, table(response_length__max=512, response_length__clip_ratio=0.9), {}),
    (groups.silent, table(silent=0.6, all_wrong=0.6), {"algorithm.adv_estimator": "reinforce_plus_plus"}),
    (groups.silent, table(silent=0.6, all_wrong=0.6), {"algorithm.use_kl_in_reward": True}),
    (policy.unlearning, held_out(0.3, 0.5, 0.4, 0.48, prompts=2000), {}),
    (policy.unlearning, held_out(0.3, 0.5, 0.4, 0.41, prompts=100), {}),  # two standard errors
    (policy.unlearning, held_out(0.3, 0.5, 0.4, 0.41), {}),  # no word on the prompts, and too few values to tell
    (policy.unlearning, held_out(0.5, 0.3, prompts=2000), {}),
    (policy.unlearning, held_out(0.58, *[0.5] * 19, prompts=500), {}),  # the first validation was lucky
    # Means of 1 and -1 scatter twice as much as a proportion with the same mean, and it has no error below 0.
    (policy.unlearning, held_out(*SIGNED_WAVE, prompts=400) | {"val/outside/math": np.full(STEPS, 160.0)}, {}),
    (policy.unlearning, held_out(*(SIGNED_WAVE - 0.5), prompts=400), {}),
    (policy.unlearning, held_out_reward(0.5 + WAVE), {}),
    (policy.unlearning, held_out_reward(FALLEN, spread=20.0), {}),  # of a reward model: the fall is 1% of the spread
    (policy.unlearning, held_out_reward(FALLEN[9:20]), {}),  # too few validations to know their noise
    *(
        (updates.oscillating_loss, long_run(OSCILLATING, np.full(60, np.nan)) | BY_SCORE | {name: GROWING}, {})
        for name in ("reward", "group/reward/generated")
    ),
    (rewards.shifted_verdicts, table(unrated=1, reward_spread=20, reward=WAVE + LATE), {}),
    (rewards.shifted_verdicts, table(unrated=0, reward_spread=0.5, reward=WAVE + LATE, accuracy=0.5 + WAVE), {}),
    (hadw.frozen_anchor, table(anchor=falling(0.4, 0.5), hadw__accuracy=0.6), {}),
    (hadw.frozen_anchor, table(anchor=0.4, hadw__accuracy=0.42), {}),
    (hadw.frozen_anchor, table(anchor=0.4, hadw__accuracy=0.42, accuracy=0.2), {}),  # a budget: mostly hard prompts
    (hadw.frozen_anchor, table(anchor=0.4, hadw__accuracy=0.6), FIXED),
    (hadw.frozen_anchor, table(anchor=0.4, hadw__accuracy=0.6), NUMBER),
    (hadw.frozen_anchor, table(anchor=known_after(STEPS - 5, 0.4), hadw__accuracy=0.6), {}),
    (gvpo.strong_pull, table(gvpo__pull_over_push=0.5), {}),
    (rollouts.wrong_rates, expecting(0.7, 0.65), {}),
    (rollouts.wrong_rates, expecting(0.7, 0.4, budget__share__known=0.5), {}),
    (dagrpo.missing_demonstrations, table(dagrpo__demonstrations__wanted=10, dagrpo__demonstrations__found=5), {}),
    (dagrpo.missing_demonstrations, table(dagrpo__demonstrations__wanted=0, dagrpo__demonstrations__found=0), {}),
    (dagrpo.failed_judgements, table(judge_failed=0.01), {}),
    (dagrpo.slow_judge, table(judge__share_of_step=0.1), {}),
    (dagrpo.tied_scores, table(dagrpo__pairs__tied=0.2), {}),
    (dagrpo.contradicted_verifier, table(pairs_contradicted=0.1), {}),
    (dagrpo.few_pairs_kept, table(pairs_kept=0.5), {}),
]


@pytest.mark.parametrize(("finder", "steps", "config", "expected"), FIRES)
def test_a_problem_is_one_finding_with_an_override_that_helps(finder, steps, config, expected):
    (finding,) = finder(steps, config)
    assert any(expected in line for line in finding.overrides), finding.overrides
    assert finding.title and finding.text
    assert "nan" not in " ".join([finding.title, finding.text, *finding.overrides])
    assert finding in collect_findings(steps, config), "the page shows it"
    for override in finding.overrides:
        command = override.partition("#")[0]
        assert set(re.sub(r"'[^']*'", "", command)).isdisjoint('{}[]()*?$&|;<>"~!'), "a shell changes it"
        for word in shlex.split(command):
            assert word.startswith(("verl-gsd", "judge", "calibrate", "FILE")) or "..." in word or parsed(word), word
    if "group/sizes_in_data" in steps:
        assert not any("rollout.n=" in line for line in finding.overrides), "it has no effect"


@pytest.mark.parametrize(("closed", "said", "unsaid"), [(True, "drops", "keeps"), (False, "keeps", "drops")])
def test_findings_about_the_judge_say_what_happens_to_pairs_without_a_score(closed, said, unsaid):
    config = {"algorithm.gsd.dagrpo.fail_closed": closed, "algorithm.gsd.dagrpo.judge.budget_s": 60}
    (failed,) = dagrpo.failed_judgements(table(**FAILING), config)
    assert f"The mask {said} pairs without a score." in failed.text and unsaid not in failed.text
    (slow,) = dagrpo.slow_judge(table(judge__share_of_step=0.8), config)
    (budget,) = [line for line in slow.overrides if "budget_s" in line]
    assert "budget_s=30" in budget and f"the mask {said} pairs without a score" in budget and unsaid not in budget


def parsed(word):
    return OverridesParser.create().parse_override(word)


@pytest.mark.parametrize(("finder", "steps", "config"), QUIET)
def test_without_the_problem_there_is_no_finding(finder, steps, config):
    assert list(finder(steps, config)) == []


#: Finder, column, (before, after) of a fault that begins at the first step.
EARLY = [
    (policy.entropy, "entropy", (0.5, 0.05)),
    (policy.length, "tokens_per_response", (800, 250)),
    (rewards.rising_unverified, "verifier/unverified", (0.02, 0.17)),
    (dagrpo.drifting_judge, "pairs_contradicted", (0.15, 0.4)),
]


@pytest.mark.parametrize("time_constant", [2, 3, 5, 10, 30])
@pytest.mark.parametrize(("finder", "name", "change"), EARLY)
def test_a_finding_about_an_early_fault_remains_as_the_run_grows(finder, name, change, time_constant):
    values = from_first_step(*change, time_constant, steps=240)
    values *= 1 + np.resize([0.02, -0.02, 0.01], 240)
    found = [
        any(True for _ in finder({"step": np.arange(1, steps + 1), name: values[:steps]}, {}))
        for steps in (*range(12, 61, 4), 80, 120, 240)
    ]
    assert found[-1] and found == sorted(found), found


def test_a_fall_below_the_base_model_is_found_with_any_number_of_validations():
    accuracies = np.array([0.5, *(0.36 + np.resize([0.01, -0.01, 0.005], 59))])
    for validations in (*range(4, 25), 40, 60):
        table = {"step": np.arange(validations) * 5, HELD_OUT: accuracies[:validations]}
        (finding,) = policy.unlearning(table | {"val/prompts/math": np.full(validations, 700.0)}, {})
        assert finding.text.startswith("It was 0.500 up to step 0 and is 0.3"), finding.text


#: Words of a run that the finders of a module are for.
WORDS_OF_RUN = {
    "verl_gsd.algorithms.dagrpo.findings": ("algo=dagrpo", "algorithm.gsd.dagrpo.judge.model=judge", JUDGE_URL),
    "verl_gsd.algorithms.gvpo.findings": ("algo=gvpo",),
    "verl_gsd.algorithms.hadw.findings": ("algo=hadw",),
    "verl_gsd.algorithms.rollouts.findings": ("algo=grpo", "budget=adaptive"),
}
#: Further words of the runs in which a finder can find something.
WORDS_OF_FINDER = {
    groups.unused: ("trainer.v1.trainer_mode=gsd_colocate_async",),
}
#: Settings of a run that another algorithm needs, if a remedy names it.
WORDS_OF_REMEDY = {
    "algo=dagrpo_mask": ("algorithm.gsd.dagrpo.judge.model=judge", JUDGE_URL),
}


def test_the_share_of_cut_responses_goes_by_the_limit_of_its_attempt(tmp_path):
    """A resume with a larger limit does not change that earlier responses were cut."""
    lines = {1: (range(1, 5), 512.0, 0.4), 2: (range(3, 9), 1024.0, 0.1)}
    for attempt, (steps, longest, share) in lines.items():
        cut = {"response_length/max": longest, "response_length/clip_ratio": share}
        validation = [] if attempt == 1 else [(2, {"validation": 1, "val-core/math/acc/mean@1": 0.5})]
        report_runs.metrics(tmp_path, [*validation, *((step, cut) for step in steps)], attempt=attempt)
    report_runs.config(tmp_path, data__max_response_length=1024)
    unknown = policy.cut_off(step_table(read_run(tmp_path, "run")), {})
    np.testing.assert_array_equal(unknown, [np.nan] * 2 + [0.1] * 6)
    (tmp_path / "configs").mkdir()
    for attempt, limit in ((1, 512), (2, 1024)):
        (tmp_path / "configs" / f"attempt_{attempt}.yaml").write_text(f"data: {{max_response_length: {limit}}}\n")
    np.testing.assert_array_equal(policy.cut_off(step_table(read_run(tmp_path, "run")), {}), [0.4] * 2 + [0.1] * 6)


def settings_in(override):
    """The KEY=VALUE words of an override and of its comment."""
    command, _, comment = override.partition("#")
    return shlex.split(command), re.findall(r"\b[\w.]+\.\w+=[\w.-]*\w", comment)


def composed(compose, words):
    """(the config as dotted keys, what the checks report that do not depend on this machine)."""
    config, line = compose("task=arithmetic", "hardware=cpu", *words)
    problems: set[str] = set()
    try:
        validate(config, line, OF_THIS_MACHINE)
    except ConfigError as error:
        problems |= set(str(error).splitlines())
    return dict(dotted_leaves(OmegaConf.to_container(config))), problems


def replaced(words, change):
    """``words`` with ``change`` in place of a word for the same group or key."""
    name = change.partition("=")[0]
    return [*(word for word in words if word.partition("=")[0] != name), change]


OF_UPDATES = [case for case in FIRES if case[0].__module__.endswith((".policy", ".updates"))]


@pytest.mark.parametrize("algorithm", ["dapo", "gspo", "gvpo"])
@pytest.mark.parametrize(("finder", "steps", "settings", "expected"), OF_UPDATES)
def test_remedies_for_the_policy_suit_the_algorithm(compose_fast, finder, steps, settings, expected, algorithm):
    check_remedies(compose_fast, finder, steps, settings, (f"algo={algorithm}",))


@pytest.mark.parametrize(("finder", "steps", "settings", "expected"), FIRES)
def test_every_remedy_is_accepted_and_changes_the_config(compose_fast, finder, steps, settings, expected):
    words = (*WORDS_OF_RUN.get(finder.__module__, ("algo=grpo",)), *WORDS_OF_FINDER.get(finder, ()))
    check_remedies(compose_fast, finder, steps, settings, words)


def check_remedies(compose_fast, finder, steps, settings, words):
    words = [*words]
    words += [f"{key}={value}" for key, value in settings.items() if key != MODE]
    config, problems = composed(compose_fast, words)
    (finding,) = finder(steps, config)
    assert finding.overrides, "a finding without a remedy"
    for override in finding.overrides:
        changes, in_comment = settings_in(override)
        if changes[0] == "verl-gsd":
            command = [word for word in changes[1:] if word.islower()]
            assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, override
            continue
        for remedy in (changes, *([setting] for setting in in_comment)):
            new_words = list(words)
            for change in remedy:
                key, _, value = change.partition("=")
                assert key in groups_of_config.GROUPS or is_key(config, key), f"{override}: no such key"
                if "..." not in value:
                    new_words = replaced(new_words, change)
                new_words += WORDS_OF_REMEDY.get(change, ())
            if new_words == words:
                continue  # the user chooses the value
            new_config, new_problems = composed(compose_fast, new_words)
            assert new_problems <= problems, override
            assert new_config != config, f"{override}: changes nothing"


def is_key(config, key):
    """Whether a composed config has the key, as a value or as a section."""
    return any(name == key or name.startswith(f"{key}.") for name in config)


def test_the_remedy_for_surplus_rollouts_is_no_key_that_verl_overrides():
    """Under dynamic sampling, verl sets data.gen_batch_size to 1 whatever its value."""
    (finding,) = groups.unused(of_sessions(taught=0.7, surplus=0.3), {})
    assert not any("gen_batch_size" in override for override in finding.overrides)


def test_lost_rewards_are_counted_over_the_whole_run_with_their_kinds():
    counts = {"reward__failures__raised": known_after(STEPS - 2, 3), "reward__failures__none": known_after(0, 0.5)}
    (finding,) = rewards.failing(table(lost_rewards=falling(0, 1.4), rollouts=9.3, **counts), {})
    assert finding.title == "21 of 300 responses (7.0%) lost their reward"
    assert "none 15, raised 6" in finding.text and "too_slow" not in finding.text


ENTROPY_BONUS, AVERAGE = "actor_rollout_ref.actor.entropy_coeff", "actor_rollout_ref.actor.loss_agg_mode"
QUANTILE, REPLACES = "algorithm.gsd.dagrpo.delta.quantile", "trainer.v1.sampler.sync_refill_failed_groups"


@pytest.mark.parametrize(
    ("finder", "steps", "key", "advised", "enough"),
    [
        (policy.entropy, table(entropy=falling(1, 0.01)), ENTROPY_BONUS, [0, 1e-4], [0.001, 0.01, 1]),
        (
            policy.length,
            table(tokens_per_response=falling(400, 50)),
            AVERAGE,
            ["seq-mean-token-mean"],
            ["token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"],
        ),
        (dagrpo.tied_scores, table(dagrpo__pairs__tied=0.8), QUANTILE, [None, 0.5], [0.25, 0.1]),
        (dagrpo.drifting_judge, table(judge_score=5 + WAVE + 3 * LATE), QUANTILE, [None], [0.25, 0.5]),
        (groups.failed, table(failed=0.1), REPLACES, [None, False], [True]),
    ],
)
def test_a_setting_that_suffices_is_not_advised(finder, steps, key, advised, enough):
    name = key.removesuffix(".quantile") + "="
    for value in advised:
        (finding,) = finder(steps, {key: value})
        assert any(name in line for line in finding.overrides), (value, finding.overrides)
    for value in enough:
        (finding,) = finder(steps, {key: value})
        assert not any(name in line for line in finding.overrides), (value, finding.overrides)


@pytest.mark.parametrize("mode", ["gsd_separate_async", "colocate_async"])
def test_asynchronous_modes_replace_failed_groups_without_a_key(mode):
    (finding,) = groups.failed(table(failed=0.1), {MODE: mode, REPLACES: False})
    assert finding.overrides == () and "verl replaces them" in finding.text
    assert "At least one session of each" in finding.text and "None of" not in finding.text


def test_only_a_loss_that_averages_over_each_response_is_said_to_favour_short_ones():
    steps = table(tokens_per_response=falling(400, 50))
    (finding,) = policy.length(steps, {AVERAGE: "seq-mean-token-mean"})
    assert "A loss that is averaged" in finding.text
    (finding,) = policy.length(steps, {AVERAGE: "seq-mean-token-sum-norm"})
    assert "loss" not in finding.text and "cause is a verifier" in finding.text


def test_a_bound_or_a_rate_that_is_written_as_an_integer_is_halved():
    config = {CLIPPING: 1, "actor_rollout_ref.actor.optim.lr": 0}
    (finding,) = updates.gradient_spikes(table(actor__grad_norm=SPIKE), config)
    assert finding.overrides[0].startswith(f"{CLIPPING}=0.5 ")
    assert not any("optim.lr" in line for line in finding.overrides), finding.overrides
    (finding,) = dagrpo.few_pairs_kept(table(pairs_kept=0.01), {"algorithm.gsd.dagrpo.delta": 1})
    assert finding.overrides[0].startswith("algorithm.gsd.dagrpo.delta=0.5 ")


def test_a_source_without_recent_groups_is_not_silent_and_few_of_many_sources_are_described():
    """A data source that the recent steps do not visit has no share of silent groups."""
    columns = {"silent": 0.1, "groups": 10.0}
    for number in range(8):
        of_source = {"accuracy": 0.5, "groups_answered": 10.0 * (number > 0), "groups_silent": 9.0 * (number > 0)}
        of_source |= {"groups_all_wrong": 9.0 * (number > 0), "groups_all_right": 0.0}
        columns |= {source_column(name, f"s{number}"): value for name, value in of_source.items()}
    (finding,) = groups.silent(table(**columns), {})
    assert finding.title == "90% of the groups of s1 are silent"
    assert finding.text.count(f"In the last {STEPS // 3} steps, ") == 5
    assert "The same holds for 2 other data sources." in finding.text


def test_a_run_without_data_has_no_findings():
    assert collect_findings({"step": np.zeros(0, np.int64)}, {}) == []
    assert collect_findings(table(), {}) == []


def test_every_finder_has_a_case_with_and_a_case_without_a_finding():
    from verl_gsd.report.findings.collect import FINDERS

    of_extensions = [finder for of in declarations() if of.findings for finder in load(of.findings)]
    assert {case[0] for case in FIRES} == {case[0] for case in QUIET} == {*FINDERS, *of_extensions}


def test_the_recent_mean_is_over_the_last_steps_that_have_a_value():
    assert recent_mean(table(a=np.arange(STEPS)), "a") == np.arange(STEPS - STEPS // 3, STEPS).mean()
    assert THRESHOLDS.window > STEPS // 3
    assert recent_mean(table(a=np.where(np.arange(STEPS) == 3, 7, np.nan)), "a") == 7
    assert np.isnan(recent_mean(table(), "a"))


@pytest.mark.parametrize(
    ("value", "factor", "line"),
    [
        (8, 2, ("a.b=16  # why; it is 8",)),
        (3, 0.5, ("a.b=1  # why; it is 3",)),
        (1, 0.5, ()),
        (1e-6, 0.5, ("a.b=5e-07  # why; it is 1e-06",)),
        (None, 2, ("a.b=...  # why",)),
        (True, 2, ("a.b=...  # why",)),
        ("${x}", 2, ("a.b=...  # why",)),
    ],
)
def test_an_override_is_scaled_if_the_value_is_known(value, factor, line):
    assert scaled({"a.b": value}, "a.b", factor, "why") == line


@pytest.mark.parametrize(
    ("columns", "config", "metric"),
    [
        ({"all_wrong": 0.6, "all_right": 0.0, "shaped": 0.0}, {}, "acc"),
        ({"all_wrong": 0.9, "all_right": 0.0, "shaped": 0.3}, {}, "reward"),
        ({"all_wrong": 0.5, "all_right": 0.3, "shaped": 0.2}, {}, "reward"),
        ({"all_wrong": 0.9, "all_right": 0.0, "shaped": 0.0}, {}, "acc"),  # the others have demonstrations
        ({"all_wrong": 0.9, "all_right": 0.0}, {}, "acc"),  # all groups have earlier responses
        (
            {"all_wrong": 0.9, "all_right": 0.0, "shaped": 0.3},
            {"reward.reward_kwargs.overlong_buffer_cfg.enable": True},
            "acc",
        ),
        ({"all_wrong": 0.6, "all_right": 0.0}, {VERIFIER: "pkg://verl_gsd.tasks.arithmetic_graded"}, "score"),
    ],
)
def test_dynamic_sampling_is_advised_by_what_is_equal_in_silent_groups(columns, config, metric):
    """With partial credit, a filter by verdict would also evict groups whose scores differ."""
    (finding,) = groups.silent(table(silent=0.6, **columns), config)
    assert any(f"algorithm.filter_groups.metric={metric} " in line for line in finding.overrides)


@pytest.mark.parametrize(
    ("shares", "sentences", "absent"),
    [
        ({"all_wrong": 0.1, "all_right": 0.5}, ["all right in 50%", "solves most"], ["nothing tells"]),
        ({"all_wrong": 0.5, "all_right": 0.1}, ["wrong in 50%"], ["solves most", "nothing tells"]),
        ({"all_wrong": 0.36, "all_right": 0.4}, ["all right in 40%"], ["solves most", "Harder"]),
        ({"all_wrong": 0.1, "all_right": 0.41, "equal": 0.1}, ["all right in 41%", "solves most"], []),
        (
            {"all_wrong": 0, "all_right": 0, "equal": 0.6},
            ["equal in 60%", "nothing tells", "has no accuracies, or all their accuracies are the same number between"],
            ["all right", "solves most"],
        ),
        ({"all_wrong": 0.1, "all_right": 0.2, "equal": 0.3}, ["right in 20%", "equal in 30%"], ["solves most"]),
    ],
)
def test_silent_groups_are_called_right_or_wrong_only_with_accuracies(shares, sentences, absent):
    """A bonus for the format can be the reward of all responses to a prompt that the policy does not solve."""
    (finding,) = groups.silent(table(silent=0.6, **shares), {})
    assert all(sentence in finding.text for sentence in sentences), finding.text
    assert not any(sentence in finding.text for sentence in absent), finding.text
    is_wrong = shares["all_wrong"] > shares["all_right"]
    assert any(line.startswith("algo=dagrpo_anchors") for line in finding.overrides) == is_wrong


def test_a_run_with_a_judge_keeps_it_beside_demonstrations():
    """``algo=dagrpo_anchors`` has no mask, and its line is rejected with the words of a judge."""
    shares = table(silent=0.6, all_wrong=0.5, all_right=0.1)
    (finding,) = groups.silent(shares, {"algorithm.gsd.dagrpo.judge.model": "judge"})
    advised = [line for line in finding.overrides if line.startswith("algo=dagrpo")]
    assert [line.split()[0] for line in advised] == ["algo=dagrpo"]


def test_a_loss_that_is_not_finite_is_told_from_a_gradient():
    (finding,) = updates.gradient_spikes(table(actor__grad_norm=LOST, actor__pg_loss=LOST, actor__lr=1e-6), {})
    assert finding.title == "The loss is not finite"
    assert "not finite at 10 steps, first at step 21" in finding.text and "At 10 of them, the loss" in finding.text
    (finding,) = updates.gradient_spikes(table(actor__grad_norm=LOST, actor__pg_loss=0.1, actor__lr=1e-6), {})
    assert finding.title == "The gradient norm spikes" and "the loss" not in finding.text


def test_a_run_is_not_told_to_change_its_algorithm_for_another_that_its_own_does_not_work_with():
    config = {"algorithm.gsd.gvpo.history_fraction": 0.0}
    (finding,) = collect_findings(table(silent=0.6, all_wrong=0.6), config)
    assert any(line.startswith("algorithm.filter_groups.enable=true ") for line in finding.overrides)
    assert not any("dagrpo" in line or "sampler" in line for line in finding.overrides), finding.overrides


MINI_BATCH = "actor_rollout_ref.actor.ppo_mini_batch_size"
ONE_UPDATE = {
    "data.train_batch_size": 128,
    MINI_BATCH: 128,
    "actor_rollout_ref.actor.ppo_epochs": 1,
}


@pytest.mark.parametrize(
    ("changes", "is_advised"),
    [
        ({}, False),
        ({MINI_BATCH: 256}, False),
        ({MINI_BATCH: 64}, True),
        ({"actor_rollout_ref.actor.ppo_epochs": 2}, True),
        ({"algorithm.rollout_correction.bypass_mode": True}, True),
        ({MODE: "gsd_separate_async", "trainer.v1.separate_async.parameter_sync_step": 2}, True),
        ({MODE: "gsd_sync", "trainer.v1.separate_async.parameter_sync_step": 2}, False),
        # each part of a step has old log-probabilities of its own
        ({MODE: "gsd_sync", "trainer.v1.sync.parameter_sync_step": 2, MINI_BATCH: 64}, False),
        ({MODE: "gsd_sync", "trainer.v1.sync.parameter_sync_step": 2, MINI_BATCH: 32}, True),
        ({"data.train_batch_size": None}, True),
    ],
)
def test_a_clipping_bound_is_advised_only_if_ratios_differ_from_1(changes, is_advised):
    """With one update per old policy, the policy is still that of the old log-probabilities."""
    (finding,) = policy.entropy(table(entropy=falling(1, 0.01)), ONE_UPDATE | changes)
    assert any("clip_ratio_high" in override for override in finding.overrides) == is_advised
