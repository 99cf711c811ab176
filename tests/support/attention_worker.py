"""Log-probabilities by verl's FSDP2 engine: ``python attention_worker.py FOLDER``, which holds ``configs.pt``.

``found.pt`` has the values of all rows' response tokens per config, one after the other.
"""

import sys
from pathlib import Path

import torch
from engine_workers import free_port
from omegaconf import OmegaConf


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


def log_probs(config):
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.utils.padding import response_from_nested

    worker = ActorRolloutRefWorker(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    data = tu.list_of_dict_to_tensordict(rows())
    tu.assign_non_tensor(data, temperature=1.0, calculate_entropy=False, compute_loss=False)
    output = worker.compute_log_prob(data)
    return response_from_nested(output["log_probs"], data["response_mask"]).values().float()


if __name__ == "__main__":
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    configs = torch.load(folder / "configs.pt", weights_only=False)
    torch.save({name: log_probs(OmegaConf.create(config)) for name, config in configs.items()}, folder / "found.pt")
