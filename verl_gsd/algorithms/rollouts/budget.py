"""Rollouts shared out in the trainer process: a group's size by what earlier visits say of its prompt.

verl's agent loops start as many sessions of a prompt as its column ``__rollout_n__`` says. A batch of B prompts has B n
rollouts whoever gets them, so that verl's mini-batches are filled as ever and no row is padded: taking the largest next
gain one rollout at a time ends there exactly, with nothing to rescale or round. ``group_size_weights.py`` keeps a
prompt's part in the update what it is with equal groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import equal_prompts
from verl_gsd.chain import Rows
from verl_gsd.extension import ROLLOUTS, Extension, Services, Visits
from verl_gsd.groups import Group, Member
from verl_gsd.planning import allocate_from_counts, posterior_silent_rate
from verl_gsd.records import Fate


class Budget(Extension):
    """Requests the rollouts of every batch. Each batch is trained on in the step it was submitted in.

    Args:
        settings: of ``algorithm.gsd.budget``, or that section.
    """

    def __init__(self, settings: BudgetSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = BudgetSettings.of(settings)
        super().__init__(self._settings, services)
        self._asked: dict[str, int] = {}  # by uid, of groups whose record is not written
        self._metrics: dict[str, float] = {}
        if services is not None:
            services.prompts.prior, services.prompts.half_life = self._settings.prior, self._settings.half_life
            self._group_size = int(services.config.actor_rollout_ref.rollout.n)

    def before_rollout(self, visits: Visits) -> None:
        """Request each prompt's number of rollouts.

        Raises:
            ValueError: the data has a number of its own.
        """
        if visits.has_own_rollouts:
            raise ValueError(
                f"the training data has a column {ROLLOUTS}, and algorithm.gsd.budget sets one. Set budget=uniform, "
                "or drop the column."
            )
        correct, total = self.services.prompts.recent(visits.keys, self.services.step)
        sizes = rollouts_of(correct, total, self._group_size, self._settings)
        visits.request(sizes)
        self._asked |= dict(zip(visits.uids, sizes.tolist(), strict=True))
        self._metrics = self._figures(correct, total, sizes)

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        return replace(group, rollouts_requested=self._asked[group.uid])

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, torch.Tensor]:
        """``rollouts``, asked for of each row's prompt; 0 in rows of no group."""
        return {"rollouts": torch.tensor([0 if row is None else self._asked[row.group.uid] for row in members])}

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        return equal_prompts(rows.column("rollouts", "budget"), rows.stats)

    def record(self, group: Group) -> dict[str, float | None]:
        return {"asked": self._asked[group.uid]}

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """``budget/``: ``rollouts/{p10,p50,p90}`` asked for of a prompt; ``share/{floor,cap}``, of prompts that got the
        least and the most allowed; ``share/known``, of prompts visited before; ``mixed/expected``, the share of groups
        that the posterior expects to be mixed, and ``mixed/expected_if_equal``, with n rollouts each."""
        for group in left:
            del self._asked[group.uid]
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


def rollouts_of(correct: np.ndarray, total: np.ndarray, group_size: int, settings: BudgetSettings) -> np.ndarray:
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
