"""GVPO in ``verl-gsd lab``, on prompts that are Bernoulli logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from verl_gsd.algorithms.gvpo.maths import gvpo_loss
from verl_gsd.bernoulli import (
    RATE,
    Algorithm,
    BernoulliBatch,
    Update,
    log_probs,
    one_group_per_prompt,
    skip_silent_groups,
)

#: beta against the policy before the batch, and against a fixed reference. The second is large enough for the end of
#: its run, a logit 1/beta higher, to be visible.
BETA, BETA_FIXED = 0.1, 0.5
#: Steps over each batch: the paper's 1024 prompts per step in mini-batches of 256.
PASSES = 4


def lab_algorithms() -> Mapping[str, Algorithm]:
    """GVPO against the policy before each batch, and against the policy at the start."""
    return {
        "gvpo": Algorithm(
            "gvpo",
            f"GVPO, beta {BETA:g}, against the policy before the batch, in {PASSES} steps per batch. A single step "
            "would be REINFORCE, since no other prompt's update moves a logit. GVPO divides by G - 1: it is Dr. GRPO's "
            "update times G/(G - 1), minus the pull towards the reference.",
            one_group_per_prompt,
            lambda logit, generator: gvpo_update(BETA, passes=PASSES),
            RATE / BETA,
        ),
        "gvpo_ref": Algorithm(
            "gvpo",
            f"GVPO, beta {BETA_FIXED:g}, against the policy at the start, a fixed reference. Every logit ends 1/beta = "
            f"{1 / BETA_FIXED:g} above its start, so that a prompt that was hard is not mastered.",
            one_group_per_prompt,
            lambda logit, generator: gvpo_update(BETA_FIXED, reference=logit),
            RATE / BETA_FIXED,
        ),
    }


def gvpo_update(beta: float, *, passes: int = 1, reference: torch.Tensor | None = None) -> Update:
    """Descend on GVPO's loss in ``passes`` steps over one batch, each with its share of the learning rate.

    Args:
        reference: (P,), logits of pi_theta'. None: the logits before the batch; a single pass is then REINFORCE.
    """

    def update(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        fixed, current = logit if reference is None else reference, logit
        for _ in range(passes):
            current = current.detach().requires_grad_()
            log_ratio = log_probs(current, batch) - log_probs(fixed, batch)
            loss, _ = gvpo_loss(log_ratio.flatten(), batch.rewards.flatten(), batch.index, beta=beta)
            # The loss is a mean over groups; the updates of other algorithms are sums.
            (slope,) = torch.autograd.grad(loss * len(batch.prompt), current)
            current = current.detach() - rate / passes * slope
        return current - logit

    return skip_silent_groups(update)
