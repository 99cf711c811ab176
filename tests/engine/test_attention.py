"""Attention over packed rows equals attention over rows by themselves, on verl's FSDP2 engine."""

import torch
from omegaconf import OmegaConf

PACKING = "actor_rollout_ref.model.use_remove_padding=true"
#: name -> words of the config
CASES = {
    "padded": [],
    "packed, all rows": [PACKING],
    "packed into 48 tokens": [PACKING, "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=48"],
    "packed, four rows at a time": [
        PACKING,
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    ],
}


def rows():
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in (3, 17, 5, 1, 30, 2, 11, 8):
        prompt = torch.randint(5, 256, (6,), generator=generator)
        response = torch.randint(5, 256, (length,), generator=generator)
        mask, ids = torch.ones_like(response), torch.cat([prompt, response])
        made.append(
            {
                **{"prompts": prompt, "responses": response, "input_ids": ids, "position_ids": torch.arange(len(ids))},
                **{"response_mask": mask, "loss_mask": mask},
            }
        )
    return made


def test_packed_log_probabilities_are_those_of_rows_by_themselves(tiny_task, tmp_path, compose_fast, engine_workers):
    """Rows of unequal lengths: packed in several ways against padded rows."""
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
    told = {"temperature": 1.0, "calculate_entropy": False, "compute_loss": False}
    cases = {
        name: {
            "config": OmegaConf.to_container(compose_fast(*words, *more)[0]),
            "rows": rows(),
            "extra_info": told,
            "is_inference": True,
        }
        for name, more in CASES.items()
    }
    found = {name: of["log_probs"] for name, of in engine_workers.begin(tmp_path, {1: cases})().items()}
    for name in CASES:
        assert len(found[name]) == len(found["padded"]) > 50
        torch.testing.assert_close(found[name], found["padded"], rtol=0, atol=1e-5)
    assert found["padded"].std() > 0.1
