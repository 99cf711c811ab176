"""Every mistake around the sampler that can be seen before Ray starts, and what right lines come to."""

import pytest

from verl_gsd.trainer import validation
from verl_gsd.trainer.config import ConfigError

SECTION = "algorithm.gsd.sampler"


@pytest.fixture
def check(compose_fast, tiny_task):
    def check(*words, sampler="disagreement"):
        words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"sampler={sampler}", *words]
        config, line = compose_fast(*words, f"task.directory={tiny_task}")
        validation.validate(config, line)
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
    ("words", "message"),
    [
        ((f"{SECTION}.explore=0",), r"sampler: explore=0: write a share above 0, so that no prompt waits for ever"),
        ((f"{SECTION}.explore=2",), r"explore=2: write a share above 0"),
        ((f"{SECTION}.explore=null",), r"explore=null: write a value, or leave it out"),
        ((f"{SECTION}.half_life=0",), r"half_life=0: write a number of steps above 0, or null"),
        ((f"+{SECTION}.temperature=1",), r"temperature: no such key\. Keys are explore, half_life"),
        ((f"{SECTION}=often",), r"sampler: often: write a section with keys, or null"),
        (("data.dataloader_num_workers=8",), r"num_workers=8: workers fetch .* Write data\.dataloader_num_workers=0"),
        (
            ("+data.sampler.class_path=pkg://my",),
            r"data\.sampler=.* prompts are drawn by one of them.* sampler=uniform",
        ),
        (
            ("budget=adaptive", f"{SECTION}.half_life=5"),
            r"sampler\.half_life=5 with algorithm\.gsd\.budget\.half_life=100: both read one memory",
        ),
        (
            ("data.train_batch_size=4096",),
            r"train_batch_size=4096: data\.train_files has \d+ rows\. Set it to that or less",
        ),
        (("data.shuffle=true",), r"data\.shuffle=True does nothing: algorithm\.gsd\.sampler draws the prompts"),
    ],
)
def test_mistakes_are_named_with_what_to_write_instead(check, words, message):
    with pytest.raises(ConfigError, match=message):
        check(*words)


def test_no_such_sampler_and_a_key_of_one_not_chosen(compose_fast):
    from verl_gsd.trainer.config import compose_config, parse_line

    with pytest.raises(ConfigError, match=r"sampler=curriculum: no such choice\. Write sampler= one of disagreement"):
        parse_line(["algo=grpo", "task=arithmetic", "sampler=curriculum"])
    with pytest.raises(ConfigError, match=r"explore: no such key under the sampler chosen\. .* sampler=disagreement"):
        compose_config(parse_line(["algo=grpo", "task=arithmetic", f"{SECTION}.explore=0.2"]))
