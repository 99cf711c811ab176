"""A run of one algorithm without a model: P prompts, each an independent Bernoulli logit (arXiv 2607.00152).

Nothing that is learned on one prompt helps another, and nothing is forgotten, so that nearly every logit rises in the
end. Algorithms differ in which prompts rise first, and in how many rollouts that takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verl_gsd.bernoulli import Algorithm

#: Prompts are divided into parts of equal size by their rate at the start, hardest first.
QUARTERS = ("hardest", "second", "third", "easiest")
#: ``first_update`` is the mean over this number of draws.
DRAWS = 20


@dataclass(frozen=True, eq=False)
class SimulatedRun:
    """The solve rates of P prompts over a run.

    Attributes:
        start, final: (P,) float64, solve rates before and after the run. ``start`` ascends.
        quarters: (steps + 1, 4), mean solve rate of each of ``QUARTERS``, from the start on.
        rollouts: (steps + 1,), responses generated per prompt up to each step.
    """

    start: np.ndarray
    final: np.ndarray
    quarters: np.ndarray
    rollouts: np.ndarray


def simulate(
    algorithm: Algorithm, start: np.ndarray, *, group_size: int = 8, steps: int = 150, seed: int = 0
) -> SimulatedRun:
    """Run ``algorithm`` on prompts whose solve rates are ``start``. Equal arguments give equal results.

    Args:
        start: (P,) float64, ascending, in the open interval from 0 to 1.

    Raises:
        ValueError: there are fewer than four prompts, a rate is 0 or 1, rates do not ascend, ``group_size`` is below 2,
            or ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a run needs a step. Set steps to 1 or more.")
    logit, generator = _initial_state(start, group_size, seed)
    update = algorithm.start(logit, generator)
    quarters, rollouts = [_quarter_means(logit)], [0.0]
    for _ in range(steps):
        batch = algorithm.draw(logit.sigmoid(), group_size, generator)
        logit = logit + update(logit, batch, algorithm.rate)
        quarters.append(_quarter_means(logit))
        rollouts.append(rollouts[-1] + batch.generated * group_size / len(start))
    return SimulatedRun(np.asarray(start, float), logit.sigmoid().numpy(), np.stack(quarters), np.array(rollouts))


def first_update(algorithm: Algorithm, start: np.ndarray, *, group_size: int = 8, seed: int = 0) -> np.ndarray:
    """(P,) float64: the change of each logit by an update at the start, the mean over ``DRAWS`` draws.

    An update before these is not counted. An algorithm with a memory learns from it, and needs that: its weights may
    depend on the accuracy of earlier batches.

    Raises:
        ValueError: as ``simulate``.
    """
    logit, generator = _initial_state(start, group_size, seed)
    update = algorithm.start(logit, generator)
    batches = (algorithm.draw(logit.sigmoid(), group_size, generator) for _ in range(DRAWS + 1))
    changes = [update(logit, batch, algorithm.rate) for batch in batches]
    return torch.stack(changes[1:]).mean(dim=0).numpy()


def _initial_state(start: np.ndarray, group_size: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """The logits at the start and the random generator; raises the ValueError of ``simulate``."""
    if group_size < 2:
        raise ValueError(f"group_size={group_size}: a group needs two responses. Set group_size to 2 or more.")
    if len(start) < len(QUARTERS) or not ((start > 0) & (start < 1)).all() or (np.diff(start) < 0).any():
        raise ValueError(
            f"start: {len(start)} rates. Use {len(QUARTERS)} or more, in ascending order, each between 0 and 1."
        )
    return torch.from_numpy(np.asarray(start, float)).logit(), torch.Generator().manual_seed(seed)


def _quarter_means(logit: torch.Tensor) -> np.ndarray:
    return np.array([float(part.mean()) for part in logit.sigmoid().tensor_split(len(QUARTERS))])
