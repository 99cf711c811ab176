"""A patch for verl's discriminative reward models, whose scores verl's agent loops cannot read.

In verl 0.9.1, ``RewardLoopWorker.compute_score_disrm`` returns only ``reward_score``. The agent loop also reads
``reward_extra_info``, so every session ends in a KeyError (verl issue 7368). All other results come from reward
managers, which return both: a generative reward model needs a custom reward function, which a reward manager calls.
``tests/contract/test_reward_model_patch.py`` fails when verl fixes this. The patch can then be removed.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any


def add_extra_info(reward_loop: ModuleType) -> None:
    """Add an empty ``reward_extra_info`` to the result of a discriminative reward model.

    It stays empty because a reward model returns no verdict. Its groups therefore have no ``acc``.

    Args:
        reward_loop: the module ``verl.experimental.reward_loop.reward_loop``.
    """
    worker = reward_loop.RewardLoopWorker
    original = worker.compute_score_disrm

    @functools.wraps(original)
    async def compute_score_disrm(self: Any, data: Any) -> dict[str, Any]:
        return {"reward_extra_info": {}} | await original(self, data)

    worker.compute_score_disrm = compute_score_disrm
