"""verl's dynamic sampling (``algorithm.filter_groups``): which values it compares within a group, and when it evicts.

In verl 0.9.1, the replay buffer evicts a complete group if the value that ``algorithm.filter_groups.metric`` names is
the same for all its responses. These names exist:

- ``reward``: what the reward manager returns. This is the reward of the advantages, with DAPO's overlong penalty. Only
  the KL penalty of ``algorithm.use_kl_in_reward`` is missing; verl subtracts it later.
- Any other name: the value that the reward function returns under this name. ``score`` is the reward before the
  overlong penalty. If the function returns a plain number, verl stores it as ``acc``, and there is no other value.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_gsd.groups import Group

#: Metrics of verl's older trainers -> what they were. The V1 trainers do not compute them.
OLD_METRICS = {
    "seq_reward": "the reward before the KL penalty",
    "seq_final_reward": "the reward after the KL penalty",
}
#: Reward functions of this package whose score gives partial credit, while ``acc`` is 0 or 1.
GRADED_VERIFIERS = frozenset({"pkg://verl_gsd.tasks.arithmetic_graded"})


def filter_metric(config: DictConfig) -> str | None:
    """The value by which dynamic sampling evicts groups; None if it is off."""
    section = OmegaConf.select(config, "algorithm.filter_groups")
    return str(section.metric) if section is not None and section.enable else None


def is_uniform(values: Iterable[float]) -> bool:
    """Whether verl evicts a group with these values. This is verl's own arithmetic.

    A group of one response is never evicted. Rounding can hide that seven values of 0.7 are equal.
    """
    values = list(values)
    return len(values) > 1 and float(np.std(values)) == 0.0


def is_evicted(group: Group, metric: str | None) -> bool:
    """Whether dynamic sampling by ``metric`` evicts a complete group.

    False for metrics other than ``acc`` and ``reward``, because a group has no other values.
    """
    values = {"acc": group.accuracies, "reward": group.rewards}.get(metric or "")
    return values is not None and is_uniform(values.tolist())
