"""The report's findings on simulated runs: none where nothing is wrong, and the right one where something is.

``benchmarks/alarms.py`` measures both with many more runs.
"""

import importlib.util
import json
import sys

import numpy as np
import pytest
from places import ROOT


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
    for number, (name, (_, scenario, fault)) in enumerate(alarms.FAULTS.items()):
        for run in range(2):
            assert name in alarms.alarms(scenario, np.random.default_rng([8, number, run]), fault), name


def test_every_finding_has_a_fault(alarms):
    assert set(alarms.finders()) == set(alarms.FAULTS)


def test_the_page_has_the_measured_table_and_it_holds(alarms):
    figures = json.loads((ROOT / "benchmarks" / "results" / "alarms.json").read_text())
    assert alarms.table(figures) in (ROOT / "docs" / "findings.md").read_text()
    assert set(figures["pages"]) == set(alarms.HEALTHY) and set(figures["power"]) == set(alarms.FAULTS)
    assert all(page["false"] <= 0.01 * page["runs"] for page in figures["pages"].values())
    assert all(of["found"] >= 0.95 * of["runs"] for of in figures["power"].values())
    assert figures["runs"] >= 300, "so that no false alarm means less than 1% with 95% confidence"
