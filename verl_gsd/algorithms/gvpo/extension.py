"""GVPO's trainer extension: keeps groups within mini-batches, provides loss columns, adds earlier responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verl_gsd.algorithms.gvpo.placement import Placement
from verl_gsd.algorithms.gvpo.replayed import History, history_size
from verl_gsd.algorithms.gvpo.settings import GvpoSettings
from verl_gsd.extension import Batch, Extension, Services, UnplacedRows, Update, Visits
from verl_gsd.groups import Group


class Gvpo(Extension):
    """GVPO's part in the trainer's process. ``worker.GvpoWorker`` is its part in the workers.

    Args:
        settings: settings or config section of ``algorithm.gsd.gvpo``.
    """

    def __init__(self, settings: GvpoSettings | Mapping[str, Any], services: Services | None = None) -> None:
        settings = GvpoSettings.of(settings)
        super().__init__(settings, services)
        self._history: History | None = None
        if services is None:
            return
        config = services.config
        self._placement = Placement(config)
        share, size = settings.history_fraction, int(config.actor_rollout_ref.rollout.n)
        if history_size(share, size):
            self._history = History(share, size, int(config.data.max_response_length), services)

    def before_rollout(self, visits: Visits) -> None:
        if self._history:
            self._history.before_rollout(visits)

    def restore_in_flight(self, visits: Visits) -> None:
        if self._history:
            self._history.restore_in_flight(visits)

    def add_rows(self, uids: Sequence[str]) -> None:
        if self._history:
            self._history.add_rows(uids)

    def place(self, rows: UnplacedRows) -> tuple[list[int], Mapping[str, float]]:
        return self._placement.place(rows)

    def loss_columns(self, batch: Batch, advantages: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return self._placement.columns(batch.keys, advantages)

    def worker_flags(self, update: Update) -> Mapping[str, Any]:
        return self._placement.flags(theta_is_old=update.is_first)

    def observe_trained(self, batch: Batch) -> None:
        if self._history:
            self._history.observe_trained(batch, self.services.step)

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        return self._history.end_step() if self._history else {}
