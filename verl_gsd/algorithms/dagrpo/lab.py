"""DaGRPO's algorithms in ``verl-gsd lab``, which models each prompt as one Bernoulli logit. The judge is synthetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from verl_gsd.algorithms.dagrpo.demonstration_ratio import demonstration_ratio
from verl_gsd.algorithms.dagrpo.pairs import rectified_advantage
from verl_gsd.bernoulli import (
    Algorithm,
    BernoulliBatch,
    Update,
    ascend,
    is_mixed,
    one_group_per_prompt,
    policy_scores,
)

DELTA = 3.0
#: The probability that the judge scores a right response above a wrong one before scores are rounded. Ties count half.
JUDGE_AUC = 0.9
#: Scores are whole numbers from 0 to 10 around 5. Before rounding, the scores of right responses and those of wrong
#: responses each have this standard deviation.
_JUDGE_SPREAD = 2.0


def lab_algorithms() -> Mapping[str, Algorithm]:
    """The mask alone, demonstrations alone, and both."""
    judge = (
        f"a synthetic judge (AUC {JUDGE_AUC:g}) only knows whether a response is right, so the mask drops pairs at "
        "random. The lab shows the cost of the mask, not its benefit"
    )
    demonstrations = (
        "every prompt has a demonstration, with the ratio p/(p + 0.1). It replaces a response if all responses failed"
    )
    return {
        "dagrpo_mask": _row(DELTA, False, f"GRPO over the pairs whose scores differ by {DELTA:g} or more: {judge}."),
        "dagrpo_anchors": _row(-math.inf, True, f"GRPO over all pairs: {demonstrations}."),
        "dagrpo": _row(DELTA, True, f"The mask and demonstrations: {judge}. In addition, {demonstrations}."),
    }


def _row(delta: float, demonstrations: bool, about: str) -> Algorithm:
    return Algorithm(
        "dagrpo",
        about,
        one_group_per_prompt,
        lambda logit, generator: dagrpo_update(generator, delta=delta, demonstrations=demonstrations),
    )


def dagrpo_update(generator: torch.Generator, *, delta: float, demonstrations: bool, auc: float = JUDGE_AUC) -> Update:
    """DaGRPO with a judge of this AUC and, on request, a demonstration in every group in which all responses failed.

    The demonstration replaces the last response. Its reward is 1 and its judge score is NaN. Its score function is
    that of the ratio ``shaped``, which a demonstration has in training.
    """

    def update(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        rewards, scores = batch.rewards.clone(), policy_scores(logit, batch)
        judge_scores = synthetic_judge_scores(rewards, auc, generator)
        if demonstrations:
            failed = rewards.amax(dim=1) == 0
            rewards[failed, -1], judge_scores[failed, -1] = 1.0, math.nan
            scores[failed, -1] = demonstration_scores(logit[batch.prompt[failed]])
        mixed = is_mixed(rewards)  # silent groups would have advantages of 0, as in ``skip_silent_groups``
        if not mixed.any():
            return torch.zeros_like(logit)
        kept = replace(batch, prompt=batch.prompt[mixed], rewards=rewards[mixed])
        advantages = rectified_advantage(
            kept.rewards.flatten(), judge_scores[mixed].flatten(), kept.index, delta=delta, ddof=0, eps=0.0
        )
        return rate * ascend(logit, kept, advantages, scores[mixed])

    return update


def synthetic_judge_scores(rewards: torch.Tensor, auc: float, generator: torch.Generator) -> torch.Tensor:
    """Integer scores from 0 to 10 in the shape of ``rewards``: rounded normal values whose two means give ``auc``."""
    distance = _JUDGE_SPREAD * math.sqrt(2) * float(torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)))
    noise = torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
    return (5 + distance * (rewards - 0.5) + _JUDGE_SPREAD * noise).round().clamp(0, 10)


def demonstration_scores(logit: torch.Tensor) -> torch.Tensor:
    """(V,): the gradient, with respect to the logit, of the ratio of a right response as a demonstration."""
    leaf = logit.detach().requires_grad_()
    ratio = demonstration_ratio(torch.nn.functional.logsigmoid(leaf), ratio="shaped")
    return torch.autograd.grad(ratio.sum(), leaf)[0]
