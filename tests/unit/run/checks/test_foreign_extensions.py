"""Other people's extensions: their sections are keys, and a checkpoint restores what they save."""

import importlib.metadata
import sys
from types import ModuleType

import pytest
from omegaconf import OmegaConf
from pydantic import Field

from verl_gsd import extension
from verl_gsd.audit import Effect, audit
from verl_gsd.chain import register_stage
from verl_gsd.errors import ConfigError
from verl_gsd.extension import Conflict, Declaration, Extension, register
from verl_gsd.prompts import PromptStore
from verl_gsd.run.checks import gsd_section, limits
from verl_gsd.run.checks.conflicts import check_conflicts
from verl_gsd.run.checks.sizes_in_data import dataset_group_sizes
from verl_gsd.run.checks.unused_keys import UnusedKey, check_unused_keys
from verl_gsd.run.compose import Line, compose_config, parse_line
from verl_gsd.settings import SectionSettings
from verl_gsd.state import save_state


class Theirs(Extension):
    """Has no hooks; its declaration is what is tested."""


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
        list(gsd_section.check_saved_memory(config, Line({}, ()))),
        list(gsd_section.check_third_party_memory(config)),
    ]


def test_a_weight_that_keeps_nothing_resumes(resumed):
    config = resumed({"cap": {"limit": 1.0}}, {"prompts": PromptStore()})
    assert wrong(config)[0] == [], "nobody knows yet what cap saves"
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    assert wrong(config) == [[], []]
    assert list(gsd_section.check_unknown_sections(config)) == []


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


def test_a_section_that_only_a_plugin_of_verls_may_own_is_left_to_the_checks_with_verl(resumed, monkeypatch):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "cap": {"limit": 1.0}}, {"prompts": PromptStore()})
    (problem,) = first_stage(config)
    assert "algorithm.gsd.cap: no such key" in problem and "install that package" in problem, "nobody else has a plugin"
    assert "If cap is an extension in a module of your own, set VERL_USE_EXTERNAL_MODULES to that module." in problem
    with monkeypatch.context() as patched:
        patched.setenv("VERL_USE_EXTERNAL_MODULES", "theirs.plugin")
        assert first_stage(config) == []
    theirs = importlib.metadata.EntryPoint("theirs", "theirs.plugin", "verl.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [theirs])
    assert first_stage(config) == []
    (problem,) = gsd_section.check_unknown_sections(config)
    assert problem.startswith("algorithm.gsd.cap: no such key. Keys are alpha, budget, ")
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    assert list(gsd_section.check_unknown_sections(config)) == []


def test_a_section_with_a_name_like_a_known_one_is_a_typing_mistake_at_once(resumed):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0, "hawd": {"preset": "hard"}}, {"prompts": PromptStore()})
    expected = ["algorithm.gsd.hawd: no such key. Did you mean hadw?"]
    assert first_stage(config) == list(gsd_section.check_unknown_sections(config)) == expected
    assert gsd_section.gsd_section_problems(config) == expected


def test_an_extension_that_could_not_be_registered_is_named_in_both_stages(resumed):
    config = resumed({"alpha": 1.0, "ddof": 1, "eps": 0.0}, {"prompts": PromptStore()})
    with pytest.raises(ValueError, match="'hadw'"):
        register(Declaration("hadw", Counter))
    (problem,) = first_stage(config)
    assert "'hadw'" in problem and extension.rejected() == gsd_section.gsd_section_problems(config) == [problem]


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
        assert gsd_section.gsd_section_problems(config) == told
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
    (problem,) = gsd_section.check_unknown_sections(config)
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
    (problem,) = gsd_section.gsd_section_problems(config)
    assert key in problem


def test_a_mode_that_a_budget_cannot_have_is_said_once(compose_fast):
    config, _ = compose_fast("algo=grpo", "budget=adaptive", "task=arithmetic", "hardware=cpu")
    config.trainer.v1.trainer_mode = "sync"
    (problem,) = gsd_section.gsd_section_problems(config)
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
    problems = [*gsd_section.check_third_party_extensions(config), *gsd_section.check_extensions_build(config)]
    (problem,) = problems
    assert said in problem


@pytest.fixture
def package(monkeypatch):
    """A module of somebody else's, by whose name a declaration refers to code."""
    module = ModuleType("their_package")
    monkeypatch.setitem(sys.modules, "their_package", module)
    return module


@pytest.fixture
def config(compose_fast):
    """words -> a resolved config with the section ``algorithm.gsd.theirs``."""

    def config(*words, section=None):
        found = compose_fast("task=arithmetic", "hardware=cpu", *words)[0]
        OmegaConf.update(found, "algorithm.gsd.theirs", section or {"limit": 1}, force_add=True)
        return found

    return config


