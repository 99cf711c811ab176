r"""What each algorithm does to the logits of its prompts, by the functions that training uses.

A response to a Bernoulli logit has the score (gradient of its log-probability) 1 - p if right and -p if wrong. So the
mean score of right responses less that of wrong ones is 1, and the dial's update of a prompt,

    g = (1/G) sum_i A_i s_i = sigma^(2 - alpha)    (Theorem 1 of arXiv 2607.00152, with eps = 0),

is its gain and nothing else. Everywhere here sigma has divisor G and eps is 0, as in that paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from verl_gsd.algorithms.dagrpo.demonstration_ratio import demonstration_ratio
from verl_gsd.algorithms.dagrpo.pairs import rectified_advantage
from verl_gsd.algorithms.gvpo.maths import gvpo_loss
from verl_gsd.algorithms.hadw.anchors import Anchor
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.dial import dial_advantage
from verl_gsd.lab.drawing import Batch, is_mixed

#: The judge's chance to score a right response above a wrong one, ties counting half, before scores are rounded.
JUDGE_AUC = 0.9
#: Scores are whole numbers from 0 to 10 around 5; the standard deviation of each kind before rounding.
_JUDGE_SPREAD = 2.0

#: From (P,) logits, a batch and the learning rate to the (P,) change of the logits. May remember earlier calls.
Update = Callable[[torch.Tensor, Batch, float], torch.Tensor]


def ascend(
    logit: torch.Tensor, batch: Batch, advantages: torch.Tensor, scores: torch.Tensor | None = None
) -> torch.Tensor:
    """(P,): the sum over a prompt's groups of (1/G) sum_i A_i s_i.

    Args:
        advantages: (V*G,).
        scores: (V, G), s_i; of the policy's own responses where None.
    """
    if scores is None:
        scores = own_scores(logit, batch)
    of_group = (advantages.view_as(scores) * scores).mean(dim=1)
    return torch.zeros_like(logit).index_add(0, batch.prompt, of_group)


def of_mixed(update: Update) -> Update:
    """``update`` without the silent groups, to which every function here gives exactly 0. That saves most of a run's
    time, since in the end most groups are silent."""

    def of_them(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        mixed = is_mixed(batch.rewards)
        if not mixed.any():
            return torch.zeros_like(logit)
        return update(logit, replace(batch, prompt=batch.prompt[mixed], rewards=batch.rewards[mixed]), rate)

    return of_them


def dial(alpha: float) -> Update:
    """The dial at ``alpha``."""

    def update(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        return rate * ascend(logit, batch, _dial(batch, alpha))

    return of_mixed(update)


def hadw(anchor: Anchor, *, alpha: float = 1.0, lambda_scale: float = HadwSettings.default("lambda_scale")) -> Update:
    """The dial's advantages times HA-DW's factor; the anchor learns of a batch after it has weighed it."""

    def weigh(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        advantages = _dial(batch, alpha)
        accuracy = batch.rewards.mean(dim=1).repeat_interleave(batch.rewards.shape[1])
        value = math.nan if anchor.value is None else anchor.value
        factor = hadw_factor(advantages, accuracy, value, lambda_scale=lambda_scale)
        return rate * ascend(logit, batch, advantages * factor)

    def update(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        moved = of_mixed(weigh)(logit, batch, rate)
        anchor.observe(batch.right, batch.generated * batch.rewards.shape[1])
        return moved

    return update


def dagrpo(generator: torch.Generator, *, delta: float, demonstrations: bool, auc: float = JUDGE_AUC) -> Update:
    """DaGRPO with a judge that is right with chance ``auc``, and a demonstration in every group that failed whole.

    A demonstration takes the place of the last response. It is right, its score is NaN, and its score function is that
    of the ratio a demonstration has in training, ``shaped``.
    """

    def update(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        rewards, scores = batch.rewards.clone(), own_scores(logit, batch)
        judged = judge_scores(rewards, auc, generator)
        if demonstrations:
            failed = rewards.amax(dim=1) == 0
            rewards[failed, -1], judged[failed, -1] = 1.0, math.nan
            scores[failed, -1] = demonstration_scores(logit[batch.prompt[failed]])
        mixed = is_mixed(rewards)  # silent ones left out as in ``of_mixed``
        if not mixed.any():
            return torch.zeros_like(logit)
        kept = replace(batch, prompt=batch.prompt[mixed], rewards=rewards[mixed])
        advantages = rectified_advantage(
            kept.rewards.flatten(), judged[mixed].flatten(), kept.index, delta=delta, ddof=0, eps=0.0
        )
        return rate * ascend(logit, kept, advantages, scores[mixed])

    return update


def gvpo(beta: float, *, passes: int = 1, reference: torch.Tensor | None = None) -> Update:
    """Descent on GVPO's loss, ``passes`` steps over one batch, each with its share of the rate.

    Args:
        reference: (P,), logits of pi_theta'; those before the batch where None, and then one pass alone is REINFORCE.
    """

    def update(logit: torch.Tensor, batch: Batch, rate: float) -> torch.Tensor:
        fixed, moving = logit if reference is None else reference, logit
        for _ in range(passes):
            moving = moving.detach().requires_grad_()
            log_ratio = log_probs(moving, batch) - log_probs(fixed, batch)
            loss, _ = gvpo_loss(log_ratio.flatten(), batch.rewards.flatten(), batch.index, beta=beta)
            # The loss is a mean over groups; the other updates here are sums.
            (slope,) = torch.autograd.grad(loss * len(batch.prompt), moving)
            moving = moving.detach() - rate / passes * slope
        return moving - logit

    return of_mixed(update)


def own_scores(logit: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(V, G): 1 - p of a right response, -p of a wrong one."""
    return batch.rewards - logit.sigmoid()[batch.prompt].unsqueeze(1)


def judge_scores(rewards: torch.Tensor, auc: float, generator: torch.Generator) -> torch.Tensor:
    """Whole scores from 0 to 10, as ``rewards``: normal around two means that lie as far apart as ``auc`` says."""
    apart = _JUDGE_SPREAD * math.sqrt(2) * float(torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)))
    noise = torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
    return (5 + apart * (rewards - 0.5) + _JUDGE_SPREAD * noise).round().clamp(0, 10)


def demonstration_scores(logit: torch.Tensor) -> torch.Tensor:
    """(V,): the gradient, by the logit, of the ratio that a right response has as a demonstration."""
    leaf = logit.detach().requires_grad_()
    ratio = demonstration_ratio(torch.nn.functional.logsigmoid(leaf), ratio="shaped")
    return torch.autograd.grad(ratio.sum(), leaf)[0]


def log_probs(logit: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(V, G): log-probabilities of the batch's responses under (P,) logits."""
    of_group = logit[batch.prompt].unsqueeze(1)
    return torch.nn.functional.logsigmoid(torch.where(batch.rewards == 1, of_group, -of_group))


def _dial(batch: Batch, alpha: float) -> torch.Tensor:
    return dial_advantage(batch.rewards.flatten(), batch.index, alpha=alpha, ddof=0, eps=0.0)
