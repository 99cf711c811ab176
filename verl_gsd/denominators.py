"""What verl divides a policy loss by (``agg_loss`` in ``verl/trainer/ppo/core_algos.py``).

verl sums the loss of all tokens and divides by a count of the whole mini-batch, over all data-parallel workers and
micro-batches. The count depends on ``actor_rollout_ref.actor.loss_agg_mode``:

    token-mean                 tokens
    seq-mean-token-sum         responses
    seq-mean-token-mean        responses, after each response was averaged over its own tokens
    seq-mean-token-sum-norm    responses, and the constant ``loss_scale_factor``
    token-sum                  nothing
"""

from __future__ import annotations

from typing import Literal

Unit = Literal["tokens", "responses"]
UNITS: tuple[Unit, ...] = ("tokens", "responses")
#: Losses of verl that have a term without the advantage. Groups whose advantages are all 0 have a gradient in them.
WITH_OTHER_TERMS = ("kl_cov", "dro")


def divided_by(loss_mode: str, loss_agg_mode: str) -> Unit | None:
    """What verl counts to divide the policy loss ``loss_mode``; None if it divides by no count."""
    if loss_mode == "sapo":  # this loss of verl ignores the setting
        loss_agg_mode = "seq-mean-token-mean"
    if loss_agg_mode == "token-sum":
        return None
    return "tokens" if loss_agg_mode == "token-mean" else "responses"
