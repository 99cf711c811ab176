"""HA-DW's factor and verl's own losses."""

import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.utils.config import omega_conf_to_dataclass


@pytest.mark.parametrize("algo", ["grpo", "gspo", "dapo"])
def test_weighing_the_advantage_is_weighing_inside_the_clipped_objective(algo, compose_fast):
    """By autograd through verl's own losses, with ratios inside and outside the clip."""
    config, _ = compose_fast(f"algo={algo}", "task=arithmetic", "hardware=cpu")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(16, 5, generator=generator, dtype=torch.float64)
    advantages = torch.randn(16, 1, generator=generator, dtype=torch.float64).expand(16, 5)
    phi = torch.rand(16, 1, generator=generator, dtype=torch.float64) + 0.5
    mask = torch.ones(16, 5)
    loss = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)
    noise = torch.randn(16, 5, generator=generator, dtype=torch.float64) * (0.3 if algo != "gspo" else 1e-3)

    def gradient(weigh_rows, advantages):
        new = (old + noise).requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for row in range(16):
            part = slice(row, row + 1)
            words = {"response_mask": mask[part], "loss_agg_mode": actor.loss_agg_mode, "config": actor}
            total = total + weigh_rows[row, 0] * loss(old[part], new[part], advantages[part], **words)[0]
        total.backward()
        return new.grad

    inside = gradient(phi, advantages)
    before = gradient(torch.ones_like(phi), advantages * phi)
    assert torch.allclose(inside, before, rtol=1e-12, atol=0) and (inside == 0).any() and (inside != 0).any()
