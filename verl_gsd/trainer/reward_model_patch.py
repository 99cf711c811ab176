"""A patch for verl's discriminative reward models, whose scores verl's agent loops cannot read.

verl 0.9.1: ``RewardLoopWorker.compute_score_disrm`` returns ``reward_score`` alone, and the agent loop then reads
``reward_extra_info``: every session ends in a KeyError (verl issue 7368). The reward managers return both. No other
method of the worker makes a result of its own: a generative reward model needs a custom reward function, which a reward
manager calls. ``tests/contract/test_reward_model_patch.py`` fails when verl mends it: the patch can then go.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any


def add_extra_info(reward_loop: ModuleType) -> None:
    """Add an empty ``reward_extra_info`` to what a discriminative reward model returns.

    It stays empty: a reward model gives no verdict, so its groups have no ``acc``.

    Args:
        reward_loop: the module ``verl.experimental.reward_loop.reward_loop``.
    """
    worker = reward_loop.RewardLoopWorker
    original = worker.compute_score_disrm

    @functools.wraps(original)
    async def compute_score_disrm(self: Any, data: Any) -> dict[str, Any]:
        return {"reward_extra_info": {}} | await original(self, data)

    worker.compute_score_disrm = compute_score_disrm
