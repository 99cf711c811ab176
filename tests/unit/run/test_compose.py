"""Parsing of command lines, and the configs composed from them."""

import re

import pytest
from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd.errors import ConfigError
from verl_gsd.run.compose import compose_config, no_such_key, parse_line, resolve, write_yaml

BASE = ["task=arithmetic", "hardware=cpu"]

pytestmark = pytest.mark.usefixtures("configs_parsed_once")


def composed(*words):
    return resolve(compose_config(parse_line([*BASE, *words])))


@pytest.mark.parametrize(
    ("algo", "expected"),
    [
        ("grpo", (1, True, "vanilla", "seq-mean-token-mean", 0.2, 0.2, False)),
        ("dr_grpo", (0, False, "vanilla", "seq-mean-token-sum-norm", 0.2, 0.2, False)),
        ("dapo", (1, True, "vanilla", "token-mean", 0.2, 0.28, True)),
        ("gspo", (1, True, "gspo", "seq-mean-token-mean", 3e-4, 4e-4, False)),
    ],
)
def test_each_algorithm_sets_what_its_paper_states(compose_fast, algo, expected):
    config, _ = compose_fast(f"algo={algo}", *BASE)
    actor = config.actor_rollout_ref.actor
    seen = (
        config.algorithm.gsd.alpha,
        config.algorithm.norm_adv_by_std_in_grpo,
        actor.policy_loss.loss_mode,
        actor.loss_agg_mode,
        actor.clip_ratio_low,
        actor.clip_ratio_high,
        config.algorithm.filter_groups.enable,
    )
    assert seen == expected
    assert config.algorithm.adv_estimator == "gsd"
    assert config.trainer.v1.trainer_mode == "gsd_sync"
    assert (actor.use_kl_loss, config.algorithm.use_kl_in_reward) == (False, False)
    if config.algorithm.filter_groups.enable:
        assert config.algorithm.filter_groups.metric == "acc", "a shaped score would let silent groups through"


def test_dr_grpo_divides_by_one_constant_whatever_the_micro_batch(compose_fast):
    """Left null, verl divides by the longest response of each micro-batch."""
    config, _ = compose_fast("algo=dr_grpo", *BASE, "data.max_response_length=6")
    assert config.actor_rollout_ref.actor.loss_scale_factor == 6


def test_every_choice_of_every_group_composes(compose_fast):
    """test_recipes.py composes the recipes, and here one of them is composed for each machine."""
    for algo in groups.choices("algo"):
        assert compose_fast(f"algo={algo}", *BASE)[0].algorithm.adv_estimator == "gsd"
    for hardware in groups.choices("hardware"):
        assert compose_fast("recipe=gsd/qwen2.5_math_7b", f"hardware={hardware}")[0].hardware.name == hardware
    names = {group: groups.choices(group) for group in ("task", "budget", "sampler", "silent_groups", "logger")}
    assert {*names, "algo", "hardware", "recipe"} == set(groups.GROUPS)
    for turn in range(max(map(len, names.values()))):
        words = [f"{group}={of[turn % len(of)]}" for group, of in names.items()]
        assert "console" in compose_fast("algo=grpo", "hardware=cpu", *words)[0].trainer.logger


def test_order_of_words_does_not_matter_and_single_keys_win():
    one = composed("algo=dapo", "actor_rollout_ref.actor.clip_ratio_high=0.3")
    line = parse_line(["actor_rollout_ref.actor.clip_ratio_high=0.3", "hardware=cpu", "algo=dapo", *BASE])
    other = resolve(compose_config(line))
    assert one == other
    assert one.actor_rollout_ref.actor.clip_ratio_high == 0.3


@pytest.mark.parametrize(("hardware", "interval"), [(["hardware=cpu"], 0.1), ([], None)])
def test_poll_interval_is_short_on_the_cpu_and_verls_elsewhere(compose_fast, hardware, interval):
    config, _ = compose_fast("algo=grpo", "task=arithmetic", *hardware)
    assert config.algorithm.gsd.poll_interval == interval


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["algo=nope"],
            r"algo=nope: .*algo= .*dagrpo \| .* \| grpo \| gsd \| gspo",
        ),
        (["algo=grpo", "task=nope"], r"task=nope: .*task= .*arithmetic"),
        (["algo=_base"], r"algo=_base: .*algo= "),
        (["algo=grpo", "budgt=adaptive"], r"budgt=adaptive: .*budget="),
        ([], r"algo is missing.*algo= .*grpo"),
        (["algo=grpo", "train"], r"'train' .*KEY=VALUE"),
    ],
)
def test_invalid_words_are_rejected_with_the_fix(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_line([*BASE, *words])


def test_the_cache_follows_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path))
    assert composed("algo=grpo").actor_rollout_ref.model.path == f"{tmp_path}/arithmetic/model"


