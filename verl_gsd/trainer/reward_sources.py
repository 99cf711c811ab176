"""Makes the reward workers of our runs refuse rows whose texts verl would run as code (``run/reward_sources.py``).

A run whose config has no reward function gets verl's from ``get_default_compute_score``, in training and validation,
and for every reward manager. A function that the config names does not come from there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from verl_gsd.run import our_runs
from verl_gsd.run.reward_sources import without_code


def install(reward: Any) -> None:
    """Patch the module in which verl chooses a run's reward function. Runs that do not use us are left as they are.

    Args:
        reward: the module ``verl.trainer.ppo.reward``.
    """
    original = reward.get_default_compute_score

    @functools.wraps(original)
    def get_default_compute_score(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        compute_score = original(*args, **kwargs)
        return without_code(compute_score) if our_runs.is_marked() else compute_score

    reward.get_default_compute_score = get_default_compute_score
