"""LoRA settings with which the trained adapter does not reach vLLM, or that have no effect."""

import json
import re

import pytest
from omegaconf import OmegaConf

from verl_gsd.run.checks import validate
from verl_gsd.run.checks.lora import check_lora, lora_warnings

RECIPE = ("recipe=start/gsm8k_qwen2.5_0.5b_lora", "hardware=8xa100_80g")
MODEL, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"


def problems(compose_fast, *words):
    config, line = compose_fast(*RECIPE, *words)
    return list(check_lora(config, line))


def test_the_recipes_adapter_reaches_vllm(compose_fast):
    config, line = compose_fast(*RECIPE)
    assert list(check_lora(config, line)) == [] and list(lora_warnings(config)) == []
    assert config.actor_rollout_ref.model.lora_rank == 32
    assert config.actor_rollout_ref.rollout.load_format == "safetensors"
    assert check_lora in validate.CHECKS


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((f"{MODEL}.lora_rank=600",), r"lora_rank=600: .*512.*lora\.merge=true"),
        ((f"{MODEL}.lora_rank=big",), r"lora_rank=big.*integer"),
        (
            (f"{MODEL}.lora_rank=0", f"{MODEL}.lora.rank=8"),
            r"lora\.rank=8: only Megatron.*lora_rank=8 and lora\.rank=0",
        ),
        ((f"{MODEL}.lora_rank=0", f"{MODEL}.lora_alpha=8"), r"lora_alpha has no effect.*lora_rank=32"),
        ((f"{MODEL}.lora.alpha=8",), r"lora\.alpha has no effect: only Megatron.*model\.lora_alpha"),
        ((f"{MODEL}.lora.exclude_modules=[a]",), r"lora\.exclude_modules has no effect"),
        (
            (f"{ROLLOUT}.layered_summon=true", f"{ROLLOUT}.load_format=dummy"),
            r"layered_summon=true.*load_format=safetensors",
        ),
        (
            ("trainer.v1.trainer_mode=gsd_separate_async",),
            r"trainer_mode=gsd_separate_async, verl sends only.*lora\.merge=true",
        ),
        (("trainer.v1.trainer_mode=separate_async",), r"trainer_mode=separate_async, verl sends only"),
        (
            (f"{MODEL}.lora_adapter_path=/none", f"{MODEL}.lora_rank=0"),
            r"lora_adapter_path=/none: FSDP loads.*rank of the adapter",
        ),
    ],
)
def test_settings_that_keep_an_adapter_from_vllm_are_rejected(compose_fast, words, said):
    (problem,) = problems(compose_fast, *words)
    assert problem.startswith(MODEL) or problem.startswith(ROLLOUT)
    assert re.search(said, problem), problem


@pytest.mark.parametrize(
    "words",
    [
        (f"{ROLLOUT}.layered_summon=true",),
        (f"{ROLLOUT}.load_format=dummy",),
        ("trainer.v1.trainer_mode=gsd_separate_async", f"{MODEL}.lora.merge=true"),
        (f"{MODEL}.lora_rank=600", f"{MODEL}.lora.merge=true"),
        (f"{MODEL}.lora_alpha=8",),
        (f"{MODEL}.lora_rank=0",),
        (f"{MODEL}.lora_rank=null",),
    ],
)
def test_settings_with_which_it_arrives_pass(compose_fast, words):
    assert problems(compose_fast, *words) == []


def test_under_megatron_its_own_section_counts(compose_fast):
    config, line = compose_fast(*RECIPE)
    config.actor_rollout_ref.actor.strategy = "megatron"
    (problem,) = check_lora(config, line)
    assert re.search(r"lora_rank=32: only FSDP.*lora\.rank=32", problem)
    config.actor_rollout_ref.model.lora.rank = 32
    assert list(check_lora(config, line)) == []


def test_an_adapter_to_start_from_is_checked(compose_fast, tmp_path):
    adapter = {"r": 8, "lora_alpha": 16, "use_dora": True, "bias": "none"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    path = f"{MODEL}.lora_adapter_path={tmp_path}"
    (first, second) = problems(compose_fast, path)
    assert re.search(r"rank 8\. Set .*lora_rank=8", first) and "use_dora" in second
    (rank,) = problems(compose_fast, path, f"{MODEL}.lora_rank=0")
    assert rank.endswith(f"Set {MODEL}.lora_rank=8.")
    (alpha, _) = problems(compose_fast, path, f"{MODEL}.lora_rank=8", f"{MODEL}.lora_alpha=8")
    assert "lora_alpha has no effect: the adapter" in alpha
    assert problems(compose_fast, path, f"{MODEL}.lora_rank=8", f"{MODEL}.lora.merge=true") == []
    (tmp_path / "adapter_config.json").write_text("[")
    assert problems(compose_fast, path) == [], "verl reports a file that is none"


@pytest.mark.parametrize(
    ("targets", "parameters", "said"),
    [
        (["q_proj", "lm_head"], None, r"warning: .*target_modules has lm_head: .*lora\.merge=true"),
        ("embed_tokens", None, r"warning: .*embed_tokens"),
        ("all-linear", ["experts.gate_up_proj"], r"warning: .*target_parameters=.*experts\.gate_up_proj"),
    ],
)
def test_modules_that_vllm_may_drop_lead_to_a_warning(compose_fast, targets, parameters, said):
    config, _ = compose_fast(*RECIPE)
    config.actor_rollout_ref.model.target_modules = targets
    OmegaConf.update(config, f"{MODEL}.target_parameters", parameters, force_add=True)
    (warning,) = lora_warnings(config)
    assert re.search(said, warning)
    config.actor_rollout_ref.model.lora.merge = True
    assert list(lora_warnings(config)) == []
    config.actor_rollout_ref.model.lora.merge = False
    config.actor_rollout_ref.model.lora_rank = 0
    assert list(lora_warnings(config)) == []
