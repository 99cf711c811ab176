"""GVPO's policy loss under verl's own ``ppo_loss``: entropy and KL terms stay as the user set them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from verl.trainer.ppo.core_algos import register_policy_loss
from verl.workers.config import ActorConfig, PolicyLossConfig

from verl_gsd.algorithms.gvpo import maths
from verl_gsd.algorithms.gvpo.rows import WEIGHT, GvpoRows
from verl_gsd.algorithms.gvpo.settings import check_gvpo_settings
from verl_gsd.trainer.loss_context import loss_context

if TYPE_CHECKING:
    from verl_gsd.algorithms.gvpo.worker import GvpoWorker


@dataclass
class GVPOLossConfig(PolicyLossConfig):
    """``actor_rollout_ref.actor.policy_loss`` of GVPO.

    Attributes:
        beta: weight of the divergence from the reference policy, above 0.
        reference: pi_theta', the policy of the step's start (``old``) or the reference model (``ref``).
        normalizer: what a group's sum is divided by: ``k-1``, ``k`` or ``none``.
        var, cov: whether the weights have the terms Var(log pi_theta) and Cov(log pi_theta, log pi_theta').

    Raises:
        ValueError: a setting is out of range.
    """

    loss_mode: str = "gvpo"
    beta: float = 0.1
    reference: str = "old"
    normalizer: str = "k-1"
    var: bool = True
    cov: bool = True

    def __post_init__(self) -> None:
        check_gvpo_settings(self.beta, self.normalizer, self.reference, self.var, self.cov)

    @property
    def reference_column(self) -> str:
        """The column of the reference policy's log-probabilities."""
        return "old_log_probs" if self.reference == "old" else "ref_log_prob"


@register_policy_loss("gvpo")
def gvpo_policy_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A micro-batch's share of GVPO's loss, ``maths.gvpo_row_loss``.

    Groups are averaged by the rows' own coefficients, whatever ``loss_agg_mode`` is: that one is for other terms. The
    factor dp_size undoes the mean over workers that verl's engines take of gradients.

    Args:
        log_prob: (B, T), with a gradient; old_log_prob, advantages and response_mask alike.
        rollout_is_weights: not used, and refused before the run: GVPO needs no importance weights.

    Raises:
        RuntimeError: called by a trainer that is not ours, or a group is split although ``grouping=whole``.
    """
    context = loss_context()
    weigher = None if context is None else cast("GvpoWorker | None", context.extensions.get("gvpo"))
    if context is None or weigher is None or config is None:
        raise RuntimeError("policy_loss.loss_mode=gvpo needs a trainer mode of ours: trainer.v1.trainer_mode=gsd_sync")
    settings = config.policy_loss
    rows, figures = context.rows, weigher.figures
    part = GvpoRows.of(rows)
    figures.count_micro_batch(part)
    if context.has(WEIGHT):
        weights = rows[WEIGHT]
    else:
        if split := part.split():
            raise RuntimeError(split)
        reference = torch.nested.to_padded_tensor(rows[settings.reference_column], 0.0)
        mask = response_mask.bool()
        s = torch.where(mask, log_prob.detach().float() - reference.float(), 0).sum(dim=-1)
        log_reference = torch.where(mask, reference.float(), 0).sum(dim=-1)
        figures.add(part, s, log_reference, mask.sum(dim=-1))
        tilt = maths.tilt_of(s, log_reference, var=settings.var, cov=settings.cov)
        weights = maths.gvpo_weights(part.advantage, tilt, part.group_here(), beta=settings.beta)
    loss = maths.gvpo_row_loss(log_prob, response_mask, weights, part.coefficient, beta=settings.beta)
    return config.global_batch_info["dp_size"] * loss, {}
