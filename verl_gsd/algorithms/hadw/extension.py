"""HA-DW's trainer extension: its weights in the chain, and the anchors that it keeps between steps.

The equations are in ``factor.py``.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.hadw.anchors import Anchor, AnchorBank, FixedAnchor, HardAnchor, SoftAnchor
from verl_gsd.algorithms.hadw.factor import hadw_factor
from verl_gsd.algorithms.hadw.settings import HadwSettings
from verl_gsd.chain import Rows
from verl_gsd.extension import Extension, Services, Visits
from verl_gsd.groups import Group, Member
from verl_gsd.records import Fate
from verl_gsd.scalars import without_rounding

logger = logging.getLogger(__name__)

#: The anchors of ``settings.PRESETS``.
_ANCHORS: dict[str, Callable[[], Anchor]] = {
    "soft": SoftAnchor,
    "hard": HardAnchor,
    "paper": lambda: SoftAnchor(floor=0, cap=1, seeds=2),
    "fixed": lambda: FixedAnchor(0.5),
    "off": lambda: FixedAnchor(0.5),
}


class Hadw(Extension):
    """HA-DW's trainer extension.

    The anchors do not change during a step. At its end, they observe every group that left the buffer, once.

    Args:
        settings: settings or config section of ``algorithm.gsd.hadw``.
    """

    def __init__(self, settings: HadwSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self.settings = HadwSettings.of(settings)
        super().__init__(self.settings, services)
        self.bank = AnchorBank(self._new_anchor, self.settings.n_min)
        self._steps_unmoved = 0
        self._innovations: list[float] = []
        self._step_bank = self.bank  # the anchors that weigh the current step
        self._accuracy_sums: dict[str, float] = {}  # uid -> sum of accuracies, for groups of the current step
        self._metrics: dict[str, float] = {}
        #: advantages, factors and whether the prompt is hard, of the weighed responses of each update of the step
        self._weighed: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._responses: Counter[str] = Counter()  # by data source, while one range is for all of them
        self._sources_outside: set[str] = set()
        self._has_warned_of_range = False
        self._sizes_in_data = False

    def before_rollout(self, visits: Visits) -> None:
        self._sizes_in_data |= visits.has_own_rollouts

    def restore_in_flight(self, visits: Visits) -> None:
        self._sizes_in_data |= visits.has_own_rollouts

    def on_groups_complete(self, groups: Sequence[Group]) -> None:
        """Check the accuracies of the first groups at once, and not only when a batch is full.

        Raises:
            ValueError: a response has no accuracy in [0, 1], after rescaling.
        """
        if self.settings.preset != "off":
            for group in groups:
                self._check_accuracies(self._rescaled(group))

    def on_group_left(self, group: Group, fate: Fate) -> Group:
        """Rescale the group's accuracies to [0, 1] if ``accuracy_range`` is set."""
        self._check_common_range(group)
        return self._rescaled(group)

    def _rescaled(self, group: Group) -> Group:
        ends = self.settings.range_of(group.data_source)
        if ends is None:
            return group
        low, high = ends
        shares = [without_rounding(float(share)) for share in (group.accuracies - low) / (high - low)]
        return replace(group, accuracies=np.array(shares, dtype=float))

    def _check_common_range(self, group: Group) -> None:
        """Warn if one range rescales the accuracies of a data source that seem to be in [0, 1] already.

        A wrong response of this source, with ``acc`` 0, would count as half right in the range [-1, 1].
        """
        if self.settings.accuracy_range is None or isinstance(self.settings.accuracy_range, Mapping):
            return
        source, values = group.data_source, group.accuracies
        self._responses[source] += len(values)
        self._sources_outside |= {source} if ((values < 0) | (values > 1)).any() else set()
        if not self._sources_outside or self._has_warned_of_range:
            return
        least = self.settings.n_min
        inside = [of for of, count in self._responses.items() if count >= least and of not in self._sources_outside]
        if inside:
            self._has_warned_of_range = True
            ends = "[{:g},{:g}]".format(*self.settings.accuracy_range)
            outside = sorted(self._sources_outside)[0]
            logger.warning(
                "algorithm.gsd.hadw.accuracy_range=%s is applied to data_source=%s, too, but none of its first %d "
                "responses has an acc outside [0, 1], as responses of %s have. If its accuracies are in [0, 1], "
                "rescaling makes wrong responses partly right. Set a range per data source, for example %s.",
                *(ends, inside[0], self._responses[inside[0]], outside, _range_override(outside, ends)),
            )

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, Any]:
        """Per row, (N,) each: ``accuracy`` of its group, and the ``anchor`` to compare it with.

        Rows of no group have NaN in both. ``anchor`` is also NaN before the first observation.
        """
        if self.settings.preset == "off":
            return {}
        if self.settings.include_current:
            self._step_bank = copy.deepcopy(self.bank)
            self._step_bank.observe(self._counts(left))
        bank = self._step_bank
        groups = {row.group.uid: row.group for row in members if row is not None}
        anchor = {source: _or_nan(bank.value(source)) for source in {group.data_source for group in groups.values()}}
        by_uid = {uid: (self._accuracy(group), anchor[group.data_source]) for uid, group in groups.items()}
        no_group = (math.nan, math.nan)
        columns = torch.tensor(
            [no_group if row is None else by_uid[row.group.uid] for row in members], dtype=torch.float64
        )
        return {"accuracy": columns[:, 0], "anchor": columns[:, 1]}

    def weight(self, rows: Rows, advantages: torch.Tensor) -> torch.Tensor:
        """Phi, (N,). A step can have several updates; ``end_step`` has the metrics of all of them."""
        if self.settings.preset == "off":
            return torch.ones_like(advantages)
        accuracy, anchor = rows.column("accuracy", "hadw"), rows.column("anchor", "hadw")
        phi = hadw_factor(advantages, accuracy, anchor, lambda_scale=self.settings.lambda_scale)
        counts = (advantages != 0) & ~anchor.isnan()
        if counts.any():
            self._weighed.append((advantages[counts], phi[counts], (accuracy < anchor)[counts]))
        return phi

    def record(self, group: Group) -> dict[str, float | None]:
        """Columns for the records: the group's anchor, and the factors of its right and of its wrong responses."""
        anchor = self._step_bank.value(group.data_source)
        if anchor is None or not len(group.rewards) or self.settings.preset == "off":
            return {}
        distance, scale = self._accuracy(group) - anchor, self.settings.lambda_scale
        return {
            "hadw_anchor": anchor,
            "hadw_factor_right": scale * math.exp(-distance),
            "hadw_factor_wrong": scale * math.exp(distance),
        }

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Observe every group that left in the step, trained on or not. Only this method changes the anchors."""
        self._observe(left)
        metrics, self._metrics = self._metrics, {}
        weighed, self._weighed = self._weighed, []
        return metrics | _metrics_of_factors(weighed)

    def _observe(self, left: Sequence[Group]) -> None:
        counts = self._counts(left)
        total = sum(total for *_, total in counts)
        if not total:
            return
        before, accuracy = self.bank.overall.value, math.fsum(correct for _, correct, _ in counts) / total
        self.bank.observe(counts)
        self._step_bank = self.bank
        self._accuracy_sums.clear()
        after = self.bank.overall.value
        self._steps_unmoved = self._steps_unmoved + 1 if before == after else 0
        self._metrics |= {
            "hadw/accuracy": accuracy,
            "hadw/anchor/after": _or_nan(after),
            "hadw/steps_unmoved": float(self._steps_unmoved),
            "hadw/frac_degenerate": _share_degenerate(left),
        }
        if before is not None:
            self._metrics |= {"hadw/anchor/before": before, "hadw/innovation": accuracy - before}
        rate = getattr(self.bank.overall, "rate", None)
        if rate is not None:
            self._metrics["hadw/rate"] = rate
            self._innovations = [*self._innovations, self._metrics.get("hadw/innovation", 0.0)][-10:]
            if rate < 1e-3 and abs(np.mean(self._innovations)) > 0.05:
                logger.warning(
                    "algorithm.gsd.hadw.preset=%s: the anchor is frozen at %.3f, but the accuracy is %.3f. Set "
                    "algorithm.gsd.hadw.preset=soft or hard.",
                    self.settings.preset,
                    after,
                    accuracy,
                )

    def fingerprint(self) -> dict[str, Any]:
        """The settings that saved anchors depend on, as plain JSON."""
        ranges = self.settings.accuracy_range
        if isinstance(ranges, Mapping):
            plain: Any = {source: list(ends) for source, ends in ranges.items()}
        else:
            plain = None if ranges is None else list(ranges)
        return {"preset": self.settings.preset, "n_min": self.settings.n_min, "accuracy_range": plain}

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"bank": self.bank.state_dict(), "unmoved": self._steps_unmoved, "innovations": list(self._innovations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.bank.load_state_dict(state["bank"])
        self._step_bank = self.bank
        self._steps_unmoved, self._innovations = state["unmoved"], list(state["innovations"])

    def _new_anchor(self) -> Anchor:
        preset = self.settings.preset
        return _ANCHORS[preset]() if isinstance(preset, str) else FixedAnchor(preset)

    def _counts(self, groups: Sequence[Group]) -> list[tuple[str, float, int]]:
        """(source, correct, total) of every group with responses.

        A budget requests more rollouts for prompts on which answers disagree, and sizes in the data can do the same. To
        give every prompt the same weight, each group then counts as the mean number of rollouts.
        """
        groups = [group for group in groups if len(group.rewards)]
        if self.settings.preset == "off" or not groups:
            return []
        requested = [group.rollouts_requested for group in groups if group.rollouts_requested is not None]
        sizes = [len(group.rewards) for group in groups] if self._sizes_in_data else requested
        if sizes:
            size = round(math.fsum(sizes) / len(sizes))
            return [(group.data_source, size * self._accuracy(group), size) for group in groups]
        return [(group.data_source, self._accuracy_sum(group), len(group.rewards)) for group in groups]

    def _accuracy(self, group: Group) -> float:
        """p_hat of a group with responses."""
        return self._accuracy_sum(group) / len(group.rewards)

    def _accuracy_sum(self, group: Group) -> float:
        """The sum of a group's accuracies.

        Raises:
            ValueError: a response has no accuracy in [0, 1].
        """
        if group.uid not in self._accuracy_sums:
            self._check_accuracies(group)
            self._accuracy_sums[group.uid] = math.fsum(group.accuracies.tolist())
        return self._accuracy_sums[group.uid]

    def _check_accuracies(self, group: Group) -> None:
        for accuracy in group.accuracies.tolist():
            if not 0 <= accuracy <= 1:
                has_range = self.settings.range_of(group.data_source) is not None
                rescaled = " after rescaling by accuracy_range" if has_range else ""
                where = f"data_source={group.data_source}, index={group.index}"
                raise ValueError(
                    f"algorithm.gsd.hadw needs acc, the verifier's verdict in [0, 1]. A response to {where} "
                    f"has acc={accuracy}{rescaled}, which is outside [0, 1]. Return acc from the reward function. "
                    "For a graded verifier, set 'algorithm.gsd.hadw.accuracy_range=[low,high]', or "
                    f"{_range_override(group.data_source, '[low,high]')} if other data sources have accuracies in "
                    "[0, 1]."
                )


def _range_override(source: str, ends: str) -> str:
    """The override that sets the range of one data source, in quotes, because a shell expands braces.

    A backslash stands before each character that has a meaning in Hydra's grammar.
    """
    name = re.sub(r"[\\()\[\]{}:=,]", r"\\\g<0>", source)
    return f"'algorithm.gsd.hadw.accuracy_range={{{name}:{ends}}}'"


def _metrics_of_factors(updates: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """``hadw/*`` of all responses of a step whose advantage is not 0.

    Args:
        updates: advantages, factors and whether the prompt is hard, (N,) each, for every update of the step.
    """
    if not updates:
        return {}
    advantages, phi, hard = (torch.cat(columns) for columns in zip(*updates, strict=True))
    right, weighed = advantages > 0, advantages * phi
    return {
        "hadw/phi/mean": float(phi.mean()),
        "hadw/phi/min": float(phi.min()),
        "hadw/phi/max": float(phi.max()),
        "hadw/weighed_over_unweighed": float(weighed.abs().mean() / advantages.abs().mean()),
        "hadw/net_advantage": float(weighed.mean()),
        "hadw/cell/hard_right": float((hard & right).sum()),
        "hadw/cell/hard_wrong": float((hard & ~right).sum()),
        "hadw/cell/easy_right": float((~hard & right).sum()),
        "hadw/cell/easy_wrong": float((~hard & ~right).sum()),
    }


def _share_degenerate(groups: Sequence[Group]) -> float:
    """The share of the groups whose responses all have the same accuracy. A penalty can make their rewards differ."""
    spreads = [
        max(verdicts) - min(verdicts) for verdicts in (group.accuracies.tolist() for group in groups) if verdicts
    ]
    return spreads.count(0) / len(spreads)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
