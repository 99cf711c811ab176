"""HA-DW in a trainer: its weights in the chain, and what it keeps from step to step.

The equations are in ``factor.py``.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.hadw.anchors import Anchor, AnchorBank, FixedAnchor, HardAnchor, SoftAnchor
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.chain import Rows
from verl_gsd.extension import Extension, Services
from verl_gsd.groups import Group, Member
from verl_gsd.records import Fate

logger = logging.getLogger(__name__)

#: The anchors of ``settings.PRESETS``.
_ANCHORS: dict[str, Callable[[], Anchor]] = {
    "hard": HardAnchor,
    "soft": SoftAnchor,
    "paper": lambda: SoftAnchor(floor=0, cap=1, seeds=2),
    "fixed": lambda: FixedAnchor(0.5),
    "off": lambda: FixedAnchor(0.5),
}


class Hadw(Extension):
    """HA-DW in a trainer: frozen anchors while a step lasts, every group that left observed once at its end.

    Args:
        settings: of ``algorithm.gsd.hadw``, or that section.
    """

    def __init__(self, settings: HadwSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self.settings = HadwSettings.of(settings)
        super().__init__(self.settings, services)
        self.bank = AnchorBank(self._anchor, self.settings.n_min)
        self._unmoved = 0
        self._innovations: list[float] = []
        self._weighing = self.bank  # what the step at hand is weighed with
        self._accuracies: dict[str, float] = {}  # by uid, sums over the responses of the groups of the step at hand
        self._metrics: dict[str, float] = {}

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        """``group`` with its accuracies in [0, 1], if the verifier is graded."""
        if self.settings.accuracy_range is None:
            return group
        low, high = self.settings.accuracy_range
        return replace(group, accuracies=(group.accuracies - low) / (high - low))

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, Any]:
        """``accuracy`` of each row's group and the ``anchor`` it meets, (N,) each; NaN where there is neither."""
        if self.settings.preset == "off":
            return {}
        if self.settings.include_current:
            self._weighing = copy.deepcopy(self.bank)
            self._weighing.observe(self._counts(left))
        bank = self._weighing
        groups = {row.group.uid: row.group for row in members if row is not None}
        anchor = {source: _or_nan(bank.value(source)) for source in {group.data_source for group in groups.values()}}
        known = {uid: (self._accuracy(group), anchor[group.data_source]) for uid, group in groups.items()}
        nobody = (math.nan, math.nan)
        columns = torch.tensor(
            [nobody if row is None else known[row.group.uid] for row in members], dtype=torch.float64
        )
        return {"accuracy": columns[:, 0], "anchor": columns[:, 1]}

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        """Phi, (N,); notes its figures for the step's metrics."""
        if self.settings.preset == "off":
            return torch.ones_like(advantages)
        accuracy, anchor = rows.column("accuracy", "hadw"), rows.column("anchor", "hadw")
        phi = hadw_factor(advantages, accuracy, anchor, lambda_scale=self.settings.lambda_scale)
        counts = (advantages != 0) & ~anchor.isnan()
        if counts.any():
            size, hard = advantages[counts].abs(), (accuracy < anchor)[counts]
            right, weighed = advantages[counts] > 0, advantages[counts] * phi[counts]
            self._metrics |= {
                "hadw/phi/mean": float(phi[counts].mean()),
                "hadw/phi/min": float(phi[counts].min()),
                "hadw/phi/max": float(phi[counts].max()),
                "hadw/weighed_over_unweighed": float(weighed.abs().mean() / size.mean()),
                "hadw/net_advantage": float(weighed.mean()),
                "hadw/cell/hard_right": float((hard & right).sum()),
                "hadw/cell/hard_wrong": float((hard & ~right).sum()),
                "hadw/cell/easy_right": float((~hard & right).sum()),
                "hadw/cell/easy_wrong": float((~hard & ~right).sum()),
            }
        return phi

    def record(self, group: Group) -> dict[str, float | None]:
        """What the records say of a group: the anchor it met, and the factors of right and of wrong responses."""
        anchor = self._weighing.value(group.data_source)
        if anchor is None or not len(group.rewards) or self.settings.preset == "off":
            return {}
        distance, scale = self._accuracy(group) - anchor, self.settings.lambda_scale
        return {
            "hadw_anchor": anchor,
            "hadw_factor_right": scale * math.exp(-distance),
            "hadw_factor_wrong": scale * math.exp(distance),
        }

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Observe every group that left in the step, whatever its fate: the anchor moves here and nowhere else."""
        self._observe(left)
        taken, self._metrics = self._metrics, {}
        return taken

    def _observe(self, left: Sequence[Group]) -> None:
        counts = self._counts(left)
        total = sum(total for *_, total in counts)
        if not total:
            return
        before, accuracy = self.bank.overall.value, math.fsum(correct for _, correct, _ in counts) / total
        self.bank.observe(counts)
        self._weighing = self.bank
        self._accuracies.clear()
        after = self.bank.overall.value
        self._unmoved = self._unmoved + 1 if before == after else 0
        self._metrics |= {
            "hadw/accuracy": accuracy,
            "hadw/anchor/after": _or_nan(after),
            "hadw/steps_unmoved": float(self._unmoved),
            "hadw/frac_degenerate": _share_unanimous(left),
        }
        if before is not None:
            self._metrics |= {"hadw/anchor/before": before, "hadw/innovation": accuracy - before}
        rate = getattr(self.bank.overall, "rate", None)
        if rate is not None:
            self._metrics["hadw/rate"] = rate
            self._innovations = [*self._innovations, self._metrics.get("hadw/innovation", 0.0)][-10:]
            if rate < 1e-3 and abs(np.mean(self._innovations)) > 0.05:
                logger.warning(
                    "algorithm.gsd.hadw.preset=%s: the anchor is frozen at %.3f while accuracy is %.3f. Set "
                    "preset=soft or hard.",
                    self.settings.preset,
                    after,
                    accuracy,
                )

    def fingerprint(self) -> dict[str, Any]:
        """The settings under which the anchors mean what they do, as plain JSON."""
        wide = self.settings.accuracy_range
        return {"preset": self.settings.preset, "n_min": self.settings.n_min, "accuracy_range": wide and list(wide)}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"bank": self.bank.state_dict(), "unmoved": self._unmoved, "innovations": list(self._innovations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        self.bank.load_state_dict(state["bank"])
        self._weighing = self.bank
        self._unmoved, self._innovations = state["unmoved"], list(state["innovations"])

    def _anchor(self) -> Anchor:
        preset = self.settings.preset
        return _ANCHORS[preset]() if isinstance(preset, str) else FixedAnchor(preset)

    def _counts(self, groups: Sequence[Group]) -> list[tuple[str, float, int]]:
        """(source, correct, total) of every group with responses. Under a budget, which gives more rollouts to prompts
        that disagree, each prompt counts as much: as the mean number asked for."""
        groups = [group for group in groups if len(group.rewards)]
        if self.settings.preset == "off" or not groups:
            return []
        asked = [group.rollouts_requested for group in groups if group.rollouts_requested is not None]
        if asked:
            size = round(math.fsum(asked) / len(asked))
            return [(group.data_source, size * self._accuracy(group), size) for group in groups]
        return [(group.data_source, self._sum(group), len(group.rewards)) for group in groups]

    def _accuracy(self, group: Group) -> float:
        """p_hat of a group with responses."""
        return self._sum(group) / len(group.rewards)

    def _sum(self, group: Group) -> float:
        """The sum of a group's accuracies.

        Raises:
            ValueError: a response has no accuracy in [0, 1].
        """
        if group.uid not in self._accuracies:
            verdicts = group.accuracies.tolist()
            for verdict in verdicts:
                if not 0 <= verdict <= 1:
                    scaled = " after accuracy_range" if self.settings.accuracy_range else ""
                    where = f"data_source={group.data_source}, index={group.index}"
                    raise ValueError(
                        f"algorithm.gsd.hadw reads acc, the verifier's verdict in [0, 1], and a response to {where} "
                        f"has {verdict}{scaled}. Return acc from the reward function; for a graded verifier set "
                        "algorithm.gsd.hadw.accuracy_range=[low,high]"
                    )
            self._accuracies[group.uid] = math.fsum(verdicts)
        return self._accuracies[group.uid]


def _share_unanimous(groups: Sequence[Group]) -> float:
    spreads = [max(rewards) - min(rewards) for rewards in (group.rewards.tolist() for group in groups) if rewards]
    return spreads.count(0) / len(spreads)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
