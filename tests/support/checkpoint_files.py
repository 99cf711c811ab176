"""Checkpoints as verl writes them under FSDP, with files of a few bytes."""

import json

import numpy as np
import torch
from safetensors.torch import save_file

from verl_gsd.state import save_state


class Memory:
    """A memory of an array and a number."""

    def state_dict(self):
        return {"seen": np.arange(3), "value": 0.5}


def write_checkpoint(run, step, ranks=1, settings=None, marker=True):
    """RUN/global_step_N with our memory of prompts and, unless ``marker`` is false, announced as verl does it."""
    checkpoint = run / f"global_step_{step}"
    actor = checkpoint / "actor"
    (actor / "huggingface").mkdir(parents=True)
    for rank in range(ranks):
        for kind in ("model", "optim", "extra_state"):
            torch.save({"w": torch.arange(100.0)}, actor / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    (actor / "huggingface" / "config.json").write_text("{}")
    (actor / "huggingface" / "chat_template.jinja").write_text("")
    save_file({"w": torch.zeros(99)}, actor / "huggingface" / "model.safetensors")
    torch.save({"place": 3}, checkpoint / "data.pt")
    save_state(checkpoint, {"prompts": Memory()}, settings or {})
    if marker:
        (run / "latest_checkpointed_iteration.txt").write_text(str(step))
    return checkpoint
