"""Ends verl's ``main_ppo`` without an error if the run that it resumes is finished.

A scheduler restarts the same command after a node has failed, perhaps after the run's last step. verl would start all
engines, train no step and exit with code 0. Our trainers exit with code 0 before the engines start.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.messages import RunStoppedError

#: The first line of the message. The keys to raise follow.
NOTHING_TO_DO = "The run is finished: nothing to do. To train longer, change these keys:"


class FinishedError(RunStoppedError):
    """The checkpoint to resume has all steps that the config allows. The message names the keys to raise."""


class NoAgentLoops:
    """In the place of verl's ``AgentLoopManager``, which verl's task runner creates between ``init`` and ``fit``."""

    @classmethod
    def create(cls, **arguments: object) -> NoAgentLoops:
        """Create no agent loops, whatever ``arguments`` verl passes: there is no engine that could serve them."""
        return cls()


def replace_agent_loops(config: DictConfig) -> None:
    """Set the key by which verl's task runner finds the class of the agent loop manager to ``NoAgentLoops``."""
    name = f"{NoAgentLoops.__module__}.{NoAgentLoops.__qualname__}"
    OmegaConf.update(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class", name, force_add=True)
