"""verl's engines with our hardware groups: what verl's own command and its config classes make of them."""

import inspect

import pytest
from omegaconf import OmegaConf, open_dict
from verl.trainer import main_ppo
from verl.utils import device
from verl.utils.config import omega_conf_to_dataclass

from verl_gsd import config as groups
from verl_gsd.run import our_runs
from verl_gsd.run.checks import validate
from verl_gsd.run.compose import compose_config, parse_line, resolve


@pytest.mark.parametrize("hardware", [name for name in groups.choices("hardware") if name != "cpu"])
def test_verl_makes_a_megatron_actor_of_each_gpu_group(hardware):
    words = ["recipe=gsd/qwen2.5_math_7b", f"hardware={hardware}", "model_engine=megatron"]
    actor = resolve(compose_config(parse_line(words))).actor_rollout_ref.actor
    with open_dict(actor):
        actor.rollout_n = 8
    assert type(omega_conf_to_dataclass(actor)).__name__ == "McoreActorConfig"


def test_main_ppo_removes_sections_of_other_engines(compose_fast):
    """``auto_set_device`` is called first in ``main_ppo``. This fails when verl calls it no longer."""
    config, _ = compose_fast("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g")
    config.model_engine = "megatron"
    main_ppo.auto_set_device(config)
    assert "fsdp_config" not in config.actor_rollout_ref.actor and "fsdp_config" not in config.actor_rollout_ref.ref
    assert main_ppo.auto_set_device is device.auto_set_device
    assert "auto_set_device" in inspect.unwrap(main_ppo.main).__code__.co_names


def test_main_ppo_marks_the_workers_of_runs_that_use_us(compose_fast):
    """Processes without the patches that keep other users out then take no part in the run."""
    config, _ = compose_fast("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g")
    main_ppo.auto_set_device(config)
    assert config.ray_kwargs.ray_init.runtime_env.env_vars[our_runs.MARK] == "1"
    stock, _ = compose_fast("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g")
    stock.trainer.v1.trainer_mode, stock.algorithm.adv_estimator = "sync", "grpo"
    with open_dict(stock):
        del stock.algorithm.gsd
    main_ppo.auto_set_device(stock)
    assert our_runs.MARK not in OmegaConf.to_yaml(stock)


def test_packages_are_not_checked_for_a_cluster(compose_fast):
    """Flash-attn and Megatron are needed where the run trains, not on a login node that joins a cluster."""
    config, line = compose_fast("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g", "model_engine=megatron")
    config.ray_kwargs.ray_init.address = "local"
    (problem,) = validate.check_packages(config, line)
    assert "megatron.core" in problem
    config.ray_kwargs.ray_init.address = "ray://head:10001"
    assert list(validate.check_packages(config, line)) == []


def test_gpus_are_not_checked_for_a_cluster(compose_fast, monkeypatch):
    """An address of Ray Client, which a run always joins."""
    monkeypatch.setattr(validate.gpus, "query", lambda: pytest.fail("the GPUs of this machine are asked for"))
    config, line = compose_fast("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g")
    config.ray_kwargs.ray_init.address = "ray://head:10001"
    assert list(validate.check_accelerators(config, line)) == []


def test_main_ppo_resolves_keys_that_depend_on_its_machine():
    """verl would resolve it in a process on any node of the cluster."""
    config = compose_config(parse_line(["algo=grpo", "task=arithmetic", "hardware=gpu"]))
    assert "verl_gsd.gpus" in OmegaConf.to_yaml(config)
    device.auto_set_device(config)
    left = OmegaConf.to_yaml(config)
    assert "verl_gsd.gpus:count" not in left and "verl_gsd.attention" not in left
