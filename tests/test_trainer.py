"""The trainer mode gsd_sync, as verl builds it; no Ray."""

import pytest

pytest.importorskip("verl")
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_gsd.trainer.config import ConfigError, compose_config, parse_line, resolve


def trainer(*words):
    config = resolve(compose_config(parse_line(["algo=grpo", "task=arithmetic", "hardware=cpu", *words])))
    return get_trainer_cls(config.trainer.v1.trainer_mode)(config), config


@pytest.mark.parametrize(
    ("words", "seconds"),
    [([], 0.1), (["algorithm.gsd.poll_interval=0.5"], 0.5), (["algorithm.gsd.poll_interval=null"], 2.0)],
)
def test_the_replay_buffer_is_polled_as_asked(words, seconds):
    built, config = trainer(*words)
    assert built.replay_buffer.poll_interval == seconds
    assert isinstance(built, PPOTrainerSync)
    assert config.trainer.v1.trainer_mode == built.trainer_mode == "sync", "verl compares the mode with 'sync'"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+algorithm.gsd.alhpa=0.5", r"algorithm\.gsd\.alhpa: no such key"),
        ("algorithm.gsd.alpha=much", "alpha=much: write a finite number"),
        ("algorithm.gsd.poll_interval=0", r"poll_interval=0: write a number of seconds above 0"),
    ],
)
def test_under_verls_own_command_the_trainer_itself_refuses_our_section(word, message):
    with pytest.raises(ConfigError, match=message):
        trainer(word)


def test_a_stock_mode_is_left_as_verl_made_it():
    built, _ = trainer("trainer.v1.trainer_mode=sync")
    assert type(built) is PPOTrainerSync and built.replay_buffer.poll_interval == 2.0


def test_names_verl_does_not_know_are_refused_before_ray(monkeypatch):
    from verl_gsd.trainer.validation import validate_with_verl

    def check(*words):
        words = ["algo=grpo", "task=arithmetic", "hardware=cpu", *words]
        validate_with_verl(resolve(compose_config(parse_line(words))))

    check()
    for word, message in (
        ("trainer.v1.trainer_mode=gsd_snyc", r"trainer_mode=gsd_snyc: no such name\. Write one of .*gsd_sync"),
        ("algorithm.adv_estimator=grop", r"adv_estimator=grop: no such name\. Write one of .*grpo"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gpso", r"loss_mode=gpso: no such name\. Write one of .*gspo"),
        ("trainer.logger=[wandbb]", r"trainer\.logger=wandbb: no such name\. Write one of .*wandb"),
        ("actor_rollout_ref.actor.use_dynamic_bsz=false", r"verl refuses this config: .*micro_batch_size"),
        (
            "reward.custom_reward_function.name=no_such_function",
            r"custom_reward_function\.path=pkg://verl_gsd\.tasks\.arithmetic name=no_such_function: AttributeError",
        ),
        ("reward.custom_reward_function.path=/no/reward.py", r"path=/no/reward\.py name=compute_score: FileNotFound"),
        ("+algorithm.gsd.alhpa=0.5", r"algorithm\.gsd\.alhpa: no such key\. Keys are alpha, ddof, eps, poll_interval"),
    ):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            check(word)


def test_a_plugin_that_verl_did_not_load_is_told_apart_from_one_that_raised(monkeypatch):
    """verl swallows what a plugin raises; our keys would then mean nothing in any worker."""
    import sys

    from verl_gsd.trainer import validation

    monkeypatch.delitem(sys.modules, validation.PLUGIN)
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    assert "did not load verl_gsd.trainer.plugin (VERL_USE_EXTERNAL_PLUGINS=none)" in next(validation.plugin_absent())

    monkeypatch.delitem(sys.modules, validation.PLUGIN)
    monkeypatch.setitem(sys.modules, "wrapt", None)  # as if it were not installed
    assert "could not load verl_gsd.trainer.plugin: ModuleNotFoundError" in next(validation.plugin_absent())
