r"""Training without a model: each prompt is one Bernoulli logit. An algorithm draws groups and changes the logits.

A response to a prompt is right with probability p = 1 / (1 + exp(-logit)), and wrong otherwise. It has no other
content. Its score, the gradient of its log-probability with respect to the logit, is 1 - p if it is right and -p if it
is wrong. The mean score of right responses minus the mean score of wrong responses is therefore 1. So the dial changes
the logit of a prompt by exactly its gain,

    g = (1/G) sum_i A_i s_i = sigma^(2 - alpha)    (Theorem 1 of arXiv 2607.00152, with eps = 0).

As in that paper, sigma has divisor G and eps is 0 everywhere here. ``verl-gsd lab`` runs these algorithms. An
extension adds its own with ``Declaration.lab``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from verl_gsd.dial import dial_advantage

#: The paper's learning rate: a gain of 1 changes the logit by this amount.
RATE = 0.5
#: How often DAPO draws from one prompt in a step, at most, in the paper's controlled run.
REDRAWS = 4
#: How often DAPO generates groups in a step, at most, including the first time. After that, the step uses the mixed
#: groups that it has.
ROUNDS = 10


@dataclass(frozen=True, eq=False)
class BernoulliBatch:
    """V groups of G responses that a step learns from.

    Attributes:
        prompt: (V,) int64, the prompt of each group. A prompt may appear more than once.
        rewards: (V, G) float64, 1 for a right response and 0 for a wrong one.
        generated: number of groups that were generated to obtain these V groups, including them.
        right: number of right responses among all generated responses.
    """

    prompt: torch.Tensor
    rewards: torch.Tensor
    generated: int
    right: float

    @property
    def index(self) -> torch.Tensor:
        """(V*G,) int64, the group of each response, in the order of ``rewards.flatten()``."""
        return torch.arange(len(self.prompt)).repeat_interleave(self.rewards.shape[1])


#: ((P,) solve rates, group size, random generator) -> the batch of a step.
Draw = Callable[[torch.Tensor, int, torch.Generator], BernoulliBatch]
#: ((P,) logits, batch, learning rate) -> (P,) change of the logits. It may keep a memory between calls.
Update = Callable[[torch.Tensor, BernoulliBatch, float], torch.Tensor]


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of the lab: how it draws groups and how it updates the logits.

    Attributes:
        family: algorithms of one family share a colour in charts.
        about: what the algorithm does, and what the lab leaves out.
        start: returns the update of one run, given the (P,) logits at the start and the run's random generator.
        rate: the learning rate.
    """

    family: str
    about: str
    draw: Draw
    start: Callable[[torch.Tensor, torch.Generator], Update]
    rate: float = RATE


@dataclass(frozen=True)
class SameAlgorithm:
    """A name whose run in the lab would repeat another algorithm's run. The lab rejects it with this explanation.

    Attributes:
        reason: why the two are the same, as a part of a sentence.
        use: the name to use instead.
    """

    reason: str
    use: str


def one_group_per_prompt(p: torch.Tensor, group_size: int, generator: torch.Generator) -> BernoulliBatch:
    """Draw one group from every prompt, whether silent or mixed, as GRPO does.

    Args:
        p: (P,) float64, solve rates.
    """
    prompt = torch.arange(len(p))
    rewards = respond(p, prompt, group_size, generator)
    return BernoulliBatch(prompt, rewards, len(prompt), float(rewards.sum()))


def redraw_silent_groups(p: torch.Tensor, group_size: int, generator: torch.Generator) -> BernoulliBatch:
    """Draw a silent group again from the same prompt, with at most ``REDRAWS`` draws: the paper's reading of DAPO."""
    batch = one_group_per_prompt(p, group_size, generator)
    rewards, generated, right = batch.rewards, batch.generated, batch.right
    for _ in range(REDRAWS - 1):
        silent = torch.nonzero(~is_mixed(rewards)).squeeze(1)
        rewards[silent] = respond(p, silent, group_size, generator)
        generated, right = generated + len(silent), right + float(rewards[silent].sum())
    return BernoulliBatch(batch.prompt, rewards, generated, right)


