"""Says so if dynamic sampling evicts so many groups that a step may never have enough."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from verl_gsd.groups import Group
from verl_gsd.run.messages import MessageWriter

#: The first warning comes when a step has evicted this many times the groups that it needs.
TIMES = 10


class Evictions:
    """Counts the groups that dynamic sampling evicts in a step. verl replaces each by another prompt, without a limit.

    Args:
        step_groups: groups that a step needs.
        step: returns the current trainer step.
    """

    def __init__(self, messages: MessageWriter, step_groups: int, step: Callable[[], int]) -> None:
        self._messages, self._step = messages, step
        self._counted, self._evicted, self._lowest = -1, 0, 0
        self._limit = TIMES * step_groups

    def on_evicted(self, group: Group) -> None:
        """Dynamic sampling has evicted a group. Every warning of a run is about twice as many groups as the last."""
        if self._counted != self._step():
            self._counted, self._evicted, self._lowest = self._step(), 0, 0
        verdicts = group.accuracies[~np.isnan(group.accuracies)]
        verdicts = verdicts if len(verdicts) else group.rewards
        self._evicted += 1
        self._lowest += bool(len(verdicts)) and bool((verdicts <= 0).all())
        if self._evicted < self._limit:
            return
        self._limit = 2 * self._evicted
        self._messages.write(
            "warning",
            f"dynamic sampling has evicted {self._evicted} groups in step {self._counted}, because the values of "
            f"algorithm.filter_groups.metric were equal in each: not above 0 in {self._lowest} of them. "
            "verl generates until enough groups differ. Check the verifier with responses of this model, or use "
            "easier or harder data. algorithm.filter_groups.enable=false trains on all groups.",
        )