def test_a_conflict_of_another_package_is_reported_before_ray_and_by_the_trainer(config):
    conflict = Conflict("algorithm.gsd.hadw", "both cap advantages", "Leave one of the two out.")
    register(Declaration("theirs", Theirs, conflicts=(conflict,)))
    expected = (
        "algorithm.gsd.hadw: algorithm.gsd.theirs does not work with it: both cap advantages. Leave one of the two out."
    )
    beside = config("algo=hadw")
    assert list(gsd_section.check_third_party_extensions(beside)) == [expected]
    assert gsd_section.gsd_section_problems(beside) == [expected]
    alone = config("algo=grpo")
    assert list(gsd_section.check_third_party_extensions(alone)) == gsd_section.gsd_section_problems(alone) == []


def test_gvpo_rejects_what_weighs_in_another_package_and_nothing_else(config):
    register(Declaration("theirs", Theirs))
    (said,) = check_conflicts(config("algo=gvpo"), Line({}, ()))
    assert said.startswith("algorithm.gsd.theirs: algorithm.gsd.gvpo does not work with it: ")
    extension._DECLARED.pop("theirs")
    register(Declaration("theirs", Theirs, weighs=False))
    assert list(check_conflicts(config("algo=gvpo"), Line({}, ()))) == []


def test_what_another_package_does_is_in_the_audit_in_the_order_of_the_chain(config, package):
    package.effect = lambda config: Effect(
        responses="copies join every group",
        centre="rewards are compared with the median",
        weight=f"a cap of {config.algorithm.gsd.theirs.limit}",
        loss="it is squared",
        prompts="the longest first",
        unanimous="kept, and repeated",
        warnings=("algorithm.gsd.theirs.limit=1: caps everything. Set 2.",),
    )
    register(Declaration("theirs", Theirs, order=41, audit="their_package:effect"))
    lines = list(audit(config("algo=hadw", "budget=adaptive")).lines())
    texts = [
        "copies join every group",
        "compared with the median",
        "(GRPO)",
        "(budget)",
        "HA-DW's factor",
        "a cap of 1",
    ]
    page = "\n".join(lines)
    places = [page.index(text) for text in (*texts, "it is squared", "silent groups: kept, and repeated")]
    assert places == sorted(places)
    assert "prompts: the longest first" in lines
    assert "warning: algorithm.gsd.theirs.limit=1: caps everything. Set 2." in lines
    package.effect = lambda config: None
    assert not any("their" in line or "cap of" in line for line in audit(config("algo=hadw")).lines())


def test_a_weight_is_not_in_the_audit_of_another_estimator(config, package):
    package.effect = lambda config: Effect(weight="a cap")
    register(Declaration("theirs", Theirs, audit="their_package:effect"))
    assert any("a cap" in line for line in audit(config("algo=grpo")).lines())
    assert not any("a cap" in line for line in audit(config("algo=grpo", "algorithm.adv_estimator=grpo")).lines())


def test_a_key_without_effect_of_another_package_is_an_error_on_the_line(config, package):
    package.KEYS = (
        UnusedKey(
            "algorithm.gsd.theirs.slope", lambda config: config.algorithm.gsd.theirs.limit == 1, "limit=1 is flat"
        ),
        UnusedKey("data.shuffle", lambda config: True, "theirs sorts"),
    )
    register(Declaration("theirs", Theirs, unused_keys="their_package:KEYS"))
    words = ("algo=grpo", "task=arithmetic", "+algorithm.gsd.theirs.slope=2", "data.shuffle=true", "data.seed=3")
    both = config("algo=grpo", "data.shuffle=true", section={"limit": 1, "slope": 2})
    assert list(check_unused_keys(both, parse_line(words))) == [
        "algorithm.gsd.theirs.slope=2 does nothing: limit=1 is flat.",
        "data.shuffle=True does nothing: theirs sorts.",
    ]
    both.algorithm.gsd.theirs.limit = 2
    assert len(list(check_unused_keys(both, parse_line(words)))) == 1


def test_verdicts_files_and_servers_that_another_package_needs_are_checked(config, package):
    package.files = lambda config, line: iter(["no file"])
    package.servers = lambda config, line: iter(["no server"])
    places = {"check_files": "their_package:files", "check_services": "their_package:servers"}
    register(Declaration("theirs", Theirs, reads_accuracy=True, **places))
    with_model = config("algo=grpo", "reward.reward_model.enable=true", "reward.custom_reward_function.path=null")
    said, *others = gsd_section.check_third_party_extensions(with_model)
    assert "algorithm.gsd.theirs reads acc" in said and others == ["no file"]
    assert list(gsd_section.check_third_party_extensions(config("algo=grpo"), files=False)) == []
    assert list(gsd_section.check_extension_services(config("algo=grpo"))) == ["no server"]
    absent = config("algo=grpo")
    absent.algorithm.gsd.theirs = None
    assert not [*gsd_section.check_extension_files(absent, Line({}, ())), *gsd_section.check_extension_services(absent)]


class TheirSettings(SectionSettings):
    limit: int = 1
    patience_s: float = 40.0


