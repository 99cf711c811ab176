"""Watches a run's progress, processes and rewards while the trainer works."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from omegaconf import DictConfig

from verl_gsd.extension import ExtensionError
from verl_gsd.groups import Group
from verl_gsd.run.checks.limits import extension_waits, limits_of, seconds_for_a_reward
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.evictions import Evictions
from verl_gsd.trainer.progress import LEAST, WAITING, Progress
from verl_gsd.trainer.reward_monitor import RewardMonitor, Rewards
from verl_gsd.trainer.rows import PARTITION
from verl_gsd.trainer.watchdog import Watchdog


class RunMonitor:
    """The trainer and its replay buffer report events here. Raises ``RunStoppedError`` to end a run that cannot go on.

    Args:
        step: returns the current trainer step.

    Attributes:
        rewards, evictions: the trainer sets these before it trains.
    """

    rewards: RewardMonitor
    evictions: Evictions

    def __init__(self, config: DictConfig, messages: MessageWriter, step: Callable[[], int]) -> None:
        self._messages, self._step = messages, step
        # A hanging reward is no progress until it counts as failed. Nor is a group that waits for an extension.
        patience = max([seconds_for_a_reward(config), *extension_waits(config).values()])
        self._progress = Progress(limits_of(config).quiet_seconds, least=max(LEAST, 2 * patience))
        self._watchdog = Watchdog(self._progress, messages)
        self._sessions_failed = False  # the user is warned once

    def start(self) -> None:
        self._watchdog.start()

    def end(self) -> None:
        self._watchdog.end()

    def explain(self, error: Exception) -> None:
        """Tell the user why ``error`` ends the run, if the monitor knows more than the error says."""
        cause = error.__cause__ if isinstance(error, ExtensionError) else error
        if not isinstance(cause, RunStoppedError):
            self._watchdog.explain(cause if isinstance(cause, Exception) else error)
        elif str(cause) != self._watchdog.fault:  # the watchdog has told the user its fault already
            self._messages.write("stop", str(cause))

    def begin(self, doing: str, tokens: float = 0.0) -> None:
        """The trainer begins an activity that ends by itself.

        Args:
            tokens: number of tokens that each accelerator works on.
        """
        self._progress.begin(doing, tokens)

    def begin_waiting(self) -> None:
        """The trainer begins to wait for responses."""
        self._progress.begin(WAITING)

    # Events that the replay buffer reports.

    def on_look(self, detail: str, state: Hashable) -> None:
        """The buffer has looked into the queue.

        Args:
            detail: a description of what the trainer waits for.
            state: a value that changes if and only if a response has finished.
        """
        self._progress.look(detail, state)
        self._watchdog.check()

    def on_failures(self, chosen: bool) -> None:
        """Sessions have failed since the last look.

        Args:
            chosen: whether the failed sessions belong to a batch that is about to be used.
        """
        self._watchdog.look(wait=chosen)
        if not self._sessions_failed:
            self._sessions_failed = True
            self._messages.write(
                "warning",
                f"sessions failed in step {self._step()} because an agent loop raised an error. All processes of the "
                "run are alive, but the responses of these sessions are lost. Search the log for _run_prompt. "
                "docs/metrics.md says what verl does with their groups.",
            )

    def on_rewards(self, rewards: Rewards) -> None:
        """Rewards were read."""
        if rewards.partition == PARTITION:
            self.rewards.on_rewards(self._step(), rewards.groups, rewards.responses, rewards.lost, rewards.seconds)
        else:
            self.rewards.on_validation_rewards(self._step(), rewards.responses, rewards.lost)

    def on_evicted(self, group: Group) -> None:
        """Dynamic sampling has evicted a group."""
        self.evictions.on_evicted(group)

    def on_choosing(self) -> None:
        """A training batch is about to be selected."""
        self.rewards.check(self._step())
