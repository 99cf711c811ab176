"""Other people's extensions: their sections are keys, and a checkpoint restores what they save."""

import pytest
from omegaconf import OmegaConf
from pydantic import Field

from verl_gsd import extension
from verl_gsd.chain import register_stage
from verl_gsd.extension import Declaration, Extension, register
from verl_gsd.prompts import PromptStore
from verl_gsd.run.checks import gsd_section
from verl_gsd.run.compose import Line
from verl_gsd.settings import SectionSettings
from verl_gsd.state import save_state


class Counter(Extension):
    def state_dict(self):
        return {"count": 3}

    def load_state_dict(self, state):
        pass


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))


@pytest.fixture
def resumed(compose_fast, tmp_path):
    """(section, memories) -> a config that resumes from a checkpoint with these memories."""

    def resumed(section, saved):
        checkpoint = tmp_path / "global_step_3"
        config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
        OmegaConf.update(config, "algorithm.gsd", section, force_add=True)
        config.trainer.resume_mode, config.trainer.resume_from_path = "resume_path", str(checkpoint)
        save_state(checkpoint, saved, gsd_section.memory_settings(config))
        return config

    return resumed


def wrong(config):
    """What is wrong with the memory, before any package of other people is loaded, and after."""
    return [
        list(gsd_section.memory_restorable(config, Line({}, ()))),
        list(gsd_section.foreign_memory_restorable(config)),
    ]


def test_a_weight_that_keeps_nothing_resumes(resumed):
    config = resumed({"cap": {"limit": 1.0}}, {"prompts": PromptStore()})
    assert wrong(config)[0] == [], "nobody knows yet what cap saves"
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    assert wrong(config) == [[], []]
    assert list(gsd_section.own_keys_unknown(config)) == []


def test_a_memory_of_other_people_is_asked_for_once_their_package_is_loaded(resumed):
    config = resumed({"counter": {}}, {"prompts": PromptStore()})
    assert wrong(config)[0] == []
    register(Declaration("counter", Counter, saves=True))
    (problem,) = wrong(config)[1]
    assert "counter" in problem and "algorithm.gsd.state=fresh" in problem
    whole = resumed({"counter": {}}, {"prompts": PromptStore(), "counter": Counter({})})
    assert wrong(whole) == [[], []]


def first_stage(config):
    """What the first checks say of our part."""
    return [problem for check in gsd_section.CHECKS for problem in check(config, Line({}, ()))]


def test_a_section_that_only_a_plugin_of_verls_may_own_is_left_to_the_checks_with_verl(resumed):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "cap": {"limit": 1.0}}, {"prompts": PromptStore()})
    assert first_stage(config) == []
    (problem,) = gsd_section.own_keys_unknown(config)
    assert problem.startswith("algorithm.gsd.cap: no such key. Keys are alpha, budget, ")
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    assert list(gsd_section.own_keys_unknown(config)) == []


def test_a_section_with_a_name_like_a_known_one_is_a_typing_mistake_at_once(resumed):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "hawd": {"preset": "hard"}}, {"prompts": PromptStore()})
    expected = ["algorithm.gsd.hawd: no such key. Did you mean hadw?"]
    assert first_stage(config) == list(gsd_section.own_keys_unknown(config)) == expected
    assert gsd_section.own_problems(config) == expected


def test_an_extension_that_could_not_be_registered_is_named_in_both_stages(resumed):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0}, {"prompts": PromptStore()})
    with pytest.raises(ValueError, match="'hadw'"):
        register(Declaration("hadw", Counter))
    (problem,) = first_stage(config)
    assert "'hadw'" in problem and extension.rejected() == gsd_section.own_problems(config) == [problem]


class MineSettings(SectionSettings):
    limit: float = Field(gt=0)


