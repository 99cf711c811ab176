"""What a report says of the project's studies: for the settings they are about, with keys that the config accepts."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from places import ROOT
from report_runs import config as write_config
from report_runs import group, records

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.groups import Group
from verl_gsd.report.build import build_sections, read_runs
from verl_gsd.report.sections.studies import NOTES
from verl_gsd.run.checks.validate import validate

GRADED, BINARY = [0.2, 0.6, 0.9, 0.4], [1.0, 0.0, 1.0, 0.0]
FILTER, SMALLER, GVPO = "algorithm.filter_groups.enable=false", "algorithm.gsd.alpha=0", "algo=gvpo"


def shaped(rewards):
    """A group whose verdicts are all wrong."""
    rewards = np.array(rewards)
    return Group("uid", "math", 7, rewards, np.zeros(len(rewards)), np.full(len(rewards), 5))


def notices(folder, compose, left, *words):
    """(the notices of the section, the words of the run)"""
    composed, line = compose("task=arithmetic", "hardware=cpu", *words)
    values = dict(dotted_leaves(OmegaConf.to_container(composed)))
    for step in range(1, 5):
        records(folder, step, *((what, "trained") for what in left))
    write_config(folder, **{key.replace(".", "__"): value for key, value in values.items()})
    sections = {section.name: section for section in build_sections(read_runs([folder]))}
    return (sections["studies"].notices if "studies" in sections else []), composed, line


@pytest.mark.parametrize("left", [[GRADED], [shaped(GRADED), BINARY], [BINARY, group(GRADED)]])
@pytest.mark.parametrize("alpha", [1.0, 0.75])
def test_a_smaller_alpha_and_gvpo_are_shown_with_partial_credit(tmp_path, compose_fast, left, alpha):
    words = ("algo=gsd", f"algorithm.gsd.alpha={alpha}")
    (notice,), *_ = notices(tmp_path / "run", compose_fast, left, *words)
    assert "smaller alpha" in notice.title and "study methods" in notice.text
    assert [override.partition("  #")[0] for override in notice.overrides] == [SMALLER, GVPO]
    for override in notice.overrides:
        name = override.partition("=")[0]
        followed = [word for word in words if not word.startswith(name)] + [override.partition("  #")[0]]
        validate(*compose_fast("task=arithmetic", "hardware=cpu", *followed))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ([BINARY, [0.0] * 4, [1.0] * 4], ("algo=grpo",)),
        ([GRADED], ("algo=dr_grpo",)),
        ([shaped(GRADED)], ("algo=grpo", "algorithm.use_kl_in_reward=true")),
        ([shaped(GRADED)], ("algo=grpo", "reward.reward_kwargs.overlong_buffer_cfg.enable=true")),
        ([GRADED], ("algo=gsd",)),
        ([GRADED], ("algo=gvpo",)),
        ([BINARY] * 9 + [GRADED], ("algo=grpo",)),
    ],
)
def test_there_is_no_section_without_a_result_about_the_settings(tmp_path, compose_fast, left, words):
    shown, *_ = notices(tmp_path / "run", compose_fast, left, *words)
    assert shown == []


def test_dynamic_sampling_has_its_price_and_can_be_turned_off(tmp_path, compose_fast):
    (notice,), *_ = notices(tmp_path / "run", compose_fast, [BINARY], "algo=dapo")
    assert "evicts" in notice.text and notice.overrides[0].startswith(FILTER)
    validate(*compose_fast("task=arithmetic", "hardware=cpu", "algo=dapo", FILTER))


def test_each_note_names_a_study_that_has_run():
    page = (ROOT / "docs" / "studies.md").read_text()
    for find in NOTES:
        table = {"graded": np.ones(3), "step": np.arange(3)}
        settings = {
            "algorithm.filter_groups.enable": True,
            "algorithm.adv_estimator": "gsd",
            "algorithm.gsd.alpha": 1.0,
        }
        (note,) = find(table, settings)
        (name,) = {word.rstrip(".,)") for word in note.text.partition("the study ")[2].split()[:1]}
        assert (ROOT / "benchmarks" / "studies" / f"{name}.py").exists()
        assert "Not run yet" not in page.partition(f"<!-- table of {name} -->")[2].partition("<!-- end")[0]
