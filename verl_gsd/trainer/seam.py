"""The seam: passes every event of verl's trainer and replay buffer to all extensions of a run.

It calls each hook of all extensions in their stated order, and names the extension and the hook in any error. It owns
the memory of prompts. It knows the prompt of each group in the buffer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.chain import SOURCE
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
from verl_gsd.groups import Group, Member, group_numbers
from verl_gsd.prompts import PromptKey, PromptStore
from verl_gsd.records import Fate
from verl_gsd.trainer.rows import DEMONSTRATED_BY, session_of, uid_of


class Seam:
    """The hooks of all extensions, as our trainers call them.

    Args:
        extensions: by name, in order.
        prompts: the memory of prompts.
        rows: the rows of the groups in the buffer.
        group_size: rollouts per prompt, if the data does not say.

    Attributes:
        left: the groups that have left the buffer in the current step, each with its fate.
        sizes_in_data: whether the data sets the number of rollouts per prompt.
        mass: uid -> the gradient mass of each group in the current step's batches; see ``on_advantages``.
    """

    def __init__(
        self, extensions: Mapping[str, Extension], prompts: PromptStore, rows: RowStore, group_size: int
    ) -> None:
        self.extensions, self.prompts, self.rows = extensions, prompts, rows
        self.left: list[tuple[Group, Fate]] = []
        self.sizes_in_data = False
        self.mass: dict[str, float] = {}
        self._group_size = group_size
        self._prompt_of: dict[str, PromptKey] = {}  # by uid, for every group that has not left the buffer
        self._training: dict[str, Group] = {}  # by uid, the groups of the current step's batches
        self._requested: dict[str, int] = {}  # by uid, rollouts of these groups and of those in the buffer

    @property
    def waiting(self) -> int:
        """The number of groups that are being generated or wait in the buffer."""
        return len(self._prompt_of)

    def prompt_of(self, uid: str) -> PromptKey:
        """The prompt of the visit ``uid``."""
        return self._prompt_of[uid]

    def owner(self, hook: Exclusive) -> tuple[str, Extension] | None:
        """(name, extension) of the extension with this hook, which at most one may have; None if there is none."""
        owners = ((name, extension) for name, extension in self.extensions.items() if overrides(extension, hook))
        return next(owners, None)

    # Before generation.

    def before_rollout(
        self, prompts: Mapping[str, PromptKey], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray]:
        """Rollouts of these visits (uid -> prompt) are about to be generated.

        Args:
            columns: columns of the data set, one entry per visit.

        Returns:
            Columns to set, int64, one entry per visit.
        """
        self._prompt_of |= prompts
        visits = self._visits(prompts, columns)
        self.sizes_in_data |= visits.has_own_rollouts
        self._run("before_rollout", visits)
        self._requested |= _rollouts(visits)
        return visits.notes if visits.requested is None else {ROLLOUTS: visits.requested, **visits.notes}

    def restore_in_flight(self, prompts: Mapping[str, PromptKey], columns: Mapping[str, Sequence[Any]]) -> None:
        """These visits were submitted before a restart. ``columns`` are those from then."""
        self._prompt_of |= prompts
        visits = self._visits(prompts, columns)
        self._requested |= _rollouts(visits)
        self._run("restore_in_flight", visits)

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
        """Whether a complete group may leave the buffer. The buffer holds back a group that is not ready."""
        return all(is_ready for _, is_ready in run_hook(self.extensions, "is_ready", group))

    def on_group_left(self, group: Group, fate: Fate) -> None:
        del self._prompt_of[group.uid]
        for name, extension in self.extensions.items():
            if overrides(extension, "on_group_left"):
                group = call_hook(name, extension, "on_group_left", group, fate)
        self.left.append((group, fate))
        if fate == "trained":
            self._training[group.uid] = group
        else:
            del self._requested[group.uid]

    # The update.

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        """Places of the rows of an update, and metrics. Only for runs with an extension that places rows."""
        owner = self.owner("place")
        assert owner is not None
        own = {session_of(key) for group in self._training.values() for key in group.keys}
        # Demonstrations that replace no response are in no group.
        added = Counter(session.rsplit("_", 1)[0] for session in {session_of(key) for key in rows.keys} - own)
        sessions = {uid: self._requested[uid] + group.earlier + added[uid] for uid, group in self._training.items()}
        return call_hook(*owner, "place", replace(rows, sessions=sessions))

    def stage_inputs(self, batch: Any) -> dict[str, Any]:
        """Columns of ``batch``, a ``KVBatchMeta``, for the chain: those of the extensions, and ``chain.SOURCE``."""
        left, members = [group for group, _ in self.left], self._members(batch)
        source = group_numbers(["" if row is None else row.group.data_source for row in members], len(members))
        return merged([("verl-gsd", {SOURCE: source}), *run_hook(self.extensions, "stage_inputs", members, left)])

    def on_advantages(self, batch: Any, advantages: torch.Tensor | None) -> None:
        """Note the gradient mass of the groups in ``batch``: half the sum of |A| over the responses of a group.

        For rewards of 0 and 1, the identity of arXiv 2607.00152 makes the group's part in the update proportional to
        sum_j A_j over its right responses. This is the mass, because the advantages of a group sum to 0. Unlike the
        gain it includes the number of rows, weights of extensions, masks and demonstrations.

        Args:
            batch: a ``KVBatchMeta`` of N rows.
            advantages: (N,), equal for all rows of a session; None if the estimator is not the dial.
        """
        if advantages is None:
            return
        by_session = dict(zip(map(session_of, batch.keys), advantages.abs().tolist(), strict=True))
        for session, size in by_session.items():
            uid = session.rsplit("_", 1)[0]
            if uid in self._training:
                self.mass[uid] = self.mass.get(uid, 0.0) + size / 2

    def loss_columns(self, batch: Any, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        return merged(run_hook(self.extensions, "loss_columns", self._batch(batch), advantages))

    def worker_flags(self, update: Update) -> dict[str, Any]:
        return merged(run_hook(self.extensions, "worker_flags", update))

    def _batch(self, batch: Any) -> Batch:
        prompts = {uid: (group.data_source, group.index) for uid, group in self._training.items()}
        return Batch(batch.keys, batch.tags, prompts)

    def _members(self, batch: Any) -> list[Member | None]:
        """The group and response of each row of ``batch``; None for verl's padding."""
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
        """The step trained on ``batch``, a ``KVBatchMeta``. Its rows are still in the queue."""
        self._run("observe_trained", self._batch(batch))

    def record(self, group: Group) -> dict[str, RecordValue]:
        """Record columns of ``group`` from the extensions."""
        return merged(run_hook(self.extensions, "record", group))

    def end_step(self) -> dict[str, float]:
        """End the step: extensions update their saved state and return metrics. Then ``left`` is emptied."""
        metrics = merged(run_hook(self.extensions, "end_step", [group for group, _ in self.left]))
        for uid in self._training:
            del self._requested[uid]
        self.left, self._training, self.mass = [], {}, {}
        return metrics

    def seconds(self) -> dict[str, float]:
        return merged(run_hook(self.extensions, "seconds"))

    def _run(self, hook: str, *arguments: Any) -> None:
        for _ in run_hook(self.extensions, hook, *arguments):
            pass


def _rollouts(visits: Visits) -> dict[str, int]:
    """uid -> the number of rollouts of each visit."""
    rollouts = visits.rollouts if visits.requested is None else visits.requested
    return dict(zip(visits.uids, rollouts.tolist(), strict=True))