def test_settings_of_another_package_are_checked_first_and_its_own_check_relies_on_them(resumed, monkeypatch):
    def check(config, line):
        if MineSettings.of(config.algorithm.gsd.mine).limit == 1:
            yield "rollout.temperature is too warm"

    real = extension.load
    monkeypatch.setattr(extension, "load", lambda place: check if place == "mine:check" else real(place))
    register(Declaration("mine", Extension, settings=MineSettings, check="mine:check"))
    for section, problems in (
        ({"limit": 0, "limits": 1}, ["limit=0: out of range. Set it to a number above 0.", "limits: no such key."]),
        ({}, ["limit is missing. Set it."]),
    ):
        config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "mine": section}, {"prompts": PromptStore()})
        told = first_stage(config)
        assert len(told) == len(problems)
        assert all(one.startswith(f"algorithm.gsd.mine.{two}") for one, two in zip(told, problems, strict=True)), told
        assert gsd_section.own_problems(config) == told
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "mine": {"limit": 1}}, {"prompts": PromptStore()})
    assert first_stage(config) == ["rollout.temperature is too warm"]


def test_the_check_of_an_extension_does_not_run_beside_a_wrong_part_of_it(compose_fast):
    config, _ = compose_fast("algo=dagrpo", "task=arithmetic", "hardware=cpu")
    config.algorithm.gsd.dagrpo.judge.timeout_s = 0
    config.algorithm.gsd.dagrpo.delta = 11
    (problem,) = first_stage(config)
    assert problem.startswith("algorithm.gsd.dagrpo.judge.timeout_s=0: ")
    config.algorithm.gsd.dagrpo.judge.timeout_s = 1
    assert [problem.partition(":")[0] for problem in first_stage(config)] == ["algorithm.gsd.dagrpo.delta=11"]


def test_a_section_that_nobody_reads_is_an_unknown_key(resumed):
    config = resumed({"capp": {"limit": 1.0}}, {"prompts": PromptStore()})
    (problem,) = gsd_section.own_keys_unknown(config)
    assert "algorithm.gsd.capp" in problem and "hadw" in problem


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"hadw": 3}, "algorithm.gsd.hadw=3"),
        ({"gvpo": 3}, "algorithm.gsd.gvpo=3"),
        ({"hadw": {"preset": "haard"}}, "algorithm.gsd.hadw"),
        ({"budget": {"minimum": 1}}, "algorithm.gsd.budget"),
        ({"dagrpo": {"delta": "x"}}, "algorithm.gsd.dagrpo"),
    ],
)
def test_what_is_wrong_with_a_section_is_said_once_under_verls_own_command(compose_fast, section, key):
    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
    OmegaConf.update(config, "algorithm.gsd", section, force_add=True)
    (problem,) = gsd_section.own_problems(config)
    assert key in problem


def test_a_mode_that_a_budget_cannot_have_is_said_once(compose_fast):
    config, _ = compose_fast("algo=grpo", "budget=adaptive", "task=arithmetic", "hardware=cpu")
    config.trainer.v1.trainer_mode = "sync"
    (problem,) = gsd_section.own_problems(config)
    assert "trainer.v1.trainer_mode=sync" in problem


@pytest.mark.parametrize(
    ("section", "said"), [({"limit": 0}, "limit=0"), ({"limit": 1}, "too warm"), (True, "algorithm.gsd.mine=true")]
)
def test_what_is_wrong_with_another_packages_section_is_said_once_before_ray(resumed, monkeypatch, section, said):
    class Mine(Extension):
        def __init__(self, section, services=None):
            super().__init__(section, services)
            if section["limit"] < 1:
                raise ValueError(f"limit={section['limit']}: write 1 or more")

    def too_warm(config, line):
        if OmegaConf.select(config, "algorithm.gsd.mine.limit") == 1:
            yield "rollout.temperature is too warm"

    monkeypatch.setattr(extension, "load", lambda place: too_warm if place == "mine:check" else place)
    register(Declaration("mine", Mine, check="mine:check"))
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "mine": section}, {"prompts": PromptStore()})
    problems = [*gsd_section.foreign_extensions_wrong(config), *gsd_section.extensions_unusable(config)]
    (problem,) = problems
    assert said in problem
