"""GVPO's policy loss. verl's ``ppo_loss`` calls it and adds the entropy and KL terms that the user configured."""

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
    """The config section ``actor_rollout_ref.actor.policy_loss`` of GVPO.

    Attributes:
        beta: weight of the divergence from the reference policy, above 0.
        reference: pi_theta', which is the policy at the start of the step (``old``) or the reference model (``ref``).
        normalizer: the divisor of a group's sum: ``k-1``, ``k`` or ``none``.
        var, cov: whether the weights include the terms Var(log pi_theta) and Cov(log pi_theta, log pi_theta').

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
        """The column that holds the reference policy's log-probabilities."""
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
    """The micro-batch's share of GVPO's loss (``maths.gvpo_row_loss``).

    The coefficients of the rows average the loss over groups. ``loss_agg_mode`` does not affect this loss; it applies
    to the other terms. verl's engines average gradients over workers; the factor dp_size undoes this.

    Args:
        log_prob: (B, T), with a gradient. old_log_prob, advantages and response_mask have the same shape.
        rollout_is_weights: not used. The checks before a run reject importance weights, because GVPO needs none.

    Raises:
        RuntimeError: the trainer is not one of ours, or a group is split although ``grouping=whole``.
    """
    context = loss_context()
    worker = None if context is None else cast("GvpoWorker | None", context.extensions.get("gvpo"))
    if context is None or worker is None or config is None:
        raise RuntimeError(
            "policy_loss.loss_mode=gvpo does not work with verl's own trainers. Set trainer.v1.trainer_mode=gsd_sync."
        )
    settings = config.policy_loss
    rows, stats = context.rows, worker.stats
    own_rows = GvpoRows.of(rows)
    stats.count_micro_batch(own_rows)
    if context.has(WEIGHT):
        weights = rows[WEIGHT]
    else:
        if problem := own_rows.split_group_problem():
            raise RuntimeError(problem)
        reference = torch.nested.to_padded_tensor(rows[settings.reference_column], 0.0)
        mask = response_mask.bool()
        s = torch.where(mask, log_prob.detach().float() - reference.float(), 0).sum(dim=-1)
        log_reference = torch.where(mask, reference.float(), 0).sum(dim=-1)
        stats.add(own_rows, s, log_reference, mask.sum(dim=-1))
        term = maths.log_ratio_term(s, log_reference, var=settings.var, cov=settings.cov)
        weights = maths.gvpo_weights(own_rows.advantage, term, own_rows.local_group(), beta=settings.beta)
    loss = maths.gvpo_row_loss(log_prob, response_mask, weights, own_rows.coefficient, beta=settings.beta)
    return config.global_batch_info["dp_size"] * loss, {}
