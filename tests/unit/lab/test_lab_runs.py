"""The lab's runs, its table of algorithms, its prompts, and what it sets beside published figures."""

import dataclasses
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import verl_gsd.config
from verl_gsd import extension, planning
from verl_gsd.bernoulli import Algorithm, SameAlgorithm, one_group_per_prompt
from verl_gsd.charts import COLOURS
from verl_gsd.lab.algorithms import algorithm, algorithms, families
from verl_gsd.lab.experiment import SEEDS, experiment, n_runs
from verl_gsd.lab.page import charts_of
from verl_gsd.lab.prompts import Prompts, mixture, starting_rates
from verl_gsd.lab.published import Figure, figures_of_controlled_run, figures_of_data, figures_without_data
from verl_gsd.lab.simulation import SimulatedRun, first_update, simulate
from verl_gsd.lab.summary import shares, summarize
from verl_gsd.lab.words import algorithm_rows

# Runs


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_lifts_hard_and_easy_prompts_and_does_so_again_with_the_same_seed(name):
    start = starting_rates(mixture(), 200)
    run, same, other = (simulate(algorithm(name), start, steps=15, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(run.final, same.final) and np.array_equal(run.rollouts, same.rollouts)
    assert not np.array_equal(run.final, other.final)
    assert (run.quarters[-1] > run.quarters[0]).all()
    assert run.quarters.shape == (16, 4) and run.rollouts[0] == 0
    assert run.quarters[-1].mean() == pytest.approx(run.final.mean())
    cost = np.diff(run.rollouts)
    assert (cost == 8).all() if algorithm(name).draw is one_group_per_prompt else (cost > 8).all()


def test_dr_grpo_leaves_the_hardest_behind_at_the_rate_at_which_grpo_does_not():
    start = starting_rates(mixture(), 1000)
    grpo, dr_grpo = (simulate(algorithm(name), start).quarters[-1] for name in ("grpo", "dr_grpo"))
    assert grpo[0] - dr_grpo[0] > 0.05
    assert abs(grpo[3] - dr_grpo[3]) < 0.02


@pytest.mark.parametrize(
    "start", [np.array([0.1, 0.2, 0.3]), np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.3, 0.1, 0.2, 0.4])]
)
def test_impossible_starts_are_refused(start):
    with pytest.raises(ValueError, match=r"start: .*\b4\b"):
        simulate(algorithm("grpo"), start)


def test_impossible_sizes_are_refused():
    start = np.full(4, 0.5)
    with pytest.raises(ValueError, match="group_size=1"):
        simulate(algorithm("grpo"), start, group_size=1)
    with pytest.raises(ValueError, match="steps=0"):
        simulate(algorithm("grpo"), start, steps=0)


def test_hadws_first_update_is_shown_with_an_anchor():
    start = starting_rates(mixture(), 400)
    weighed, plain = (first_update(algorithm(name), start) for name in ("hadw", "grpo"))
    hard = slice(0, 100)
    # Below the anchor (about 0.5), right responses of a hard prompt, most of its score, have a factor 1.3 e^(0.5 - p).
    assert weighed[hard].sum() / plain[hard].sum() > 1.5


# The table of algorithms


def test_every_algorithm_that_a_run_can_have_is_here_or_said_to_be_another():
    names = {file.stem for file in Path(verl_gsd.config.__file__).parent.glob("algo/[!_]*.yaml")}
    assert {"gspo", "hadw_gspo", "dagrpo"} <= names
    for name in names - set(algorithms()):
        with pytest.raises(ValueError, match=rf"^{name}: .*\bUse (alpha=X|grpo|hadw)\b"):
            algorithm(name)


OURS = {
    "dial": ["grpo", "dr_grpo", "alpha=0.5", "alpha=2"],
    "dapo": ["dapo", "dapo_redraw"],
    "hadw": ["hadw", "hadw_hard", "hadw_dr_grpo", "hadw_dapo"],
    "dagrpo": ["dagrpo_mask", "dagrpo_anchors", "dagrpo"],
    "gvpo": ["gvpo", "gvpo_demonstrations", "gvpo_ref"],
}


def test_rows_and_families_have_one_order():
    """Charts give the first family the first colour, and so on."""
    assert list(algorithms()) == list(itertools.chain(*OURS.values()))
    assert [algorithm(name).family for name in algorithms()] == [family for family in OURS for _ in OURS[family]]
    assert families() == list(OURS)


