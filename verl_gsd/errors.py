"""The error for configurations that cannot run, and the trainer modes of verl and of this package."""

from __future__ import annotations

from collections.abc import Sequence

#: verl's trainer modes -> our modes, which extend them.
OUR_MODES = {
    "sync": "gsd_sync",
    "colocate_async": "gsd_colocate_async",
    "separate_async": "gsd_separate_async",
}
#: Words of a command line that give a reward model GPUs of its own, as our trainer modes need. By default, verl's
#: config has no GPUs and no engine for it.
OWN_GPUS_FOR_REWARDS = (
    "reward.reward_model.enable_resource_pool=true",
    "reward.reward_model.nnodes=1",
    "reward.reward_model.n_gpus_per_node=1",
    "reward.reward_model.rollout.name=vllm",
)
#: Words of a command line with which the reward model MODEL scores.
USE_REWARD_MODEL = (
    "reward.reward_model.enable=true",
    "reward.reward_model.model_path=MODEL",
    *OWN_GPUS_FOR_REWARDS,
)


class ConfigError(ValueError):
    """A configuration that cannot run. The message names the key, the value and what to set instead."""


class SettingsError(ValueError):
    """A config section is wrong.

    Attributes:
        problems: one sentence per problem. Each begins with the key, relative to the section.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problem.removeprefix(": ") for problem in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        """Ray pickles errors of workers."""
        return type(self), (self.problems,)
