"""Which configs have one right answer per prompt, so that a solve rate can be computed instead of sampled.

This module imports neither torch nor verl.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

#: Verifiers of the embedded tasks. Their ``acc`` is 1 for the ground truth with any white space around it, and 0 for
#: every other response.
VERIFIERS = ("verl_gsd.tasks.arithmetic", "verl_gsd.tasks.arithmetic_graded")


def has_one_answer(config: DictConfig) -> bool:
    """Whether a response to a prompt of this resolved config is right only if it is the ground truth.

    The reward function decides this, not the name of the task: ``data.train_files`` may name other data.
    """
    function = OmegaConf.select(config, "reward.custom_reward_function") or {}
    return function.get("path") in {f"pkg://{module}" for module in VERIFIERS} and function["name"] == "compute_score"
