"""Attention over packed rows equals attention under transformers' mask of T x T, and makes no such mask."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

HERE = Path(__file__).parent


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


SIZES |= {"num_key_value_heads": 2, "vocab_size": 64}


def test_packed_log_probabilities_on_the_engine_are_those_of_rows_by_themselves(tiny_task, tmp_path, compose_fast):
    """verl's FSDP2 engine, rows of unequal lengths: packed in several ways against padded rows."""
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
    packing = "actor_rollout_ref.model.use_remove_padding=true"
    tokens = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
    cases = {
        "padded": [],
        "packed, all rows": [packing],
        "packed into 48 tokens": [packing, f"{tokens}=48"],
        "packed, four rows at a time": [
            packing,
            "actor_rollout_ref.actor.use_dynamic_bsz=false",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
        ],
    }
    configs = {name: OmegaConf.to_container(compose_fast(*words, *more)[0]) for name, more in cases.items()}
    torch.save(configs, tmp_path / "configs.pt")
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, HERE / "attention_worker.py", tmp_path]
        done = subprocess.run(command, env=os.environ | {"VERL_GSD_CPU": "1"}, stdout=log, stderr=log)
    assert done.returncode == 0, (tmp_path / "log").read_text()[-6000:]
    found = torch.load(tmp_path / "found.pt")
    for name in cases:
        assert len(found[name]) == len(found["padded"]) > 50
        torch.testing.assert_close(found[name], found["padded"], rtol=0, atol=1e-5)
    assert found["padded"].std() > 0.1
