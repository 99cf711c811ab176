"""How often intervals contain the true value: some cells of the simulation in benchmarks, and its published figures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from verl_gsd.evaluation.intervals import difference_over_seeds, mean_accuracy_over_seeds, mean_by_question

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as the script has it

import interval_coverage as simulation  # noqa: E402

LAWS = {law.name: law for law in simulation.laws()}
DRAWS = 3000  # the standard error of a coverage of 0.95 is 0.004


@pytest.mark.parametrize(
    ("law", "questions", "samples"),
    [
        ("4% at 0.8 and 30% at 0.02", 15, 32),
        ("4% at 0.8 and 30% at 0.02", 30, 32),
        ("1% at 0.9 and 10% at 0.01", 60, 32),
        ("Beta(0.05, 1)", 30, 32),
        ("Beta(0.1, 1)", 30, 32),
        ("Beta(1, 1)", 15, 4),
        ("Beta, mean 0.001, a + b = 10", 30, 4),
        ("Beta, mean 0.01, a + b = 1", 60, 32),
        ("all at 0.03", 500, 32),
    ],
)
def test_intervals_over_questions_cover_the_mean_of_their_law(law, questions, samples):
    """Student's interval covers less than 93% in six of these cells, and 49% in the first one."""
    law, rng = LAWS[law], np.random.default_rng(7)
    values = simulation.draw_benchmarks(law, questions, samples, DRAWS, rng)
    assert simulation.coverage(simulation.ends(map(mean_by_question, values)), law.mean) >= 0.93


@pytest.mark.parametrize("seeds", [2, 3, 8, 32])
@pytest.mark.parametrize(("mean", "spread", "responses"), [(0.001, 0.3, 30), (0.03, 0.1, 198), (0.5, 0.0, 30)])
def test_intervals_over_seeds_cover_means_and_differences(mean, spread, responses, seeds):
    """Student's interval covers a mean of 0.001 of two seeds with 30 responses each in 6 of 100 cases."""
    rng, total = np.random.default_rng(8), seeds * responses

    def runs(mean):
        return simulation.draw_seeds(mean, spread, (DRAWS, seeds), responses, rng)

    first, second = runs(mean), runs(1.5 * mean)
    found = simulation.ends(mean_accuracy_over_seeds(values, total) for values in first)
    assert simulation.coverage(found, mean) >= 0.93
    found = simulation.ends(difference_over_seeds(*pair, total) for pair in zip(first, second, strict=True))
    assert simulation.coverage(found, 0.5 * mean) >= 0.93


def test_no_cell_of_the_published_simulation_is_below_the_bound():
    published = json.loads((BENCHMARKS / "results/interval_coverage.json").read_text())
    assert set(published["questions"]) == set(simulation.CANDIDATES)
    used = published["questions"][simulation.USED]
    found = [
        used["worst"],
        used["one_response_worst"],
        *(published["seeds"][name]["worst"] for name in ("mean", "difference")),
    ]
    assert min(cell["coverage"] for cell in found) >= 0.93
    assert used["cells"] == len(LAWS) * len(simulation.QUESTIONS) * len(simulation.SAMPLES)
