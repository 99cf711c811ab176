"""Every mistake around the sampler that can be seen before Ray starts, and what right lines come to."""

import re

import pytest

from verl_gsd.algorithms.rollouts.sampler_settings import SamplerSettings
from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate

SECTION = "algorithm.gsd.sampler"


@pytest.fixture
def check(compose_fast, tiny_task):
    def check(*words, sampler="disagreement"):
        words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"sampler={sampler}", *words]
        config, line = compose_fast(*words, f"task.directory={tiny_task}")
        validate.validate(config, line)
        return config

    return check


@pytest.mark.parametrize(
    ("words", "half_life"),
    [
        ((), 100),
        ((f"{SECTION}.half_life=null", f"{SECTION}.explore=1"), None),
        (("budget=adaptive",), 100),
        (("budget=adaptive", "algorithm.gsd.budget.half_life=7"), 7),
        (("budget=adaptive", "algorithm.gsd.budget.half_life=null"), None),
        (("trainer.v1.trainer_mode=gsd_colocate_async",), 100),
        (("algo=dapo",), 100),
        (("algorithm.adv_estimator=grpo",), 100),
    ],
)
def test_right_lines_pass_and_a_budget_forgets_at_the_same_rate(check, words, half_life):
    config = check(*words)
    assert config.algorithm.gsd.sampler.half_life == half_life
    assert config.data.dataloader_num_workers == 0


def test_without_it_nothing_changes(check):
    assert check("data.dataloader_num_workers=2", "data.shuffle=false", sampler="uniform").algorithm.gsd.sampler is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"explore": 0}, r"^explore=0: "),
        ({"explore": 2}, r"^explore=2: "),
        ({"explore": None}, r"^explore=null: "),
        ({"half_life": 0}, r"^half_life=0: .*null"),
        ({"temperature": 1}, r"^temperature: .*explore, half_life"),
        ({"explor": 1}, r"^explor: .*Did you mean explore\?$"),
        ("often", r"^often is not a section\. .*null"),
    ],
)
def test_mistakes_in_the_section_are_named(section, message):
    with pytest.raises(ValueError, match=message):
        SamplerSettings.of(section)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ((f"{SECTION}=often",), [r"algorithm\.gsd\.sampler=often: .*null"]),
        (
            ("data.dataloader_num_workers=8", "+data.sampler.class_path=pkg://my", "data.shuffle=true"),
            [
                r"num_workers=8: .*data\.dataloader_num_workers=0",
                r"data\.sampler: algorithm\.gsd\.sampler .* sampler=uniform",
                r"data\.shuffle=True .*algorithm\.gsd\.sampler",
            ],
        ),
        (
            ("budget=adaptive", f"{SECTION}.half_life=5"),
            [r"sampler\.half_life=5 with algorithm\.gsd\.budget\.half_life=100: "],
        ),
    ],
)
def test_mistakes_are_named_with_what_to_write_instead(check, words, messages):
    with pytest.raises(ConfigError) as refused:
        check(*words)
    problems = str(refused.value).splitlines()
    for message in messages:
        assert any(re.search(message, problem) for problem in problems), message
