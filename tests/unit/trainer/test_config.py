"""The command line's words, the groups they choose, and the config that comes of them."""

import pytest
from omegaconf import OmegaConf

from verl_gsd import config as groups
from verl_gsd.trainer.config import ConfigError, compose_config, parse_line, resolve, write_yaml

BASE = ["task=arithmetic", "hardware=cpu"]


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
def test_each_algorithm_sets_what_its_paper_states(algo, expected):
    config = composed(f"algo={algo}")
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


def test_dr_grpo_divides_by_one_constant_whatever_the_micro_batch():
    """Left null, verl divides by the longest response of each micro-batch."""
    actor = composed("algo=dr_grpo", "data.max_response_length=6").actor_rollout_ref.actor
    assert actor.loss_scale_factor == 6


def test_every_choice_of_every_group_composes():
    names = {group: groups.choices(group) for group in groups.GROUPS if group != "recipe"}  # test_recipes.py
    for turn in range(max(map(len, names.values()))):
        words = [f"{group}={of[turn % len(of)]}" for group, of in names.items()]
        assert "console" in resolve(compose_config(parse_line(words))).trainer.logger


def test_order_of_words_does_not_matter_and_single_keys_win():
    one = composed("algo=dapo", "actor_rollout_ref.actor.clip_ratio_high=0.3")
    other = resolve(
        compose_config(parse_line(["actor_rollout_ref.actor.clip_ratio_high=0.3", "hardware=cpu", "algo=dapo", *BASE]))
    )
    assert one == other
    assert one.actor_rollout_ref.actor.clip_ratio_high == 0.3


@pytest.mark.parametrize(("hardware", "interval"), [(["hardware=cpu"], 0.1), ([], None)])
def test_poll_interval_is_short_on_the_cpu_and_verls_elsewhere(hardware, interval):
    config = resolve(compose_config(parse_line(["algo=grpo", "task=arithmetic", *hardware])))
    assert config.algorithm.gsd.poll_interval == interval


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["algo=nope"],
            r"algo=nope: no such choice\. Write algo= one of dagrpo \| .* \| grpo \| gsd \| gspo",
        ),
        (["algo=grpo", "task=nope"], r"task=nope: no such choice\. Write task= one of arithmetic"),
        (["algo=_base"], r"algo=_base: no such choice"),
        ([], r"algo is missing\. Add algo= one of"),
        (["algo=grpo", "train"], r"'train' is not KEY=VALUE"),
    ],
)
def test_wrong_words_are_refused_with_what_to_write(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_line([*BASE, *words])


def test_the_cache_follows_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path))
    assert composed("algo=grpo").actor_rollout_ref.model.path == f"{tmp_path}/arithmetic/model"


def test_a_written_config_reads_back_equal(tmp_path):
    config = composed("algo=grpo")
    write_yaml(config, tmp_path / "config.yaml")
    assert OmegaConf.load(tmp_path / "config.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_any_hydra_application_lists_the_choices():
    """What ``python -m verl.trainer.main_ppo +algo=nope`` meets: the groups are in Hydra's own store."""
    from hydra import compose, initialize_config_module
    from hydra.errors import MissingConfigException

    groups.store_groups()
    with (
        initialize_config_module("verl.trainer.config", version_base=None),
        pytest.raises(MissingConfigException, match=r"(?s)algo/nope.*dapo.*dr_grpo.*grpo.*gspo"),
    ):
        compose("ppo_trainer", overrides=["+algo=nope"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.total_trainings_steps=3", r"no such key\. Did you mean .*trainer\.total_training_steps"),
        ("alpha=0.5", r"^alpha: no such key\. Did you mean .*algorithm\.gsd\.alpha"),
        (
            "nothing.like.this=1",
            r"no such key\. One that verl reads and does not list is written \+nothing\.like\.this=",
        ),
        ("grpo", r"'grpo' is not KEY=VALUE"),
        ("actor_rollout_ref.actor.policy_loss.beta=0.2", r"under the algorithm chosen\. It belongs to algo=gvpo"),
        ("algorithm.gsd.gvpo.history_fraction=0.5", r"under the algorithm chosen\. It belongs to algo=gvpo"),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_those_that_may_be_meant(word, message):
    with pytest.raises(ConfigError, match=message):
        composed("algo=gsd", word)
