"""GVPO's algorithms in ``verl-gsd lab``, which models each prompt as one Bernoulli logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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

#: beta against the policy before the batch, and beta against a fixed reference. With a fixed reference, logits end
#: 1/beta higher; BETA_FIXED is large enough for this end to be visible.
BETA, BETA_FIXED = 0.1, 0.5
#: Updates per batch: the paper has 1024 prompts per step in mini-batches of 256.
PASSES = 4


def lab_algorithms() -> Mapping[str, Algorithm]:
    """GVPO against the policy before each batch, alone and with demonstrations, and against the policy at the start."""
    return {
        "gvpo": Algorithm(
            "gvpo",
            f"GVPO, beta {BETA:g}, against the policy before the batch, in {PASSES} updates per batch. A single update "
            "would be REINFORCE, because no other prompt's update moves a logit here. GVPO divides by G - 1: it is Dr. "
            "GRPO's update times G/(G - 1), minus the pull towards the reference.",
            one_group_per_prompt,
            lambda logit, generator: gvpo_update(BETA, passes=PASSES),
            RATE / BETA,
        ),
        "gvpo_demonstrations": Algorithm(
            "gvpo",
            "GVPO with a demonstration for every prompt, which replaces a response if all responses failed. It has no "
            "ratio, so its first update on a hard prompt is that of any right response.",
            one_group_per_prompt,
            lambda logit, generator: with_demonstrations(gvpo_update(BETA, passes=PASSES)),
            RATE / BETA,
        ),
        "gvpo_ref": Algorithm(
            "gvpo",
            f"GVPO, beta {BETA_FIXED:g}, against the policy at the start as a fixed reference. Every logit ends 1/beta "
            f"= {1 / BETA_FIXED:g} above its start, so the policy does not master a hard prompt.",
            one_group_per_prompt,
            lambda logit, generator: gvpo_update(BETA_FIXED, reference=logit),
            RATE / BETA_FIXED,
        ),
    }


def gvpo_update(beta: float, *, passes: int = 1, reference: torch.Tensor | None = None) -> Update:
    """Minimize GVPO's loss in ``passes`` gradient steps over one batch. Each step has its share of the learning rate.

    Args:
        reference: (P,), logits of pi_theta'. None means the logits before the batch; a single pass is then REINFORCE.
    """

    def update(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        reference_logit, current = logit if reference is None else reference, logit
        for _ in range(passes):
            current = current.detach().requires_grad_()
            log_ratio = log_probs(current, batch) - log_probs(reference_logit, batch)
            loss, _ = gvpo_loss(log_ratio.flatten(), batch.rewards.flatten(), batch.index, beta=beta)
            # The loss is a mean over groups, but the updates of the other algorithms are sums.
            (slope,) = torch.autograd.grad(loss * len(batch.prompt), current)
            current = current.detach() - rate / passes * slope
        return current - logit

    return skip_silent_groups(update)


def with_demonstrations(update: Update) -> Update:
    """``update`` with a right response in the place of the last one, in every group in which all responses failed."""

    def update_demonstrated(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        rewards = batch.rewards.clone()
        rewards[rewards.amax(dim=1) == 0, -1] = 1.0
        return update(logit, replace(batch, rewards=rewards), rate)

    return update_demonstrated