def replace_silent_groups(p: torch.Tensor, group_size: int, generator: torch.Generator) -> BernoulliBatch:
    """Replace silent groups by groups of other prompts until there are as many mixed groups as prompts, as DAPO does.

    It stops after ``ROUNDS`` rounds. Towards the end of a run, when nearly all prompts are solved, it therefore returns
    fewer groups.
    """
    prompt, kept, generated, right = torch.arange(len(p)), [], 0, 0.0
    n_mixed = 0
    for _ in range(ROUNDS):
        rewards = respond(p, prompt, group_size, generator)
        mixed = is_mixed(rewards)
        kept.append((prompt[mixed], rewards[mixed]))
        generated, right, n_mixed = generated + len(prompt), right + float(rewards.sum()), n_mixed + int(mixed.sum())
        if n_mixed == len(p):
            break
        prompt = torch.randint(len(p), (len(p) - n_mixed,), generator=generator)
    prompts, groups = zip(*kept, strict=True)
    return BernoulliBatch(torch.cat(prompts), torch.cat(groups), generated, right)


def respond(p: torch.Tensor, prompt: torch.Tensor, group_size: int, generator: torch.Generator) -> torch.Tensor:
    """(V, G) float64: rewards of G responses to each prompt in ``prompt``, (V,)."""
    draws = torch.rand(len(prompt), group_size, generator=generator, dtype=torch.float64)
    return (draws < p[prompt].unsqueeze(1)).double()


def is_mixed(rewards: torch.Tensor) -> torch.Tensor:
    """(V,) bool: whether a group has both right and wrong responses."""
    return rewards.amin(dim=1) != rewards.amax(dim=1)


def dial_update(alpha: float) -> Update:
    """The dial's update at ``alpha``."""

    def update(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        return rate * ascend(logit, batch, dial_advantages(batch, alpha))

    return skip_silent_groups(update)


def dial_advantages(batch: BernoulliBatch, alpha: float) -> torch.Tensor:
    """(V*G,): the dial's advantages, with the paper's ``ddof`` of 0 and ``eps`` of 0."""
    return dial_advantage(batch.rewards.flatten(), batch.index, alpha=alpha, ddof=0, eps=0.0)


def ascend(
    logit: torch.Tensor, batch: BernoulliBatch, advantages: torch.Tensor, scores: torch.Tensor | None = None
) -> torch.Tensor:
    """(P,): for each prompt, the sum of (1/G) sum_i A_i s_i over its groups.

    Args:
        advantages: (V*G,).
        scores: (V, G), s_i. None: the scores of responses that the policy generated.
    """
    if scores is None:
        scores = policy_scores(logit, batch)
    group_updates = (advantages.view_as(scores) * scores).mean(dim=1)
    return torch.zeros_like(logit).index_add(0, batch.prompt, group_updates)


def skip_silent_groups(update: Update) -> Update:
    """Apply ``update`` only to the mixed groups. This requires that it changes nothing for silent groups.

    This saves most of a run's time: towards the end, most groups are silent.
    """

    def update_mixed(logit: torch.Tensor, batch: BernoulliBatch, rate: float) -> torch.Tensor:
        mixed = is_mixed(batch.rewards)
        if not mixed.any():
            return torch.zeros_like(logit)
        return update(logit, replace(batch, prompt=batch.prompt[mixed], rewards=batch.rewards[mixed]), rate)

    return update_mixed


def policy_scores(logit: torch.Tensor, batch: BernoulliBatch) -> torch.Tensor:
    """(V, G): 1 - p for a right response, -p for a wrong one."""
    return batch.rewards - logit.sigmoid()[batch.prompt].unsqueeze(1)


def log_probs(logit: torch.Tensor, batch: BernoulliBatch) -> torch.Tensor:
    """(V, G): log-probabilities of the batch's responses under (P,) logits."""
    group_logits = logit[batch.prompt].unsqueeze(1)
    return torch.nn.functional.logsigmoid(torch.where(batch.rewards == 1, group_logits, -group_logits))
