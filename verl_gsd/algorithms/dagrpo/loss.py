"""The policy loss of a run with demonstrations. verl's ``ppo_loss`` calls it and adds the entropy and KL terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, register_policy_loss
from verl.workers.config import ActorConfig, PolicyLossConfig

from verl_gsd.algorithms.dagrpo.demonstration_ratio import demonstration_ratio
from verl_gsd.algorithms.dagrpo.settings import check_on_policy, check_ratio
from verl_gsd.trainer.loss_context import loss_context
from verl_gsd.trainer.rows import DEMONSTRATION


@dataclass
class DagrpoLossConfig(PolicyLossConfig):
    """The config section ``actor_rollout_ref.actor.policy_loss`` of a run with demonstrations.

    Attributes:
        on_policy: the loss on rows that the policy generated: ``vanilla`` or ``gspo``.
        ratio, gamma: see ``demonstration_ratio.demonstration_ratio``.

    Raises:
        ValueError: a setting is out of range.
    """

    loss_mode: str = "dagrpo"
    on_policy: str = "vanilla"
    ratio: str = "shaped"
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_ratio(self.ratio, self.gamma)
        check_on_policy(self.on_policy)


@register_policy_loss("dagrpo")
def dagrpo_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's own loss on the policy's rows, plus -A f(pi_theta) on the tokens of demonstrations, without clipping.

    ``loss_agg_mode`` aggregates each term over its own tokens but divides by counts of the whole batch. The two terms
    can therefore be added.

    Args:
        log_prob: (B, T), with a gradient. old_log_prob, advantages, response_mask and rollout_is_weights have the same
            shape.

    Raises:
        RuntimeError: the trainer is not one of ours.
    """
    context = loss_context()
    if context is None or config is None or not context.has(DEMONSTRATION):
        raise RuntimeError(
            "policy_loss.loss_mode=dagrpo does not work with verl's own trainers. Set trainer.v1.trainer_mode=gsd_sync."
        )
    settings = config.policy_loss
    demonstrated = response_mask.bool() & context.rows[DEMONSTRATION].to(response_mask.device).bool().unsqueeze(-1)
    own = response_mask.bool() & ~demonstrated
    loss, metrics = get_policy_loss_fn(settings.on_policy)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=own,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    # Set masked tokens to 0, because the log-probability of padding could make the gradient NaN.
    ratio = demonstration_ratio(log_prob.masked_fill(~demonstrated, 0), ratio=settings.ratio, gamma=settings.gamma)
    demonstration_loss = agg_loss(
        loss_mat=-advantages * ratio, loss_mask=demonstrated, loss_agg_mode=loss_agg_mode, **config.global_batch_info
    )
    return loss + demonstration_loss, metrics
