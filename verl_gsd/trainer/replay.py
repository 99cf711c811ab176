"""Where groups become whole: verl's replay buffer, watched.

Agent loops and reward workers see one response at a time. Only the replay buffer knows when the last session of a
prompt has ended, and it alone evicts. ``watch`` puts a class of ours before the buffer's own, so that every trainer
mode and sampler of verl stays as it is, and a listener is told of each group twice: when it is whole, and when it
leaves.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_gsd.groups import Group
from verl_gsd.prompts import PromptKey
from verl_gsd.records import Fate
from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.keys import (
    DEMONSTRATED_BY,
    GENERATED_IN,
    PARTITION,
    REPLACED,
    as_number,
    output_number,
    session_number,
    session_of,
    uid_of,
)


class GroupListener(Protocol):
    """Who is told. All calls come from the trainer's own thread."""

    def key_of(self, uid: str) -> PromptKey:
        """The prompt that ``uid`` is a visit to."""

    def complete(self, uids: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
        """The sessions of these groups have ended; put into the queue what is still to be theirs.

        Args:
            rows: key -> tag of all rows of the partition.

        Returns:
            key -> tag of the rows that were put.
        """

    def amend(self, groups: Sequence[Group], rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, dict | None]:
        """These groups are whole; replace what is to be replaced of their rows in the queue.

        Args:
            rows: key -> tag of all rows of the partition.

        Returns:
            key -> tag of the rows that were put, key -> None of those that were removed.
        """

    def on_finished(self, group: Group) -> None:
        """All sessions of ``group`` have ended; called once, and again if the run is resumed while it waits."""

    def is_ready(self, group: Group) -> bool:
        """Whether ``group`` may be sampled or evicted; asked at every look until it is."""

    def on_left(self, group: Group, fate: Fate) -> None:
        """``group`` left the buffer; called once. What learns from groups learns here."""


class _Watched(ReplayBuffer):
    """Stands before the class of a built buffer; see ``watch``."""

    _listener: GroupListener
    _whole: dict[str, Group]
    _evicting: dict[str, Fate]
    #: Seconds spent reading rows since the trainer last took them.
    read_seconds: float

    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        finished, failed = self.finished_keys[PARTITION], self.failure_keys[PARTITION]
        if gone := self._whole.keys() - finished - failed:
            raise RuntimeError(
                f"{type(self).__name__} took {len(gone)} groups out of the queue past verl's own methods, so that they "
                "cannot be followed. A custom sampler selects in _select_prompt_uids and leaves the rest to verl."
            )
        new = (finished | failed) - self._whole.keys()
        if new:
            start = time.perf_counter()
            rows = self.partitions[PARTITION]
            rows.update(self._listener.complete(sorted(new), rows))
            groups = _read_groups(sorted(new), rows, self._listener)
            for group in groups:
                self._whole[group.uid] = group
                self._listener.on_finished(group)
            for key, tag in self._listener.amend(groups, rows).items():
                if tag is None:
                    del rows[key]
                else:
                    rows[key] = tag
            self.read_seconds += time.perf_counter() - start
        # A group that is not ready counts as running: dynamic sampling waits for what runs before it ends a step.
        for uid in finished | failed:
            if not self._listener.is_ready(self._whole[uid]):
                finished.discard(uid)
                failed.discard(uid)
                self.running_keys[PARTITION].add(uid)

    def _evict_terminal_groups(self, global_steps, partition_id, eviction_reasons):
        stale, filtered, failed, _ = eviction_reasons
        # The reasons overlap; the later here the stronger.
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
                # Cleared, but not by an eviction: what was left when the batch was full.
                self._leave(uid, self._evicting.get(uid, "surplus"))

    def _materialize_batch(self, partition_id, selected_prompt_uids, partition_snapshot):
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        if partition_id == PARTITION:
            with_rows = {uid_of(key) for key in batch.keys}
            for uid in selected_prompt_uids:
                self._leave(uid, "trained" if uid in with_rows else "failed")
        return batch

    def _leave(self, uid: str, fate: Fate) -> None:
        group = self._whole.pop(uid, None)
        if group is None:  # a custom sampler dropped it while it ran
            group = Group(uid, *self._listener.key_of(uid), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
        self._listener.on_left(group, fate)


def watch(buffer: Any, listener: GroupListener) -> None:
    """Tell ``listener`` of every group of ``buffer`` from now on.

    Raises:
        ConfigError: the buffer is a custom sampler that does not build on verl's.
    """
    if not isinstance(buffer, ReplayBuffer):
        raise ConfigError(
            f"trainer.v1.sampler.custom_sampler.name={type(buffer).__name__}: groups are watched in verl's replay "
            "buffer. Write a subclass of verl.trainer.ppo.v1.replay_buffer.ReplayBuffer."
        )
    kind = type(buffer)
    buffer.__class__ = type(f"Watched{kind.__name__}", (_Watched, kind), {})
    buffer._listener = listener
    buffer._whole, buffer._evicting, buffer.read_seconds = {}, {}, 0.0


def _read_groups(uids: list[str], partition: dict[str, dict], listener: GroupListener) -> list[Group]:
    """One read of the queue for all ``uids``. A session's last output speaks for the session; all its tokens count.

    A response of an earlier visit has a reward, and neither an accuracy nor tokens: it was counted when it was made. A
    demonstration has none of them; what it replaced, its tag says.
    """
    wanted = set(uids)
    last: dict[str, dict[int, str]] = defaultdict(dict)  # uid -> session -> row key
    tokens: dict[str, int] = defaultdict(int)  # by uid_session
    demonstrations: dict[str, int] = defaultdict(int)
    for key, tag in partition.items():
        uid, session = uid_of(key), session_number(key)
        if uid not in wanted:
            continue
        if DEMONSTRATED_BY in tag:
            demonstrations[uid] += 1
            if REPLACED not in tag:
                continue
        other = last[uid].get(session)
        if other is None or output_number(other) < output_number(key):
            last[uid][session] = key
        tokens[session_of(key)] += 0 if GENERATED_IN in tag or DEMONSTRATED_BY in tag else tag["response_len"]
    spoken = [key for uid in uids for key in last[uid].values()]
    rewards: dict[str, float] = {}
    accuracies: dict[str, float] = {}
    unverified: dict[str, float] = {}  # what the verifier says of it, if anything
    for key in spoken:
        if REPLACED in partition[key]:
            rewards[key], accuracies[key], tokens[session_of(key)] = partition[key][REPLACED]
    read = [key for key in spoken if key not in rewards]
    if read:
        data = tq.kv_batch_get(keys=read, partition_id=PARTITION, select_fields=["rm_scores", "extra_fields"])
        for key, scores, extra in zip(read, list(data["rm_scores"]), list(data["extra_fields"]), strict=True):
            rewards[key] = float(scores.double().sum())
            extra = getattr(extra, "data", extra)
            said = extra.get("reward_extra_info") or {}
            if GENERATED_IN in partition[key]:
                accuracies[key] = math.nan
            else:
                accuracies[key] = as_number(said.get("acc"))
                unverified[key] = as_number(said.get("unverified"))
    groups = []
    for uid in uids:
        rows = list(last[uid].values())
        told = [unverified[key] for key in rows if not math.isnan(unverified.get(key, math.nan))]
        source, index = listener.key_of(uid)
        for key in rows:
            if not math.isfinite(rewards[key]):
                raise ValueError(
                    f"the reward of a response to data_source={source}, index={index} is {rewards[key]}: a reward "
                    "function must return a finite number"
                )
        groups.append(
            Group(
                uid,
                source,
                index,
                rewards=np.array([rewards[key] for key in rows], dtype=np.float64),
                accuracies=np.array([accuracies[key] for key in rows], dtype=np.float64),
                tokens=np.array([tokens[session_of(key)] for key in rows], dtype=np.int64),
                keys=tuple(rows),
                demonstrations=demonstrations[uid],
                unverified=sum(value > 0 for value in told) if told else None,
            )
        )
    return groups
