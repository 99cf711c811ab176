"""Watches verl's replay buffer, the only place where groups become complete.

Agent loops and reward workers see one response at a time. Only the replay buffer knows when the last session of a
prompt has ended, and only the buffer evicts groups. ``watch`` adds our class to the class of a built buffer, so that it
works with every trainer mode and sampler of verl. It tells the seam of each group when it is complete and when it
leaves, and it tells the monitor what the buffer sees of the run.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.errors import ConfigError
from verl_gsd.groups import Group
from verl_gsd.records import Fate
from verl_gsd.trainer.group_reading import failure_of_row, read_groups
from verl_gsd.trainer.monitor import RunMonitor
from verl_gsd.trainer.reward_failures import MARK, Failure
from verl_gsd.trainer.reward_monitor import LostReward, Rewards, index_to_show
from verl_gsd.trainer.rows import (
    PARTITION,
    VALIDATION,
    output_number,
    session_of,
    uid_of,
)
from verl_gsd.trainer.seam import Seam


class _Watched(ReplayBuffer):
    """Precedes the buffer's own class; see ``watch``."""

    _seam: Seam
    _monitor: RunMonitor
    _whole: dict[str, Group]
    _evicting: dict[str, Fate]
    _failures: frozenset[str]
    #: Complete groups that were not ready at the last look.
    _held_back: int
    #: The rows at the last look, and the number of rows found by all looks so far.
    _rows: set[str]
    _responses: int
    #: Seconds spent reading rows since the trainer last reset this.
    read_seconds: float

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        # verl creates a new table at every look. Rows that extensions put or drop must appear in or vanish from it.
        self._seam.rows.tags = self.partitions.get(PARTITION, {})
        failures = frozenset[str]().union(*self.failure_keys.values())
        self._monitor.on_look(*self._waiting_for())
        if not failures <= self._failures:
            self._monitor.on_failures(chosen=False)
        self._failures = failures
        finished, failed = self.finished_keys[PARTITION], self.failure_keys[PARTITION]
        if removed := self._whole.keys() - finished - failed:
            raise RuntimeError(
                f"{type(self).__name__} removed {len(removed)} groups from the queue without verl's methods, so that "
                "verl-gsd cannot follow them. Select prompts in _select_prompt_uids and leave the rest to verl."
            )
        new = (finished | failed) - self._whole.keys()
        if new:
            start = time.perf_counter()
            rows = self.partitions[PARTITION]
            self._seam.add_rows(sorted(new))
            groups, rewards, lost = read_groups(sorted(new), self._seam.rows, self._seam.prompt_of)
            self._drop(lost, rows, PARTITION)
            for group in groups:
                self._whole[group.uid] = group
            if emptied := set(filter(self._lost_all_rewards, finished)):
                # In verl, a finished group has responses. A group without any counts as failed, also at the next look.
                tags = [{"status": "failure"} for _ in emptied]
                tq.kv_batch_put(keys=sorted(emptied), partition_id=PARTITION, tags=tags)
                finished -= emptied
                failed |= emptied
                self._failures |= emptied  # no session failed, so there is no need to check the processes
            self._monitor.on_rewards(rewards)
            self._seam.on_groups_complete(groups)
            self.read_seconds += time.perf_counter() - start
        self._seam.poll(time.monotonic())
        # A group that is not ready counts as running: dynamic sampling waits for running groups before it ends a step.
        self._held_back = 0
        for uid in finished | failed:
            if not self._seam.is_ready(self._whole[uid]):
                self._held_back += 1
                finished.discard(uid)
                failed.discard(uid)
                self.running_keys[PARTITION].add(uid)

    def _lost_all_rewards(self, uid: str) -> bool:
        """Whether a group of the training partition has no response because every reward failed."""
        group = self._whole.get(uid)
        return group is not None and group.failed_rewards > 0 and not group.keys

    def _drop(self, lost: Iterable[str], rows: dict[str, dict[str, Any]], partition: str) -> None:
        """Remove all rows of the sessions ``lost``, each ``<uid>_<session>``, from the queue and from ``rows``."""
        sessions = set(lost)
        keys = [key for key in rows if session_of(key) in sessions] if sessions else []
        if keys:
            tq.kv_clear(keys=keys, partition_id=partition)
            for key in keys:
                del rows[key]

    def _select_prompt_uids(self, partition_id, sampleable_keys, batch_size):
        if partition_id == PARTITION:
            self._monitor.on_choosing()
        return super()._select_prompt_uids(partition_id, sampleable_keys, batch_size)

    def _waiting_for(self) -> tuple[str, Hashable]:
        """(a description of what the trainer waits for, a state that changes whenever a response finishes).

        A failed prompt is no progress, because verl's asynchronous buffer replaces failed prompts for ever.
        """
        rows = {key for of_partition in self.partitions.values() for key in of_partition}
        self._responses += len(rows - self._rows)
        self._rows = rows
        descriptions = []
        for partition, of_partition in sorted(self.partitions.items()):
            unfinished = len(self.pending_keys[partition]) + len(self.running_keys[partition])
            failed = len(self.failure_keys[partition])
            prompts = unfinished + failed + len(self.finished_keys[partition])
            if prompts:
                failures = f", {failed} failed" if failed else ""
                descriptions.append(
                    f"{partition}: {len(of_partition)} responses finished, {unfinished} of {prompts} prompts "
                    f"unfinished{failures}"
                )
        if self._held_back:
            descriptions.append(f"{self._held_back} prompts are being judged")
        return "; ".join(descriptions) or "none requested", (self._responses, self._held_back)

    def _evict_terminal_groups(self, global_steps, partition_id, eviction_reasons):
        stale, filtered, failed, _ = eviction_reasons
        # A group can have several reasons. A later one in this list overrides an earlier one.
        reasons: tuple[tuple[Iterable[str], Fate], ...] = (
            (filtered, "filtered"),
            (failed, "failed"),
            (stale, "stale"),
        )
        self._evicting = {uid: fate for uids, fate in reasons for uid in uids}
        try:
            return super()._evict_terminal_groups(global_steps, partition_id, eviction_reasons)
        finally:
            self._evicting = {}

    def _clear_groups(self, partition_id, uids):
        leaving = sorted(uids)
        super()._clear_groups(partition_id, uids)
        if partition_id == PARTITION:
            for uid in leaving:
                # Cleared, but not evicted: the group was left over when the batch was full.
                self._leave(uid, self._evicting.get(uid, "surplus"))

    def _materialize_batch(self, partition_id, selected_prompt_uids, partition_snapshot):
        failed = self.failure_keys[partition_id].intersection(selected_prompt_uids)
        if any(not self._lost_all_rewards(uid) for uid in failed):
            self._monitor.on_failures(chosen=True)  # a process may have died after the last look
        if partition_id == VALIDATION:
            rewards, lost = _read_validation(set(selected_prompt_uids), partition_snapshot)
            self._drop(lost, partition_snapshot, VALIDATION)
            self._monitor.on_rewards(rewards)
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        if partition_id == PARTITION:
            with_rows = {uid_of(key) for key in batch.keys}
            for uid in selected_prompt_uids:
                self._leave(uid, "trained" if uid in with_rows else "failed")
        return batch

    def _leave(self, uid: str, fate: Fate) -> None:
        group = self._whole.pop(uid, None)
        if group is None:  # a custom sampler dropped the group before it was complete
            group = Group(uid, *self._seam.prompt_of(uid), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
        if fate == "filtered":
            self._monitor.on_evicted(group)
        self._seam.on_group_left(group, fate)


def watch(buffer: Any, seam: Seam, monitor: RunMonitor) -> None:
    """From now on, pass every group of ``buffer`` to ``seam``, and what the buffer sees of the run to ``monitor``.

    Raises:
        ConfigError: the buffer is a custom sampler that is not a subclass of verl's replay buffer.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise ConfigError(
            f"trainer.v1.sampler.custom_sampler.name={type(buffer).__name__}: verl-gsd watches groups in verl's replay "
            "buffer. Set it to a subclass of verl.trainer.ppo.v1.replay_buffer.ReplayBuffer."
        )
    kind = type(buffer)
    buffer.__class__ = type(f"Watched{kind.__name__}", (_Watched, kind), {})
    buffer._seam, buffer._monitor = seam, monitor
    buffer._whole, buffer._evicting, buffer.read_seconds = {}, {}, 0.0
    buffer._failures, buffer._held_back = frozenset(), 0
    buffer._rows, buffer._responses = set(), 0


def _read_validation(uids: set[str], partition: Mapping[str, Mapping[str, Any]]) -> tuple[Rewards, list[str]]:
    """(the rewards of a validation's prompts ``uids``, the sessions to remove because their rewards failed).

    verl cannot read a validation batch without rows. If all rewards failed, one session stays, with a reward of 0.
    """
    last: dict[str, str] = {}  # session -> row key
    for key in partition:
        other = last.get(session_of(key))
        if uid_of(key) in uids and (other is None or output_number(other) < output_number(key)):
            last[session_of(key)] = key
    keys = list(last.values())
    failures: dict[str, tuple[Failure, bool]] = {}
    if keys:
        fields = ["rm_scores", "extra_fields"]
        data = tq.kv_batch_get(keys=keys, partition_id=VALIDATION, select_fields=fields)
        for key, scores, extra in zip(keys, *(list(data[name]) for name in fields), strict=True):
            info = getattr(extra, "data", extra).get("reward_extra_info") or {}
            if failure := failure_of_row(float(scores.double().sum()), info):
                failures[key] = failure, MARK not in info
    lost = []
    if failures:
        fields = ["data_source", "index"]
        data = tq.kv_batch_get(keys=list(failures), partition_id=VALIDATION, select_fields=fields)
        prompts = zip(*([getattr(of, "data", of) for of in list(data[name])] for name in fields), strict=True)
        for (source, index), (failure, by_agent_loop) in zip(prompts, failures.values(), strict=True):
            lost.append(LostReward(str(source), index_to_show(index), failure, by_agent_loop))
    removed = list(failures)
    if removed and len(removed) == len(keys):
        _set_no_reward(removed.pop(0))
    return Rewards(VALIDATION, len(uids), len(keys), tuple(lost)), [session_of(key) for key in removed]


def _set_no_reward(key: str) -> None:
    """Set the reward of a validation row to 0 and empty its verdict, as verl does for a failed session."""
    data = tq.kv_batch_get(keys=[key], partition_id=VALIDATION, select_fields=["rm_scores", "extra_fields"])
    (scores,), (extra,) = list(data["rm_scores"]), list(data["extra_fields"])
    extra = dict(getattr(extra, "data", extra)) | {"reward_extra_info": {}}
    fields = list_of_dict_to_tensordict([{"rm_scores": torch.zeros_like(scores), "extra_fields": extra}])
    tq.kv_batch_put(keys=[key], partition_id=VALIDATION, fields=fields)
