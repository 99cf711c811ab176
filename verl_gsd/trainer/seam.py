"""The seam: every event of verl's trainer and replay buffer, told to all extensions of a run.

It runs a hook over all extensions in their stated order and names the extension and the hook in any error. It owns the
memory of prompts, and it knows which prompt each group in the buffer is a visit to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_gsd.extension import (
    ROLLOUTS,
    Batch,
    Exclusive,
    Extension,
    RecordValue,
    RowStore,
    UnplacedRows,
    Update,
    Visits,
    call_hook,
    merged,
    overrides,
    run_hook,
)
from verl_gsd.groups import Group, Member
from verl_gsd.prompts import PromptKey, PromptStore
from verl_gsd.records import Fate
from verl_gsd.trainer.rows import DEMONSTRATED_BY, session_of, uid_of


class Seam:
    """What a trainer of ours calls.

    Args:
        extensions: by name, in their order.
        prompts: what is known of prompts.
        rows: of the groups in the buffer.
        group_size: rollouts a prompt, where the data has no number of its own.

    Attributes:
        left: the groups that have left the buffer in the step at hand, each with its fate.
    """

    def __init__(
        self, extensions: Mapping[str, Extension], prompts: PromptStore, rows: RowStore, group_size: int
    ) -> None:
        self.extensions, self.prompts, self.rows = extensions, prompts, rows
        self.left: list[tuple[Group, Fate]] = []
        self._group_size = group_size
        self._prompt_of: dict[str, PromptKey] = {}  # by uid, of every group that has not left the buffer
        self._training: dict[str, Group] = {}  # by uid, the groups of the batch at hand

    @property
    def waiting(self) -> int:
        """Groups that are being generated or are waiting in the buffer."""
        return len(self._prompt_of)

    def prompt_of(self, uid: str) -> PromptKey:
        """The prompt that ``uid`` is a visit to."""
        return self._prompt_of[uid]

    def owner(self, hook: Exclusive) -> tuple[str, Extension] | None:
        """The extension that has a hook which one alone may have."""
        return next(((name, of) for name, of in self.extensions.items() if overrides(of, hook)), None)

    # Before generation.

    def before_rollout(
        self, prompts: Mapping[str, PromptKey], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray]:
        """Visits (uid -> the prompt) are about to be generated. Returns columns to set, int64, one entry a visit.

        Args:
            columns: of the data set, one entry a visit.
        """
        self._prompt_of |= prompts
        visits = self._visits(prompts, columns)
        self._run("before_rollout", visits)
        return visits.notes if visits.requested is None else {ROLLOUTS: visits.requested, **visits.notes}

    def restore_in_flight(self, prompts: Mapping[str, PromptKey], columns: Mapping[str, Sequence[Any]]) -> None:
        """These visits were submitted before a restart, with these columns."""
        self._prompt_of |= prompts
        self._run("restore_in_flight", self._visits(prompts, columns))

    def _visits(self, prompts: Mapping[str, PromptKey], columns: Mapping[str, Sequence[Any]]) -> Visits:
        return Visits(list(prompts), list(prompts.values()), columns, self._group_size)

    # While groups complete.

    def add_rows(self, uids: Sequence[str]) -> None:
        self._run("add_rows", uids)

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        self._run("on_groups_complete", groups)

    def poll(self, now: float) -> None:
        self._run("poll", now)

    def is_ready(self, group: Group) -> bool:
        """Whether a whole group may be used; one that is not is held back, however full the buffer."""
        return all(ready for _, ready in run_hook(self.extensions, "is_ready", group))

    def on_group_left(self, group: Group, fate: Fate) -> None:
        del self._prompt_of[group.uid]
        for name, extension in self.extensions.items():
            if overrides(extension, "on_group_left"):
                group = call_hook(name, extension, "on_group_left", group, fate)
        self.left.append((group, fate))
        if fate == "trained":
            self._training[group.uid] = group

    # The update.

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        """Places of the rows of an update, and metrics; a run has this if an extension owns placement."""
        owner = self.owner("place")
        assert owner is not None
        return call_hook(*owner, "place", rows)

    def stage_inputs(self, batch: Any) -> dict[str, Any]:
        """Columns for the chain, of ``batch``, a ``KVBatchMeta``."""
        left = [group for group, _ in self.left]
        return merged(run_hook(self.extensions, "stage_inputs", self._members(batch), left))

    def loss_columns(self, batch: Any, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        return merged(run_hook(self.extensions, "loss_columns", self._batch(batch), advantages))

    def worker_flags(self, update: Update) -> dict[str, Any]:
        return merged(run_hook(self.extensions, "worker_flags", update))

    def _batch(self, batch: Any) -> Batch:
        prompts = {uid: (group.data_source, group.index) for uid, group in self._training.items()}
        return Batch(batch.keys, batch.tags, prompts)

    def _members(self, batch: Any) -> list[Member | None]:
        """What each row of ``batch`` is; None: verl's padding."""
        places = {
            uid: {session_of(key): place for place, key in enumerate(group.keys)}
            for uid, group in self._training.items()
        }
        rows: list[Member | None] = []
        for key, tag in zip(batch.keys, batch.tags, strict=True):
            group = self._training.get(uid_of(key))
            place = None if group is None or DEMONSTRATED_BY in tag else places[group.uid][session_of(key)]
            rows.append(None if group is None else Member(group, place))
        return rows

    # The end of a step.

    def observe_trained(self, batch: Any) -> None:
        """The step has trained on ``batch``, a ``KVBatchMeta``, whose rows are in the queue yet."""
        self._run("observe_trained", self._batch(batch))

    def record(self, group: Group) -> dict[str, RecordValue]:
        """Further columns of the record of ``group``."""
        return merged(run_hook(self.extensions, "record", group))

    def end_step(self) -> dict[str, float]:
        """Let saved state change; returns metrics. The groups that left in the step are forgotten."""
        metrics = merged(run_hook(self.extensions, "end_step", [group for group, _ in self.left]))
        self.left, self._training = [], {}
        return metrics

    def seconds(self) -> dict[str, float]:
        return merged(run_hook(self.extensions, "seconds"))

    def _run(self, hook: str, *arguments: Any) -> None:
        for _ in run_hook(self.extensions, hook, *arguments):
            pass
