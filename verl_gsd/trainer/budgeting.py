"""Rollouts shared out in the trainer process: a group's size by what earlier visits say of its prompt.

verl's agent loops start as many sessions of a prompt as its column ``__rollout_n__`` says. A batch of B prompts has B n
rollouts whoever gets them, so that verl's mini-batches are filled as ever and no row is padded: taking the largest next
gain one rollout at a time ends there exactly, with nothing to rescale or round. ``algorithms/budget.py`` keeps a
prompt's part in the update what it is with equal groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from verl_gsd.groups import Group, Member
from verl_gsd.planning import allocate_from_counts, posterior_silent_rate
from verl_gsd.prompts import PromptKey, PromptStore
from verl_gsd.trainer.budget_section import SESSIONS, Settings
from verl_gsd.trainer.parts import Part


class Budgeting(Part):
    """Asks for the rollouts of every batch. Each batch is trained on in the step it was submitted in.

    Args:
        group_size: n, the mean number of rollouts.
        prompts: what earlier steps knew of the prompts, demonstrations excluded.
        step: the trainer step at hand.
    """

    def __init__(self, settings: Settings, group_size: int, prompts: PromptStore, step: Callable[[], int]) -> None:
        self._settings, self._group_size = settings, group_size
        self._prompts, self._step = prompts, step
        self._asked: dict[str, int] = {}  # by uid, of groups whose record is not written
        self._metrics: dict[str, float] = {}

    def plan(self, uids: Sequence[str], keys: Sequence[PromptKey], batch: TensorDict) -> None:
        """Set each prompt's number of rollouts.

        Raises:
            ValueError: somebody else did.
        """
        if SESSIONS in set(batch.keys()):  # a TensorDict takes ``in`` for something else
            raise ValueError(
                f"the training data has a column {SESSIONS}, and algorithm.gsd.budget sets one. Write budget=uniform, "
                "or drop the column."
            )
        correct, total = self._prompts.recent(keys, self._step())
        sizes = rollouts_of(correct, total, self._group_size, self._settings)
        batch[SESSIONS] = torch.from_numpy(sizes)
        self._asked |= dict(zip(uids, sizes.tolist(), strict=True))
        self._metrics = self._figures(correct, total, sizes)

    def known(self, rows: Sequence[Member | None]) -> dict[str, torch.Tensor]:
        """``rollouts``, asked for of each row's prompt; 0 in rows of no group."""
        return {"rollouts": torch.tensor([0 if row is None else self._asked[row.group.uid] for row in rows])}

    def leave(self, group: Group) -> Group:
        return replace(group, asked=self._asked[group.uid])

    def record(self, group: Group) -> dict[str, float | None]:
        return {"asked": self._asked.pop(group.uid)}

    def remember(
        self, keys: Sequence[str], tags: Sequence[Mapping[str, Any]], key_of: Mapping[str, PromptKey], step: int
    ) -> dict[str, float]:
        """``budget/``: ``rollouts/{p10,p50,p90}`` asked for of a prompt; ``share/{floor,cap}``, of prompts that got the
        least and the most allowed; ``share/known``, of prompts visited before; ``mixed/expected``, the share of groups
        that the posterior expects to be mixed, and ``mixed/expected_if_equal``, with n rollouts each."""
        return {f"budget/{name}": value for name, value in self._metrics.items()}

    def _figures(self, correct: np.ndarray, total: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
        settings = self._settings
        figures = {f"rollouts/p{percent}": float(np.percentile(sizes, percent)) for percent in (10, 50, 90)}
        figures["share/floor"] = float((sizes == settings.minimum).mean())
        if settings.maximum is not None:
            figures["share/cap"] = float((sizes == settings.maximum).mean())
        figures["share/known"] = float((total > 0).mean())
        for name, group_size in (("expected", sizes), ("expected_if_equal", self._group_size)):
            silent = posterior_silent_rate(correct, total, group_size, settings.prior)
            figures[f"mixed/{name}"] = float(1 - np.mean(silent))
        return figures


def rollouts_of(correct: np.ndarray, total: np.ndarray, group_size: int, settings: Settings) -> np.ndarray:
    """(B,) int64, group sizes of mean ``group_size``, from what ``PromptStore.recent`` gives of B prompts."""
    return allocate_from_counts(
        correct,
        total,
        group_size * len(total),
        objective=settings.objective,
        prior=settings.prior,
        minimum=settings.minimum,
        maximum=settings.maximum,
    )
