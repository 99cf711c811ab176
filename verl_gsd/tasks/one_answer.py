"""Which configs have one right answer per prompt, so that a solve rate can be computed instead of sampled.

This module imports neither torch nor verl.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_gsd.tasks.catalog import TASKS


def has_one_answer(config: DictConfig) -> bool:
    """Whether a response to a prompt of this resolved config is right only if it is the ground truth.

    The ``acc`` of an embedded task's verifier is 1 for the ground truth, with any white space around it, and 0 for
    every other response. The reward function decides, not the task's name: ``data.train_files`` may name other data.
    """
    verifiers = {f"pkg://{task.verifier}" for task in TASKS.values()}
    function = OmegaConf.select(config, "reward.custom_reward_function") or {}
    return function.get("path") in verifiers and function["name"] == "compute_score"