@pytest.fixture
def third_party(monkeypatch):
    """Declare a package's algorithms, which are forgotten after the test."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))

    def declare(rows):
        module = ModuleType("theirs")
        module.rows = lambda: rows
        monkeypatch.setitem(sys.modules, "theirs", module)
        extension.register(extension.Declaration("mine", "theirs:Mine", order=5, lab="theirs:rows"))

    return declare


def test_another_packages_row_follows_ours_and_is_run_and_drawn_like_ours(third_party):
    row = Algorithm("mine", "Twice the dial's rate.", one_group_per_prompt, algorithm("grpo").start, 1.0)
    third_party({"mine": row, "mine_gspo": SameAlgorithm("it is the same", use="mine")})
    assert list(algorithms())[-2:] == ["gvpo_ref", "mine"]
    with pytest.raises(ValueError, match=r"^mine_gspo: it is the same\. Use mine\.$"):
        algorithm("mine_gspo")
    results = experiment(mixture(), ["grpo", "mine"], n_prompts=40, steps=3)
    assert algorithm_rows(results)[-1] == ("mine", "1", "Twice the dial's rate.")
    assert results.runs["mine"].final.mean() > results.runs["grpo"].final.mean()
    colours = charts_of(results)["by-rollouts"].to_dict()["encoding"]["color"]["scale"]
    assert colours["domain"] == ["grpo", "mine"] and colours["range"] == [COLOURS[0], COLOURS[5]]


@pytest.mark.parametrize("name", ["grpo", "gspo", "hadw"])
def test_another_package_cannot_replace_one_of_our_rows(third_party, name):
    third_party({name: algorithm("dr_grpo")})
    with pytest.raises(ValueError, match=rf"extension 'mine': theirs:rows .*\b{name}\b.*Rename"):
        algorithm("grpo")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope", "grpo, dr_grpo"),
        ("alpha=x", "alpha=X"),
        ("alpha=nan", "alpha=X"),
        ("alpha=", "alpha=X"),
        ("gspo", r"Use grpo\.$"),
        ("hadw_gspo", r"Use hadw\.$"),
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
    figures = figures_without_data()
    assert len(figures) == 33
    assert {figure.quantity: figure.difference for figure in figures if figure.difference} == {}


def test_a_difference_is_that_of_what_is_shown():
    assert Figure("", 17.0, 16.64, 1).difference == -0.4
    assert Figure("", 17.0, None, 1).difference is None
    assert Figure("", 17.0, 16.64, 1, comparable=False).difference is None


def test_without_counts_nothing_unbiased_is_claimed():
    rates_alone = figures_of_data(Prompts("a file", np.array([0.25, 0.5]), None, None))
    unbiased = [figure for figure in rates_alone if "unbiased" in figure.quantity]
    assert len(unbiased) == 5
    assert all(figure.recomputed is None and figure.note for figure in unbiased)


def test_prompts_with_too_few_responses_are_left_out_and_that_is_said():
    prompts = Prompts("a file", np.array([0.5, 0.25]), np.array([4, 4]), np.array([8, 16]))
    notes = {figure.quantity: figure.note for figure in figures_of_data(prompts) if "unbiased" in figure.quantity}
    assert notes["silent groups, G = 8, unbiased, %"] == ""
    assert re.search(r"\b1\b.*\b16\b", notes["silent groups, G = 16, unbiased, %"])
    assert re.search(r"\b32\b", notes["silent groups, G = 32, unbiased, %"])


def test_a_controlled_run_of_other_settings_is_not_compared():
    start = starting_rates(mixture(), 40)
    runs = {"grpo": [simulate(algorithm("grpo"), start, steps=3)]}
    figures = figures_of_controlled_run(start, runs, group_size=8, steps=3)
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
    drawn = [simulate(algorithm("dapo_redraw"), start, steps=3, seed=seed).rollouts[-1] / 24 for seed in (5, 6, 7)]
    assert figure.recomputed == pytest.approx(np.mean(drawn))
    assert f"{min(drawn):.2f} to {max(drawn):.2f} over 3 seeds" == figure.note
    assert results.runs["dapo_redraw"].rollouts[-1] / 24 == drawn[0]


# In numbers


def test_a_run_in_numbers():
    quarters = np.array([[0.1, 0.3, 0.5, 0.7], [0.3, 0.5, 0.7, 0.9], [0.7, 0.9, 0.9, 0.9]])
    run = SimulatedRun(np.full(4, 0.4), quarters[-1], quarters, np.array([0.0, 8.0, 20.0]))
    line = summarize(run)
    assert (line.steps, line.rollouts, line.all_rollouts) == (2, 20, 20)
    assert (line.final, line.final_hardest, line.final_easiest) == (pytest.approx(0.85), 0.7, 0.9)
    assert line.at_mean == pytest.approx(0.3 + 0.4 * (0.8 - 0.6) / (0.85 - 0.6))
    early = summarize(dataclasses.replace(run, quarters=quarters[:2], rollouts=run.rollouts[:2]))
    assert (early.steps, early.rollouts, early.at_mean) == (None, None, None)


def test_shares_are_of_the_weights():
    rates = np.array([0.05, 0.1, 0.99, 1.0])
    assert shares(rates, (0, 0.1, 0.5, 1)).tolist() == [0.25, 0.25, 0.5]
    assert shares(rates, (0, 0.1, 0.5, 1), np.array([3.0, 1, 0, 0])).tolist() == [0.75, 0.25, 0]
    assert shares(rates, (0, 0.1, 0.5, 1), np.zeros(4)).tolist() == [0, 0, 0]
