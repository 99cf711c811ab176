"""Whether a run is well: its progress, its processes and its rewards, watched while the trainer works."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from omegaconf import DictConfig

from verl_gsd.extension import ExtensionError
from verl_gsd.run.checks.limits import extension_waits, limits_of, seconds_for_a_reward
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.progress import LEAST, WAITING, Progress
from verl_gsd.trainer.reward_monitor import RewardMonitor, Rewards
from verl_gsd.trainer.rows import PARTITION
from verl_gsd.trainer.watchdog import Watchdog


class RunMonitor:
    """Told by the trainer and its replay buffer what happens; ends the run by raising ``RunStoppedError``.

    Args:
        step: the trainer step at hand.

    Attributes:
        rewards: set by the trainer before it trains.
    """

    rewards: RewardMonitor

    def __init__(self, config: DictConfig, messages: MessageWriter, step: Callable[[], int]) -> None:
        self._messages, self._step = messages, step
        # A reward that hangs is no progress until it counts as failed. A group may wait for an extension.
        patience = max([seconds_for_a_reward(config), *extension_waits(config).values()])
        self._progress = Progress(limits_of(config).quiet_seconds, least=max(LEAST, 2 * patience))
        self._watchdog = Watchdog(self._progress, messages)
        self._sessions_failed = False  # told once

    def start(self) -> None:
        self._watchdog.start()

    def end(self) -> None:
        self._watchdog.end()

    def explain(self, error: Exception) -> None:
        """Tell the user why ``error`` ends the run, if more is known than the error says."""
        cause = error.__cause__ if isinstance(error, ExtensionError) else error
        if not isinstance(cause, RunStoppedError):
            self._watchdog.explain(cause if isinstance(cause, Exception) else error)
        elif str(cause) != self._watchdog.fault:  # which the user knows already
            self._messages.write("stop", str(cause))

    def begin(self, doing: str) -> None:
        """The trainer begins something that ends by itself."""
        self._progress.begin(doing)

    def begin_waiting(self) -> None:
        """The trainer begins to wait for responses."""
        self._progress.begin(WAITING)

    # Told by the replay buffer.

    def on_look(self, detail: str, state: Hashable) -> None:
        """The buffer has looked into the queue.

        Args:
            detail: what the trainer waits for.
            state: changes if and only if a response has finished.
        """
        self._progress.look(detail, state)
        self._watchdog.check()

    def on_failures(self, chosen: bool) -> None:
        """Sessions have failed since the last look.

        Args:
            chosen: a batch is about to be used in which sessions have failed.
        """
        self._watchdog.look(wait=chosen)
        if not self._sessions_failed:
            self._sessions_failed = True
            self._messages.write(
                "warning",
                f"sessions failed in step {self._step()}, and every process of the run is alive: an agent loop "
                "raised. Their responses are lost. Search the log for _run_prompt; docs/metrics.md says what verl does "
                "with their groups.",
            )

    def on_rewards(self, rewards: Rewards) -> None:
        """Rewards were read."""
        if rewards.partition == PARTITION:
            self.rewards.saw(self._step(), rewards.groups, rewards.responses, rewards.lost, rewards.seconds)
        else:
            self.rewards.saw_validation(self._step(), rewards.responses, rewards.lost)

    def on_choosing(self) -> None:
        """A batch is about to be chosen to train on."""
        self.rewards.check(self._step())
