"""The trainer extension that divides a batch's rollouts among its prompts, by what earlier visits tell about them.

verl's agent loops start as many sessions of a prompt as its column ``__rollout_n__`` says. A batch of B prompts always
has B n rollouts in all. verl's mini-batches are therefore filled as usual, and no row is padded. The allocation gives
one rollout at a time to the prompt with the largest gain. It ends at exactly B n, so nothing is rescaled or rounded.
``group_size_weights.py`` gives each prompt the same expected part in the update as with equal groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.rollouts.budget_settings import BudgetSettings
from verl_gsd.algorithms.rollouts.group_size_weights import (
    demonstration_ratio,
    gain_ratios,
    group_size_weights,
    term_variance,
)
from verl_gsd.algorithms.rollouts.verdicts import require_accuracies
from verl_gsd.chain import Rows
from verl_gsd.dial_settings import dial_settings
from verl_gsd.extension import ROLLOUTS, Extension, Services, Visits
from verl_gsd.groups import Group, Member
from verl_gsd.planning import allocate_from_counts, posterior_silent_rate
from verl_gsd.records import Fate


class Budget(Extension):
    """Requests a number of rollouts for each prompt. Each batch is trained on in the step in which it was submitted.

    Args:
        settings: settings or config section of ``algorithm.gsd.budget``.
    """

    def __init__(self, settings: BudgetSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self._settings = BudgetSettings.of(settings)
        super().__init__(self._settings, services)
        self._requested: dict[str, int] = {}  # uid -> rollouts, for groups whose record is not written yet
        self._counts: dict[str, np.ndarray] = {}  # uid -> (correct, total, partial) of earlier visits, the same groups
        self._metrics: dict[str, float] = {}
        if services is not None:
            services.prompts.prior, services.prompts.half_life = self._settings.prior, self._settings.half_life
            self._group_size = int(services.config.actor_rollout_ref.rollout.n)
            self._dial = dial_settings(services.config.algorithm.gsd)

    def before_rollout(self, visits: Visits) -> None:
        """Request each prompt's number of rollouts.

        Raises:
            ValueError: the training data has its own numbers of rollouts.
        """
        if visits.has_own_rollouts:
            raise ValueError(
                f"the training data has a column {ROLLOUTS}, but algorithm.gsd.budget sets this column itself. Set "
                "budget=uniform, or remove the column from the data."
            )
        prompts, step = self.services.prompts, self.services.step
        (correct, total), partial = prompts.recent(visits.keys, step), prompts.recent_partial(visits.keys, step)
        sizes = allocate_rollouts(correct, total, self._group_size, self._settings, partial=partial)
        visits.request(sizes)
        self._requested |= dict(zip(visits.uids, sizes.tolist(), strict=True))
        self._counts |= dict(zip(visits.uids, np.stack([correct, total, partial], axis=1), strict=True))
        self._metrics = self._figures(correct, total, partial, sizes)

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        return replace(group, rollouts_requested=self._requested[group.uid])

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, torch.Tensor]:
        """Two columns, (N,) each.

        - ``rollouts``: the number requested for each row's prompt; 0 in rows of no group
        - ``gain_ratio``: its group's ``demonstration_ratio`` if it has demonstrations, else its prompt's
          ``gain_ratios``; 1 in rows of no group

        Raises:
            ValueError: a response has no accuracy in [0, 1], or its data source is unrated, or it has partial credit
                under the objective ``mixed``.
        """
        require_accuracies(left, self.services.prompts.unrated, "algorithm.gsd.budget")
        if self._settings.objective == "mixed":
            _reject_partial_credit(left)
        uids = [None if row is None else row.group.uid for row in members]
        ratios = self._ratios({row.group.uid: row.group for row in members if row is not None}, left)
        return {
            "rollouts": torch.tensor([0 if uid is None else self._requested[uid] for uid in uids]),
            "gain_ratio": torch.tensor([1.0 if uid is None else ratios[uid] for uid in uids], dtype=torch.float64),
        }

    def _ratios(self, groups: Mapping[str, Group], left: Sequence[Group]) -> dict[str, float]:
        """uid -> the ratio of ``stage_inputs``.

        Args:
            groups: uid -> group, of the rows to train on.
            left: the groups from which the terms of rewards are known.
        """
        of_source: dict[str, list[Group]] = {}
        for group in left:
            of_source.setdefault(group.data_source, []).append(group)
        terms = {source: term_variance(of) for source, of in of_source.items()}
        correct, total, partial = np.array([self._counts[uid] for uid in groups]).reshape(-1, 3).T
        ratios = gain_ratios(
            correct,
            total,
            np.array([self._requested[uid] for uid in groups], dtype=np.int64),
            self._group_size,
            prior=self._settings.prior,
            partial=partial,
            terms=np.array([terms[group.data_source] for group in groups.values()]),
            **self._dial,
        )
        return dict(zip(groups, ratios.tolist(), strict=True)) | {
            uid: demonstration_ratio(group.demonstrations, self._requested[uid], self._group_size, **self._dial)
            for uid, group in groups.items()
            if group.demonstrations
        }

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        rollouts, ratio = rows.column("rollouts", "budget"), rows.column("gain_ratio", "budget")
        return group_size_weights(rollouts, rows.stats) * ratio

    def record(self, group: Group) -> dict[str, float | None]:
        return {"asked": self._requested[group.uid]}

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Metrics named ``budget/...``.

        - ``rollouts/{p10,p50,p90}``: percentiles of the numbers of rollouts requested per prompt
        - ``share/floor``, ``share/cap``: shares of the prompts that got the minimum and the maximum
        - ``share/known``: share of the prompts that were visited before
        - ``mixed/expected``: share of the groups that the posterior expects to be mixed; absent if a prompt of the step
          has partial credit, because two such verdicts almost always differ
        - ``mixed/expected_if_equal``: the same with n rollouts for every prompt
        """
        for group in left:
            del self._requested[group.uid], self._counts[group.uid]
        return {f"budget/{name}": value for name, value in self._metrics.items()}

    def _figures(
        self, correct: np.ndarray, total: np.ndarray, partial: np.ndarray, sizes: np.ndarray
    ) -> dict[str, float]:
        settings = self._settings
        figures = {f"rollouts/p{percent}": float(np.percentile(sizes, percent)) for percent in (10, 50, 90)}
        figures["share/floor"] = float((sizes == settings.minimum).mean())
        if settings.maximum is not None:
            figures["share/cap"] = float((sizes == settings.maximum).mean())
        figures["share/known"] = float((total > 0).mean())
        if partial.any():
            return figures
        for name, group_size in (("expected", sizes), ("expected_if_equal", self._group_size)):
            silent = posterior_silent_rate(correct, total, group_size, settings.prior)
            figures[f"mixed/{name}"] = float(1 - np.mean(silent))
        return figures


def _reject_partial_credit(groups: Sequence[Group]) -> None:
    """Raise a ValueError that names the first group with an accuracy between 0 and 1, but neither of them."""
    for group in groups:
        partial = group.accuracies[(group.accuracies > 0) & (group.accuracies < 1)]
        if len(partial):
            raise ValueError(
                f"algorithm.gsd.budget.objective=mixed needs accuracies of 0 or 1. A response to data_source="
                f"{group.data_source}, index={group.index} has acc={partial[0]}. With partial credit, nearly all "
                "groups are mixed. Set algorithm.gsd.budget.objective=expected_std."
            )


def allocate_rollouts(
    correct: np.ndarray,
    total: np.ndarray,
    group_size: int,
    settings: BudgetSettings,
    *,
    partial: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Group sizes with mean ``group_size``, (B,) int64.

    Args:
        correct, total, partial: (B,), the counts of ``PromptStore.recent`` and ``PromptStore.recent_partial``.
    """
    return allocate_from_counts(
        correct,
        total,
        group_size * len(total),
        objective=settings.objective,
        prior=settings.prior,
        partial=partial,
        minimum=settings.minimum,
        maximum=settings.maximum,
    )
