"""Which groups of responses a step learns from: one a prompt, or mixed ones alone, and what those cost to find.

A prompt is one logit, right with probability p = 1 / (1 + exp(-logit)), and a response is right or wrong: nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Draws the paper's controlled run allows a prompt in a step.
REDRAWS = 4
#: Rounds in which DAPO looks for mixed groups among other prompts, the first one included; then the step goes on with
#: those found.
ROUNDS = 10


@dataclass(frozen=True, eq=False)
class Batch:
    """V groups of G responses that a step learns from.

    Attributes:
        prompt: (V,) int64, whose; a prompt may stand there more than once.
        rewards: (V, G) float64, 1 for a right response and 0 for a wrong one.
        generated: groups generated to have these V, them included.
        right: right responses among all generated.
    """

    prompt: torch.Tensor
    rewards: torch.Tensor
    generated: int
    right: float

    @property
    def index(self) -> torch.Tensor:
        """(V*G,) int64, the group of each response, in the order of ``rewards.flatten()``."""
        return torch.arange(len(self.prompt)).repeat_interleave(self.rewards.shape[1])


Draw = Callable[[torch.Tensor, int, torch.Generator], Batch]


def one_each(p: torch.Tensor, group_size: int, generator: torch.Generator) -> Batch:
    """A group of every prompt, silent or not: GRPO and its like.

    Args:
        p: (P,) float64, solve rates.
    """
    prompt = torch.arange(len(p))
    rewards = respond(p, prompt, group_size, generator)
    return Batch(prompt, rewards, len(prompt), float(rewards.sum()))


def again(p: torch.Tensor, group_size: int, generator: torch.Generator) -> Batch:
    """The paper's reading of DAPO: a silent group is drawn again, from the same prompt, ``REDRAWS`` draws at most."""
    batch = one_each(p, group_size, generator)
    rewards, generated, right = batch.rewards, batch.generated, batch.right
    for _ in range(REDRAWS - 1):
        silent = torch.nonzero(~is_mixed(rewards)).squeeze(1)
        rewards[silent] = respond(p, silent, group_size, generator)
        generated, right = generated + len(silent), right + float(rewards[silent].sum())
    return Batch(batch.prompt, rewards, generated, right)


def others(p: torch.Tensor, group_size: int, generator: torch.Generator) -> Batch:
    """DAPO: a silent group makes room for one of another prompt, until as many are mixed as there are prompts.

    ``ROUNDS`` rounds at most: towards the end of a run, when nearly every prompt is mastered, a batch is not filled.
    """
    prompt, kept, generated, right = torch.arange(len(p)), [], 0, 0.0
    found = 0
    for _ in range(ROUNDS):
        rewards = respond(p, prompt, group_size, generator)
        mixed = is_mixed(rewards)
        kept.append((prompt[mixed], rewards[mixed]))
        generated, right, found = generated + len(prompt), right + float(rewards.sum()), found + int(mixed.sum())
        if found == len(p):
            break
        prompt = torch.randint(len(p), (len(p) - found,), generator=generator)
    prompts, groups = zip(*kept, strict=True)
    return Batch(torch.cat(prompts), torch.cat(groups), generated, right)


def respond(p: torch.Tensor, prompt: torch.Tensor, group_size: int, generator: torch.Generator) -> torch.Tensor:
    """(V, G) float64: rewards of G responses to each of ``prompt``, (V,)."""
    chance = torch.rand(len(prompt), group_size, generator=generator, dtype=torch.float64)
    return (chance < p[prompt].unsqueeze(1)).double()


def is_mixed(rewards: torch.Tensor) -> torch.Tensor:
    """(V,) bool: groups whose responses disagree."""
    return rewards.amin(dim=1) != rewards.amax(dim=1)
