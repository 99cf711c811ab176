"""The report's findings on simulated runs: none where nothing is wrong, and the right one where something is.

``benchmarks/alarms.py`` measures both with many more runs.
"""

import importlib.util
import json
import sys

import numpy as np
import pytest
from places import ROOT

from verl_gsd.report.steps import step_table


@pytest.fixture(scope="module")
def alarms():
    path = ROOT / "benchmarks" / "alarms.py"
    spec = importlib.util.spec_from_file_location("alarms", path)
    sys.modules["alarms"] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_healthy_runs_have_no_findings(alarms):
    for number, (name, scenario) in enumerate(alarms.HEALTHY.items()):
        for run in range(3):
            found = alarms.alarms(scenario, np.random.default_rng([7, number, run]))
            assert [alarm for alarm in found if not alarms.is_true(alarm, scenario)] == [], name


def test_a_fault_is_found(alarms):
    for number, fault in enumerate(alarms.FAULTS):
        for run in range(2):
            found = alarms.alarms(fault.scenario, np.random.default_rng([8, number, run]), fault.apply)
            assert fault.finding in found, fault.about


def in_second_source(of):
    """(steps, batch) bool: the groups of the harder of two data sources."""
    return of.prompt % 2 == 1


def make_unanimous(of):
    of.together |= in_second_source(of) & (of.rng.random(of.prompt.shape) < 0.7)


def make_dependent(of):
    of.together[of.late] |= in_second_source(of)[of.late] & (of.rng.random(of.prompt[of.late].shape) < 0.6)


def shorten(of):
    of.length[of.late] /= np.where(in_second_source(of)[of.late], 3, 1)


def lose_verdicts(of):
    of.unverified += in_second_source(of) * np.linspace(0, 0.2, len(of.prompt))[:, None]


@pytest.mark.parametrize(
    ("name", "fault"),
    [("silent", make_unanimous), ("noisy", make_dependent), ("length", shorten), ("rising_unverified", lose_verdicts)],
)
def test_a_fault_in_one_of_two_data_sources_is_found_and_the_source_is_named(alarms, name, fault):
    """The other source has four fifths of the groups, and hides the fault in the figures over both."""
    second = alarms.SecondSource((0.2, 0.2))
    scenario = alarms.Scenario(law=(4.0, 1.5), prompts=300, sources=2, second=second, held_out=500)
    for run in range(2):
        assert alarms.alarms(scenario, np.random.default_rng([9, run])) == set(), "without the fault"
        of = alarms.draw(scenario, np.random.default_rng([9, run]))
        fault(of)
        run_with_fault = alarms.run_of(of)
        (finding,) = alarms.finders()[name](step_table(run_with_fault), run_with_fault.config)
        assert " of maths1 " in finding.text and " of maths " not in finding.text


def mixture(rng, size):
    """Solve rates of prompts of which four fifths are nearly never solved. No Beta law fits them."""
    return np.where(rng.random(size) < 0.8, rng.beta(1.0, 60.0, size), rng.beta(8.0, 2.0, size))


@pytest.mark.parametrize(
    ("law", "scenario"),
    [
        ((0.2, 4.0), {"prompts": 500, "size": 4, "batch": 64, "steps": 80}),
        ((3.0, 60.0), {"prompts": 200, "steps": 100}),
        ((1.0, 9.0), {"prompts": 300, "size": 4, "batch": 64, "steps": 80}),
        (None, {"prompts": 4000, "batch": 128}),
    ],
)
def test_hard_prompts_that_had_right_responses_are_not_taken_for_a_noisy_verifier(alarms, law, scenario):
    """They were lucky. A prediction from earlier responses under a wrong law found these runs in nearly all cases."""
    for seed in range(3):
        rng = np.random.default_rng([10, seed])
        of = alarms.draw(alarms.Scenario(**scenario | ({} if law is None else {"law": law})), rng)
        if law is None:
            of.solve_rates = mixture(rng, of.scenario.prompts)[of.prompt]
        assert list(alarms.finders()["noisy"](step_table(alarms.run_of(of)), of.config)) == []


@pytest.mark.parametrize(("law", "share"), [((1.0, 1.0), 0.2), ((1.0, 3.0), 0.2), ((1.0, 9.0), 0.3)])
def test_a_verifier_that_fails_for_whole_groups_is_found(alarms, law, share):
    for seed in range(3):
        rng = np.random.default_rng([11, seed])
        of = alarms.draw(alarms.Scenario(law=law, prompts=1000, batch=64, steps=120), rng)
        of.solve_rates[of.late][rng.random(of.prompt[of.late].shape) < share] = 0
        (finding,) = alarms.finders()["noisy"](step_table(alarms.run_of(of)), of.config)
        assert "had no right response" in finding.text


@pytest.mark.parametrize(("seed", "end", "found"), [*((seed, 0.6, False) for seed in (3, 23, 28, 33)), (3, 0.34, True)])
def test_the_noise_of_one_of_many_sources_makes_no_collapse_of_lengths_that_fall_in_all(alarms, seed, end, found):
    """With eight sources of two groups per step, the highest level of some source is far above its mean."""
    scenario = alarms.Scenario(sources=8, batch=16, prompts=800, learning=1.0)
    of = alarms.draw(scenario, np.random.default_rng([7, seed]))
    of.length *= np.linspace(1, end, len(of.length))[:, None]
    run = alarms.run_of(of)
    assert bool(list(alarms.finders()["length"](step_table(run), run.config))) is found


def test_every_finding_has_a_fault(alarms):
    assert set(alarms.finders()) == {fault.finding for fault in alarms.FAULTS}


def test_the_page_has_the_measured_table_and_it_holds(alarms):
    figures = json.loads((ROOT / "benchmarks" / "results" / "alarms.json").read_text())
    assert alarms.table(figures) in (ROOT / "docs" / "findings.md").read_text()
    assert set(figures["pages"]) == set(alarms.HEALTHY)
    measured = [(of["finding"], of["fault"]) for of in figures["power"]]
    assert measured == [(fault.finding, fault.about) for fault in alarms.FAULTS]
    assert all(page["false"] <= 0.01 * page["runs"] for page in figures["pages"].values())
    assert all(of["found"] >= 0.95 * of["runs"] for of in figures["power"])
    assert figures["runs"] >= 300, "so that no false alarm means less than 1% with 95% confidence"
