"""Groups between generation and update, with the rules of verl's synchronous replay buffer.

On the stack, responses finish one after another while verl looks at its buffer again and again. Here, all prompts that
were submitted have finished at the next look. Apart from that, a group leaves for the same reasons:

- Dynamic sampling evicts a group whose metric is the same for all responses (``filtered``). Each eviction allows two
  further prompts, but no more than ``max_inflight_gen_batches`` batches may be in flight. A judge may still be at work
  on a group; it then counts as in flight.
- The first groups fill the batch (``trained``), in the order in which they were submitted. A group that lost all its
  rewards takes a place in the batch, too, and has no rows in it (``failed``).
- Dynamic sampling discards the rest (``surplus``).

As on the stack, a response whose reward failed is removed from its group when the group is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from omegaconf import DictConfig

from verl_gsd.dynamic_sampling import filter_metric, is_uniform
from verl_gsd.errors import ConfigError
from verl_gsd.groups import Group
from verl_gsd.records import Fate
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.trainer.group_reading import read_groups
from verl_gsd.trainer.reward_monitor import RewardMonitor
from verl_gsd.trainer.rows import as_number, session_of, uid_of
from verl_gsd.trainer.seam import Seam

#: Dynamic sampling may evict this many batches, and at least all training prompts once, without finding a mixed group.
_HOPELESS_BATCHES = 20
#: Seconds between two looks while groups wait for an extension, such as a judge.
POLL_S = 0.005


class NoMixedGroupError(RuntimeError):
    """Dynamic sampling evicted so many groups in a row that it would probably never fill the batch."""


class GroupBuffer:
    """Selects the groups of each batch.

    Args:
        rewards: counts the rewards of all groups that become complete, and stops a run that loses too many.
        submit: generates rollouts of this many further prompts, and returns their uids.
        training_prompts: the number of prompts in the training set.
    """

    def __init__(
        self,
        config: DictConfig,
        seam: Seam,
        rewards: RewardMonitor,
        submit: Callable[[int], list[str]],
        training_prompts: int,
    ) -> None:
        self._seam, self._rewards, self._submit = seam, rewards, submit
        self._batch_size = int(config.data.train_batch_size)
        self._metric = filter_metric(config)
        self._most_in_flight = int(config.algorithm.filter_groups.max_inflight_gen_batches) * self._batch_size
        self._most_evicted = max(training_prompts, _HOPELESS_BATCHES * self._batch_size)
        self._groups: dict[str, Group] = {}

    def sample(self, step: int) -> list[str]:
        """Submit a batch of prompts and return the uids of the groups to train on in ``step``.

        Raises:
            NoMixedGroupError: see there. verl would never stop.
            RunStoppedError: too many rewards of the step failed, or all rewards of the batch.
        """
        new, credit, is_draining, evicted = self._submit(self._batch_size), 0, False, 0
        while True:
            self._look(new, step)
            new = []
            ready = [uid for uid, group in self._groups.items() if self._seam.is_ready(group)]
            in_flight = len(self._groups) - len(ready)
            filtered = [uid for uid in ready if self._is_filtered(self._groups[uid])]
            self._leave(filtered, "filtered")
            evicted += len(filtered)
            usable = [uid for uid in ready if uid in self._groups]
            has_enough = len(usable) >= self._batch_size
            if not usable and not in_flight and evicted >= self._most_evicted:
                raise NoMixedGroupError(
                    f"algorithm.filter_groups.enable=true: dynamic sampling evicted {evicted} groups in a row, because "
                    f"algorithm.filter_groups.metric={self._metric} was the same for all responses of each group. Set "
                    "algorithm.filter_groups.enable=false or a larger actor_rollout_ref.rollout.n, or use prompts that "
                    "the policy solves sometimes."
                )
            if self._metric is not None:
                if has_enough:
                    is_draining, credit = True, 0
                elif not is_draining:
                    credit += 2 * len(filtered)
                count = min(credit, max(0, self._most_in_flight - in_flight))
                if not is_draining and count:
                    credit -= count
                    new = self._submit(count)
                    continue
            if has_enough and (self._metric is None or not in_flight):
                break
            time.sleep(POLL_S)
        self._rewards.check(step)
        chosen = usable[: self._batch_size]
        if self._metric is not None:
            self._leave(usable[self._batch_size :], "surplus")
        with_rows = {uid_of(key) for key in self._seam.rows.tags}
        if with_rows.isdisjoint(chosen):
            raise RunStoppedError(
                f"In step {step}, all responses of the batch lost their reward, so that there is nothing to train on. "
                "Correct the reward function. RUN/messages has the first failure of each kind."
            )
        for uid in chosen:
            self._seam.on_group_left(self._groups.pop(uid), "trained" if uid in with_rows else "failed")
        return [uid for uid in chosen if uid in with_rows]

    def _look(self, new: list[str], step: int) -> None:
        if new:
            self._seam.add_rows(new)
            groups, rewards, lost = read_groups(new, self._seam.rows, self._seam.prompt_of)
            sessions = set(lost)
            self._seam.rows.drop([key for key in self._seam.rows.tags if session_of(key) in sessions])
            self._groups |= {group.uid: group for group in groups}
            self._rewards.on_rewards(step, rewards.groups, rewards.responses, rewards.lost, rewards.seconds)
            self._seam.on_groups_complete(groups)
        self._seam.poll(time.monotonic())

    def _is_filtered(self, group: Group) -> bool:
        """Whether dynamic sampling evicts the group: the metric of its rows is the same."""
        if self._metric is None:
            return False
        keys = [key for key in self._seam.rows.tags if uid_of(key) == group.uid]
        if self._metric == "reward":
            values = [float(row["rm_scores"].sum()) for row in self._seam.rows.read(keys, ["rm_scores"])]
        else:
            rows = self._seam.rows.read(keys, ["extra_fields"])
            returned = [row["extra_fields"]["reward_extra_info"] for row in rows]
            if missing := [names for names in returned if self._metric not in names]:
                raise ConfigError(
                    f"algorithm.filter_groups.metric={self._metric}: the reward function does not return this value. "
                    f"Set it to reward, or to one of {', '.join(missing[0])}."
                )
            values = [as_number(names[self._metric]) for names in returned]
        return is_uniform(values)

    def _leave(self, uids: Sequence[str], fate: Fate) -> None:
        """Remove the rows of all these groups, and then report each group, as the watched buffer of verl does."""
        leaving = set(uids)
        self._seam.rows.drop([key for key in self._seam.rows.tags if uid_of(key) in leaving])
        for uid in uids:
            self._seam.on_group_left(self._groups.pop(uid), fate)
