"""A run without a model: P prompts, each an independent Bernoulli logit, under one algorithm (arXiv 2607.00152).

Nothing generalises here from one prompt to another and nothing is forgotten, so that nearly every logit rises in the
end: what differs between algorithms is which prompts rise first, and what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verl_gsd.lab.algorithms import Algorithm

#: Parts of equal size that prompts are divided into by their rate at the start, hardest first.
QUARTERS = ("hardest", "second", "third", "easiest")
#: Draws that ``first_update`` is averaged over.
DRAWS = 20


@dataclass(frozen=True, eq=False)
class Run:
    """What became of the prompts.

    Attributes:
        start, final: (P,) float64, solve rates before and after; ``start`` ascends.
        quarters: (steps + 1, 4), mean solve rate of each of ``QUARTERS``, from the start on.
        rollouts: (steps + 1,), responses generated up to each step, a prompt.
    """

    start: np.ndarray
    final: np.ndarray
    quarters: np.ndarray
    rollouts: np.ndarray


def simulate(algorithm: Algorithm, start: np.ndarray, *, group_size: int = 8, steps: int = 150, seed: int = 0) -> Run:
    """Run ``algorithm`` on prompts whose solve rates are ``start``; the same numbers for the same arguments.

    Args:
        start: (P,) float64, ascending, in the open interval from 0 to 1.

    Raises:
        ValueError: fewer than four prompts, a rate is 0 or 1 or out of order, a group of fewer than 2, or no step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: write 1 step or more")
    logit, generator = _beginning(start, group_size, seed)
    update = algorithm.start(logit, generator)
    quarters, rollouts = [_by_quarter(logit)], [0.0]
    for _ in range(steps):
        batch = algorithm.draw(logit.sigmoid(), group_size, generator)
        logit = logit + update(logit, batch, algorithm.rate)
        quarters.append(_by_quarter(logit))
        rollouts.append(rollouts[-1] + batch.generated * group_size / len(start))
    return Run(np.asarray(start, float), logit.sigmoid().numpy(), np.stack(quarters), np.array(rollouts))


def first_update(algorithm: Algorithm, start: np.ndarray, *, group_size: int = 8, seed: int = 0) -> np.ndarray:
    """(P,) float64: the change of each logit by an update at the start, the mean over ``DRAWS`` draws.

    They follow one that a memory may learn from and that counts for nothing else: without, HA-DW would have no anchor.

    Raises:
        ValueError: as ``simulate``.
    """
    logit, generator = _beginning(start, group_size, seed)
    update = algorithm.start(logit, generator)
    batches = (algorithm.draw(logit.sigmoid(), group_size, generator) for _ in range(DRAWS + 1))
    moved = [update(logit, batch, algorithm.rate) for batch in batches]
    return torch.stack(moved[1:]).mean(dim=0).numpy()


def _beginning(start: np.ndarray, group_size: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """The logits at the start and the source of chance, or a ValueError as ``simulate`` has it."""
    if group_size < 2:
        raise ValueError(f"group_size={group_size}: write 2 or more")
    if len(start) < len(QUARTERS) or not ((start > 0) & (start < 1)).all() or (np.diff(start) < 0).any():
        raise ValueError(f"start: {len(start)} rates; write {len(QUARTERS)} or more, ascending, each between 0 and 1")
    return torch.from_numpy(np.asarray(start, float)).logit(), torch.Generator().manual_seed(seed)


def _by_quarter(logit: torch.Tensor) -> np.ndarray:
    return np.array([float(part.mean()) for part in logit.sigmoid().tensor_split(len(QUARTERS))])