def test_a_written_config_reads_back_equal(compose_fast, tmp_path):
    config, _ = compose_fast("algo=grpo", *BASE)
    write_yaml(config, tmp_path / "config.yaml")
    assert OmegaConf.load(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


#: Keys of a composed config, as ``no_such_key`` is given them.
KNOWN = [
    "trainer.total_training_steps",
    "trainer.total_epochs",
    "algorithm.gsd.alpha",
    "algorithm.gsd.state",
    "algorithm.gsd.dagrpo",
    "algorithm.gsd.dagrpo.delta",
]


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("trainer.total_trainings_steps", r"Did you mean .*trainer\.total_training_steps"),
        ("alpha", r"Did you mean .*algorithm\.gsd\.alpha"),
        ("nothing.like.this", r"\+nothing\.like\.this="),
        ("actor_rollout_ref.actor.policy_loss.beta", "algo=gvpo"),
        ("algorithm.gsd.budget.minimum", "budget=adaptive"),
        ("algorithm.gsd.sampler.explore", "sampler=disagreement"),
        ("algorithm.gsd.silent_groups.in_denominator", "silent_groups=left_out"),
        ("hardware.gpus_per_node", r"the line has no hardware= with GPUs\. Set hardware=gpu"),
        ("hardware.gpu_memory_gib", r"the line has no hardware= with GPUs\. Set hardware=gpu"),
        ("hardware.colour", r"no such key\. .*use \+hardware\.colour="),
        ("algorithm.gsd.rare", r"no such key\. To add the section of an extension, use \+algorithm\.gsd\.rare=VALUE\."),
        ("algorithm.gsd.rare.strength", r"no such key\. To add .*, use \+algorithm\.gsd\.rare\.strength=VALUE\."),
        ("algorithm.gsd.hadw.new", r"does not have this section\. Use \+algorithm\.gsd\.hadw\.new=VALUE to add it\."),
        ("algorithm.gsd.alpah", r"Did you mean algorithm\.gsd\.alpha\? .*use \+algorithm\.gsd\.alpah="),
        ("algorithm.gsd.hawd.preset", r"Did you mean algorithm\.gsd\.hadw\? .*use \+algorithm\.gsd\.hawd\.preset="),
        ("algorithm.gsd.dagrpo.detla", r"Did you mean algorithm\.gsd\.dagrpo\.delta\? If dagrpo has .*, use \+"),
        ("algorithm.gsd.dagrpo.zzz", r"no such key\. If dagrpo has this setting, use \+algorithm\.gsd\.dagrpo\.zzz="),
    ],
)
def test_error_for_an_unknown_key_suggests_similar_keys(key, answer):
    assert re.match(rf"{re.escape(key)}: .*{answer}", no_such_key(key, KNOWN))


def test_suggestions_for_a_misspelled_key_come_from_the_composed_config():
    with pytest.raises(ConfigError, match=r"trainer\.total_trainings_steps: .*trainer\.total_training_steps"):
        composed("algo=gsd", "trainer.total_trainings_steps=3")


@pytest.mark.parametrize("word", ["algorithm.gsd.rare={strength: 1.0}", "algorithm.gsd.rare.strength=1"])
def test_a_section_that_the_config_does_not_have_needs_a_plus(word):
    key = word.partition("=")[0]
    with pytest.raises(ConfigError, match=re.escape(f"use +{key}=VALUE")):
        composed("algo=gsd", word)
    assert composed("algo=gsd", f"+{word}").algorithm.gsd.rare.strength == 1


def test_leaf_keys_of_a_line_include_those_inside_values():
    line = parse_line([*BASE, "algo=gsd", "data.seed=1", "+algorithm.gsd.rare={a: {b: 1}, c: [2]}", "task.name=null"])
    assert line.leaf_keys == ["data.seed", "algorithm.gsd.rare.a.b", "algorithm.gsd.rare.c", "task.name"]
    assert line.keys == ["data.seed", "algorithm.gsd.rare", "task.name"]
