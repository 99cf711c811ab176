"""Policy losses of ours, under verl's own ``ppo_loss``: entropy and KL terms stay as the user set them.

verl passes a registered policy loss log-probabilities, advantages and a mask. What else it must know of its rows, such
as their groups, are columns that our trainer put beside them; ``with_rows`` keeps the micro-batch at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, register_policy_loss
from verl.workers.config import ActorConfig, PolicyLossConfig

from verl_gsd.algorithms import gvpo
from verl_gsd.algorithms.settings import check_gvpo_settings, check_on_policy, check_ratio
from verl_gsd.algorithms.shaping import demonstration_ratio
from verl_gsd.trainer.gvpo_rows import WEIGHT, Figures, Part

#: The column, bool, of rows that are demonstrations.
DEMONSTRATION = "demonstration"

_MICRO_BATCH: ContextVar[TensorDict | None] = ContextVar("_MICRO_BATCH", default=None)
_FIGURES: ContextVar[Figures | None] = ContextVar("_FIGURES", default=None)


def with_rows(loss_fn: Callable, *, model_output: Any, data: TensorDict, dp_group: Any = None) -> Any:
    """verl's loss function ``loss_fn``, with the micro-batch's columns at hand for the policy loss."""
    token = _MICRO_BATCH.set(data)
    try:
        return loss_fn(model_output=model_output, data=data, dp_group=dp_group)
    finally:
        _MICRO_BATCH.reset(token)


@contextmanager
def collecting(figures: Figures) -> Iterator[None]:
    """Within it, each micro-batch's loss adds to ``figures`` what it saw."""
    token = _FIGURES.set(figures)
    try:
        yield
    finally:
        _FIGURES.reset(token)


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
        check_gvpo_settings(self.beta, self.normalizer, self.reference)

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
    """A micro-batch's share of GVPO's loss, ``algorithms.gvpo.gvpo_row_loss``.

    Groups are averaged by the rows' own coefficients, whatever ``loss_agg_mode`` is: that one is for other terms. The
    factor dp_size undoes the mean over workers that verl's engines take of gradients.

    Args:
        log_prob: (B, T), with a gradient; old_log_prob, advantages and response_mask alike.
        rollout_is_weights: not used, and refused before the run: GVPO needs no importance weights.

    Raises:
        RuntimeError: called by a trainer that is not ours, or a group is split although ``grouping=whole``.
    """
    rows, figures = _MICRO_BATCH.get(), _FIGURES.get()
    if rows is None or figures is None or config is None:
        raise RuntimeError("policy_loss.loss_mode=gvpo needs a trainer mode of ours: trainer.v1.trainer_mode=gsd_sync")
    settings = config.policy_loss
    part = Part.of(rows)
    figures.saw(part)
    if WEIGHT in rows.keys():  # noqa: SIM118, a TensorDict takes ``in`` for something else
        weights = rows[WEIGHT]
    else:
        if split := part.split():
            raise RuntimeError(split)
        reference = torch.nested.to_padded_tensor(rows[settings.reference_column], 0.0)
        mask = response_mask.bool()
        s = torch.where(mask, log_prob.detach().float() - reference.float(), 0).sum(dim=-1)
        log_reference = torch.where(mask, reference.float(), 0).sum(dim=-1)
        figures.add(part, s, log_reference, mask.sum(dim=-1))
        tilt = gvpo.tilt_of(s, log_reference, var=settings.var, cov=settings.cov)
        weights = gvpo.gvpo_weights(part.advantage, tilt, part.group_here(), beta=settings.beta)
    loss = gvpo.gvpo_row_loss(log_prob, response_mask, weights, part.coefficient, beta=settings.beta)
    return config.global_batch_info["dp_size"] * loss, {}


@dataclass
class DagrpoLossConfig(PolicyLossConfig):
    """``actor_rollout_ref.actor.policy_loss`` of a run with demonstrations.

    Attributes:
        on_policy: the loss of the policy's own rows, ``vanilla`` or ``gspo``.
        ratio, gamma: see ``algorithms.shaping.demonstration_ratio``.

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
    """verl's loss of the policy's own rows, as verl computes it, and -A f(pi_theta) on demonstrations' tokens.

    Both are aggregated by ``loss_agg_mode`` over the whole batch, each over its own tokens: such sums add up. Nothing
    is clipped on a demonstration's tokens.

    Args:
        log_prob: (B, T), with a gradient; old_log_prob, advantages, response_mask and rollout_is_weights alike.

    Raises:
        RuntimeError: called by a trainer that is not ours.
    """
    rows = _MICRO_BATCH.get()
    if rows is None or config is None or DEMONSTRATION not in rows.keys():  # noqa: SIM118, a TensorDict
        raise RuntimeError("policy_loss.loss_mode=dagrpo needs a trainer mode of ours: trainer.v1.trainer_mode=gsd_*")
    settings = config.policy_loss
    demonstrated = response_mask.bool() & rows[DEMONSTRATION].to(response_mask.device).bool().unsqueeze(-1)
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
    # 0 where nobody looks, so that a padded token's log-probability makes no NaN of a gradient.
    ratio = demonstration_ratio(log_prob.masked_fill(~demonstrated, 0), ratio=settings.ratio, gamma=settings.gamma)
    of_demonstrations = agg_loss(
        loss_mat=-advantages * ratio, loss_mask=demonstrated, loss_agg_mode=loss_agg_mode, **config.global_batch_info
    )
    return loss + of_demonstrations, metrics
