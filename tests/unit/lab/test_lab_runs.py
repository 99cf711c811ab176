"""The lab's runs, its table of algorithms, its prompts, and what it sets beside published figures."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import verl_gsd.config
from verl_gsd import planning
from verl_gsd.lab.algorithms import ALGORITHMS, SAME, algorithm
from verl_gsd.lab.drawing import one_each
from verl_gsd.lab.experiment import SEEDS, experiment, n_runs
from verl_gsd.lab.prompts import Prompts, mixture, starting_rates
from verl_gsd.lab.published import Figure, of_controlled_run, of_data, of_no_data
from verl_gsd.lab.simulation import Run, first_update, simulate
from verl_gsd.lab.summary import line_of, shares

# Runs


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_lifts_hard_and_easy_prompts_and_does_so_again_with_the_same_seed(name):
    start = starting_rates(mixture(), 200)
    run, same, other = (simulate(ALGORITHMS[name], start, steps=15, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(run.final, same.final) and np.array_equal(run.rollouts, same.rollouts)
    assert not np.array_equal(run.final, other.final)
    assert (run.quarters[-1] > run.quarters[0]).all()
    assert run.quarters.shape == (16, 4) and run.rollouts[0] == 0
    assert run.quarters[-1].mean() == pytest.approx(run.final.mean())
    cost = np.diff(run.rollouts)
    assert (cost == 8).all() if ALGORITHMS[name].draw is one_each else (cost > 8).all()


def test_dr_grpo_leaves_the_hardest_behind_at_the_rate_at_which_grpo_does_not():
    start = starting_rates(mixture(), 1000)
    grpo, dr_grpo = (simulate(ALGORITHMS[name], start).quarters[-1] for name in ("grpo", "dr_grpo"))
    assert grpo[0] - dr_grpo[0] > 0.05
    assert abs(grpo[3] - dr_grpo[3]) < 0.02


@pytest.mark.parametrize(
    "start", [np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.3, 0.1, 0.2, 0.4])]
)
def test_impossible_starts_are_refused(start):
    with pytest.raises(ValueError, match=r"start: .*\b4\b"):
        simulate(ALGORITHMS["grpo"], start)


def test_impossible_sizes_are_refused():
    start = np.full(4, 0.5)
    with pytest.raises(ValueError, match="group_size=1"):
        simulate(ALGORITHMS["grpo"], start, group_size=1)
    with pytest.raises(ValueError, match="steps=0"):
        simulate(ALGORITHMS["grpo"], start, steps=0)


def test_hadws_first_update_is_shown_with_an_anchor():
    start = starting_rates(mixture(), 400)
    weighed, plain = (first_update(ALGORITHMS[name], start) for name in ("hadw", "grpo"))
    hard = slice(0, 100)
    # Below the anchor (about .5) right responses of a hard prompt, most of its score, count 1.3 e^(.5 - p_hat) times.
    assert weighed[hard].sum() / plain[hard].sum() > 1.5


# The table of algorithms


def test_every_algorithm_that_a_run_can_have_is_here_or_said_to_be_another():
    files = Path(verl_gsd.config.__file__).parent.glob("algo/[!_]*.yaml")
    assert {file.stem for file in files} <= {*ALGORITHMS, *SAME}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope", "grpo, dr_grpo"),
        ("alpha=x", "alpha=X"),
        ("alpha=nan", "alpha=X"),
        ("alpha=", "alpha=X"),
        ("gspo", "grpo$"),
        ("hadw_gspo", "hadw$"),
        ("gsd", "alpha=X"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_to_write(name, says):
    with pytest.raises(ValueError, match=f"^{name}: .*{says}"):
        algorithm(name)


# Prompts


def test_the_mixture_is_as_wide_as_big_math():
    """Published: 4.0 and 7.2 % never and always solved; silent in groups of 8, 44.28 plug-in and 43.07 unbiased."""
    prompts = mixture()
    assert 100 * (prompts.correct == 0).mean() == pytest.approx(4.0, abs=1.5)
    assert 100 * (prompts.correct == prompts.total).mean() == pytest.approx(7.2, abs=0.5)
    assert 100 * np.mean(planning.silent_rate(prompts.rate, 8)) == pytest.approx(44.28, abs=0.6)
    silent = planning.silent_rate_from_counts(prompts.correct, prompts.total, 8)
    assert 100 * np.mean(silent) == pytest.approx(43.07, abs=0.6)


def test_runs_start_at_quantiles_of_the_rates_in_between():
    prompts = Prompts("a file", np.array([0.0, 1.0, 0.5, 0.001, 0.999, 0.25]), None, None)
    assert starting_rates(prompts, 8).tolist() == [0.02, 0.02, 0.25, 0.25, 0.5, 0.5, 0.98, 0.98]


def test_rates_of_nought_and_one_alone_are_refused():
    with pytest.raises(ValueError, match=r"^a file: .*\b3\b"):
        starting_rates(Prompts("a file", np.array([0.0, 1.0, 1.0]), None, None), 8)


# Published and recomputed


def test_figures_that_follow_from_p_and_g_alone_agree():
    figures = of_no_data()
    assert len(figures) == 33
    assert {figure.quantity: figure.difference for figure in figures if figure.difference} == {}


def test_a_difference_is_that_of_what_is_shown():
    assert Figure("", 17.0, 16.64, 1).difference == -0.4
    assert Figure("", 17.0, None, 1).difference is None
    assert Figure("", 17.0, 16.64, 1, comparable=False).difference is None


def test_without_counts_nothing_unbiased_is_claimed():
    rates_alone = of_data(Prompts("a file", np.array([0.25, 0.5]), None, None))
    unbiased = [figure for figure in rates_alone if "unbiased" in figure.quantity]
    assert len(unbiased) == 5
    assert all(figure.recomputed is None and figure.note for figure in unbiased)


def test_prompts_with_too_few_responses_are_left_out_and_that_is_said():
    prompts = Prompts("a file", np.array([0.5, 0.25]), np.array([4, 4]), np.array([8, 16]))
    notes = {figure.quantity: figure.note for figure in of_data(prompts) if "unbiased" in figure.quantity}
    assert notes["silent groups, G = 8, unbiased, %"] == ""
    assert re.search(r"\b1\b.*\b16\b", notes["silent groups, G = 16, unbiased, %"])
    assert re.search(r"\b32\b", notes["silent groups, G = 32, unbiased, %"])


def test_a_controlled_run_of_other_settings_is_not_compared():
    start = starting_rates(mixture(), 40)
    figures = of_controlled_run(start, {"grpo": [simulate(ALGORITHMS["grpo"], start, steps=3)]}, group_size=8, steps=3)
    assert [figure.difference for figure in figures] == [None] * 3
    assert all(figure.recomputed is not None for figure in figures)


def test_the_controlled_run_is_repeated_with_other_seeds():
    seen = []
    names = ["hadw", "dapo_redraw"]
    results = experiment(mixture(), names, n_prompts=40, steps=3, seed=5, on_run=seen.append)
    assert seen == ["hadw"] + ["dapo_redraw"] * SEEDS
    assert n_runs(names) == len(seen)
    figure = results.tables["of the controlled run"][-1]
    start = starting_rates(mixture(), 40)
    drawn = [simulate(ALGORITHMS["dapo_redraw"], start, steps=3, seed=seed).rollouts[-1] / 24 for seed in (5, 6, 7)]
    assert figure.recomputed == pytest.approx(np.mean(drawn))
    assert f"{min(drawn):.2f} to {max(drawn):.2f} over 3 seeds" == figure.note
    assert results.runs["dapo_redraw"].rollouts[-1] / 24 == drawn[0]


# In numbers


def test_a_run_in_numbers():
    quarters = np.array([[0.1, 0.3, 0.5, 0.7], [0.3, 0.5, 0.7, 0.9], [0.7, 0.9, 0.9, 0.9]])
    run = Run(np.full(4, 0.4), quarters[-1], quarters, np.array([0.0, 8.0, 20.0]))
    line = line_of(run)
    assert (line.steps, line.rollouts, line.all_rollouts) == (2, 20, 20)
    assert (line.final, line.final_hardest, line.final_easiest) == (pytest.approx(0.85), 0.7, 0.9)
    assert line.at_mean == pytest.approx(0.3 + 0.4 * (0.8 - 0.6) / (0.85 - 0.6))
    early = line_of(dataclasses.replace(run, quarters=quarters[:2], rollouts=run.rollouts[:2]))
    assert (early.steps, early.rollouts, early.at_mean) == (None, None, None)


def test_shares_are_of_the_weights():
    rates = np.array([0.05, 0.1, 0.99, 1.0])
    assert shares(rates, (0, 0.1, 0.5, 1)).tolist() == [0.25, 0.25, 0.5]
    assert shares(rates, (0, 0.1, 0.5, 1), np.array([3.0, 1, 0, 0])).tolist() == [0.75, 0.25, 0]
    assert shares(rates, (0, 0.1, 0.5, 1), np.zeros(4)).tolist() == [0, 0, 0]