@pytest.mark.parametrize(("section", "seconds"), [({"limit": 1}, 40), ({"patience_s": 700}, 700)])
def test_a_run_is_not_stopped_while_a_group_may_wait_for_another_package(config, section, seconds):
    key = "algorithm.gsd.theirs.patience_s"
    register(Declaration("theirs", Theirs, settings=TheirSettings, longest_wait="patience_s"))
    found = config("algo=grpo", "algorithm.gsd.limits.quiet_seconds=350", section=section)
    assert limits.extension_waits(found) == {key: seconds}
    problems = list(limits.check_limits(found, Line({}, ())))
    assert len(problems) == (seconds > 350) and all(f"{key}=700" in problem for problem in problems)


def test_sizes_of_groups_are_no_matter_to_who_counts_groups(config, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    register(Declaration("theirs", Theirs, counts_groups=True))
    file = tmp_path / "planned.parquet"
    pq.write_table(pa.table({"data_source": ["a"] * 4, "__rollout_n__": [2, 6, 4, 4]}), file)
    found = config("algo=grpo", f"data.train_files={file}")
    assert len(list(dataset_group_sizes(found))) == 1
    found.algorithm.gsd.theirs = None
    assert len(list(dataset_group_sizes(found))) > 1


def test_settings_that_a_saved_memory_was_made_with_may_not_change(resumed, tmp_path):
    class LimitedCounter(Counter):
        def fingerprint(self):
            return {"ends": (0, self.settings["limit"])}

    register(Declaration("counter", LimitedCounter, saves=True))
    config = resumed({"counter": {"limit": 3}}, {"prompts": PromptStore(), "counter": Counter({})})
    saved = extension.fingerprints(extension.build({"counter": {"limit": 3}}))
    assert saved == {"algorithm.gsd.counter": {"ends": [0, 3]}}, "as JSON has it"
    memories = {"prompts": PromptStore(), "counter": Counter({})}
    save_state(tmp_path / "global_step_3", memories, gsd_section.memory_settings(config) | saved)
    assert list(gsd_section.check_fingerprints(config, Line({}, ()))) == []
    config.algorithm.gsd.counter.limit = 4
    (problem,) = gsd_section.check_fingerprints(config, Line({}, ()))
    assert problem.startswith("algorithm.gsd.counter.ends: ") and "[0, 3]" in problem and "[0, 4]" in problem
    config.algorithm.gsd.state = "fresh"
    assert list(gsd_section.check_fingerprints(config, Line({}, ()))) == []


def test_the_audit_names_a_stage_that_describes_nothing(compose_fast):
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu", "+algorithm.gsd.cap={limit: 1.0}")
    text = "\n".join(audit(config).lines())
    assert "multiplied by the factor of algorithm.gsd.cap, which declares no audit text" in text


def test_a_section_that_the_config_lacks_is_added_with_a_plus():
    register_stage("cap", "weight")(lambda rows, advantages, section: advantages)
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", "algorithm.gsd.cap={limit: 1.0}"]
    with pytest.raises(ConfigError, match=r"algorithm\.gsd\.cap: .*Use \+algorithm\.gsd\.cap=VALUE"):
        compose_config(parse_line(words))


def test_a_fingerprint_that_needs_a_run_is_left_to_the_trainer(resumed):
    class Needy(Counter):
        def fingerprint(self):
            return {"step": self.services.step}

    register(Declaration("counter", Needy, saves=True))
    config = resumed({"counter": {}}, {"prompts": PromptStore(), "counter": Counter({})})
    assert list(gsd_section.check_fingerprints(config, Line({}, ()))) == []


def test_a_checkpoint_of_a_run_without_the_extension_is_reported_once(resumed):
    config = resumed({"hadw": {"preset": "hard"}}, {"prompts": PromptStore()})
    (problem,) = first_stage_of_memory(config)
    assert "hadw" in problem and "None" not in problem


def first_stage_of_memory(config):
    line = Line({}, ())
    return [*gsd_section.check_saved_memory(config, line), *gsd_section.check_fingerprints(config, line)]


@pytest.mark.parametrize(
    ("field", "reference"),
    [("check", "theirs:fail"), ("check", "theirs:nothing"), ("unused_keys", "theirs:nothing"), ("check", "none:x")],
)
def test_a_declared_function_that_fails_is_named_with_its_extension(monkeypatch, compose_fast, field, reference):
    def fail(config, line):
        raise RuntimeError("boom")
        yield ""

    theirs = ModuleType("theirs")
    theirs.fail = fail
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    register(Declaration("mine", Counter, **{field: reference}))
    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
    with pytest.raises(ConfigError, match=rf"extension 'mine': its {field} \({reference}\) failed: "):
        [*gsd_section._check_extensions(config, Line({}, ())), *check_unused_keys(config, parse_line(LINE))]


LINE = ["algo=grpo", "task=arithmetic", "hardware=cpu", "trainer.total_training_steps=1"]
