"""The controlled run of arXiv 2607.00152, from Big-Math's own counts: its published figures."""

import numpy as np
import pytest
from big_math import COUNTS

from verl_gsd import bernoulli
from verl_gsd.lab.algorithms import algorithm
from verl_gsd.lab.prompts import Prompts, starting_rates
from verl_gsd.lab.published import figures_of_controlled_run, figures_of_data
from verl_gsd.lab.simulation import first_update, simulate


@pytest.fixture(scope="module")
def big_math():
    """Its 215,608 prompts, each solved so many times out of 64."""
    correct = np.repeat(np.arange(65), COUNTS)
    return Prompts("Big-Math", correct / 64, correct, np.full(len(correct), 64))


@pytest.fixture(scope="module")
def start(big_math):
    return starting_rates(big_math, 6000)


@pytest.fixture(scope="module")
def redrawn():
    """Of every redrawing: how many prompts, and how many of them were mastered."""
    return []


@pytest.fixture(scope="module")
def runs(start, redrawn):
    respond = bernoulli.respond

    def watched(p, prompt, *rest):
        if len(prompt) < len(p):
            redrawn.append((len(prompt), int((p[prompt] > 0.9).sum())))
        return respond(p, prompt, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bernoulli, "respond", watched)
        return {name: simulate(algorithm(name), start) for name in ("grpo", "dr_grpo", "dapo_redraw")}


@pytest.fixture(scope="module")
def figures(start, runs):
    of_runs = {name: [run] for name, run in runs.items()}
    return {figure.quantity: figure for figure in figures_of_controlled_run(start, of_runs, group_size=8, steps=150)}


def test_every_figure_of_the_data_set_is_found_again(big_math):
    figures = figures_of_data(big_math)
    assert len(figures) == 16
    assert {figure.quantity: figure.difference for figure in figures if figure.difference} == {}


@pytest.mark.parametrize(("title", "name", "share"), [("GRPO", "grpo", 17.0), ("Dr. GRPO", "dr_grpo", 14.3)])
def test_the_first_update_goes_to_the_extremes_as_published(start, figures, title, name, share):
    """In expectation; one run of 6000 prompts scatters by 0.4 around it."""
    figure = figures[f"first update at p below 0.1 or above 0.9, {title}, %"]
    assert figure.published == share
    assert figure.recomputed == pytest.approx(share, abs=0.8)
    update = first_update(algorithm(name), start)
    seen = 100 * update[(start < 0.1) | (start > 0.9)].sum() / update.sum()
    assert seen == pytest.approx(figure.recomputed, abs=0.3)


def test_dividing_by_sigma_helps_the_hardest(runs, figures):
    assert figures["hardest quarter at the end, grpo"].recomputed == pytest.approx(0.99, abs=0.005)
    # 0.887 to 0.899 by seed
    assert figures["hardest quarter at the end, dr_grpo"].recomputed == pytest.approx(0.88, abs=0.02)
    assert runs["dapo_redraw"].quarters[-1, 0] > runs["grpo"].quarters[-1, 0]


def test_redrawing_spends_on_the_mastered(figures, redrawn):
    assert figures["rollouts of dapo_redraw over those of grpo"].recomputed == pytest.approx(3.5, abs=0.05)
    drawn, mastered = np.sum(redrawn, axis=0)
    assert mastered / drawn == pytest.approx(0.986, abs=0.003)
