"""Runs that are sized and sent from a machine without GPUs and without vLLM."""

import sys

import pytest

from verl_gsd.cli import submit
from verl_gsd.jobs.submission import Submission
from verl_gsd.run.checks import with_verl

LORA = "recipe=start/gsm8k_qwen2.5_0.5b_lora"
DESCRIBED = ("hardware=gpu", "hardware.nodes=2", "hardware.gpus_per_node=4", "hardware.gpu_memory_gib=22")


@pytest.fixture
def no_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "verl.workers.rollout.vllm_rollout.utils", None)


@pytest.mark.usefixtures("no_vllm")
def test_a_lora_run_is_checked_without_vllm(compose_fast):
    config, _ = compose_fast(LORA, "hardware=8xa100_80g")
    assert list(with_verl._check_verl_config(config)) == []
    assert not config.actor_rollout_ref.model.lora.merge, "the config of the run stays as it is"
    config.actor_rollout_ref.actor.use_dynamic_bsz = False  # without a size of micro-batches
    assert list(with_verl._check_verl_config(config)), "verl still checks the rest"


@pytest.mark.usefixtures("no_vllm")
def test_a_submitted_run_for_another_machine_is_sized_here(monkeypatch):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")
    said = submit._check(
        Submission("job", "/runs/job", (LORA, *DESCRIBED, "actor_rollout_ref.model.path=Qwen/Qwen2.5-32B"))
    )
    assert "sized for 2 nodes with 4 GPUs of 22 GiB:" in said
    assert any("tensor_model_parallel_size=4: vLLM's weights need" in text for text in said)
