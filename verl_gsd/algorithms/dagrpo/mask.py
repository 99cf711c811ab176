"""DaGRPO in a trainer: its place in the chain, the scores of the rows at hand, and what its mask did.

The equations are in ``pairs.py``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.dagrpo.pairs import Pairs, kept_rows, pairs_by_size, rectified
from verl_gsd.algorithms.dagrpo.settings import MaskSettings
from verl_gsd.chain import Rows
from verl_gsd.dial import centre
from verl_gsd.extension import Extension, Services, Update
from verl_gsd.groups import Group, GroupStats, Member, group_stats

logger = logging.getLogger(__name__)


#: What the workers are told where a step's gradients are to be probed.
PROBE = "dagrpo_probe"


class Dagrpo(Extension):
    """DaGRPO's mask: reads each row's score off its group, masks, and counts what it masked.

    Args:
        settings: of ``algorithm.gsd.dagrpo``, or that section.
    """

    def __init__(self, settings: MaskSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self.settings = MaskSettings.of(settings)
        super().__init__(self.settings, services)
        self._steps = 0
        self._delta = self.settings.delta.at(0)
        self._delta_by_uid: dict[str, float] = {}  # of the step at hand
        self._uids: set[str] = set()  # of the batch at hand
        self._counts: Counter[str] = Counter()  # of the step at hand
        self._has_warned = False

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, Any]:
        """``judge_score`` (N,), NaN where there is none; and (N,) bool: ``judge_failed``, where one was asked for, and
        ``demonstration``."""
        score = np.full(len(members), math.nan)
        failed: np.ndarray = np.zeros(len(members), bool)
        demonstration: np.ndarray = np.zeros(len(members), bool)
        for number, row in enumerate(members):
            if row is None:
                continue
            if row.response_index is None:
                demonstration[number] = True
            elif row.group.scores is not None:
                score[number] = row.group.scores[row.response_index]
                failed[number] = math.isnan(score[number])
        self._uids = {row.group.uid for row in members if row is not None}
        columns = {"judge_score": score, "judge_failed": failed, "demonstration": demonstration}
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def centre(self, rows: Rows) -> torch.Tensor | tuple[torch.Tensor, GroupStats]:
        """The rewards less what they are measured against, and a note of what was masked."""
        settings, score = self.settings, rows.column("judge_score", "dagrpo")
        failed = rows.columns["judge_failed"] if settings.fail_closed else None
        self._delta = self._delta_of(rows, score)
        self._delta_by_uid |= dict.fromkeys(self._uids, self._delta)
        mask: dict[str, Any] = {"delta": self._delta, "signed": settings.signed}
        with_pair: dict[str, Any] = mask | {"alone": failed, "exempt": rows.columns["demonstration"]}
        blocks = list(pairs_by_size(rows.rewards, score, rows.stats))
        if settings.mask == "pairs":
            centred, stats = rectified(rows.rewards, score, rows.stats, **with_pair), rows.stats
            alive = _rows_with(blocks, [pairs.kept(**with_pair) for pairs in blocks], rows.rewards)
        else:
            keep = kept_rows(rows.rewards, score, rows.stats, by=settings.mask, **mask)
            keep = keep if failed is None else keep & ~failed
            centred, stats = _of_kept(rows, keep)
            alive = keep & ~stats.per_row(stats.unanimous, elsewhere=True)
        self._count(rows, blocks, alive, with_pair)
        mixed = ~rows.stats.per_row(rows.stats.unanimous, elsewhere=True)
        if settings.rescale and (n_alive := int((mixed & alive).sum())):
            centred = centred * (int(mixed.sum()) / n_alive)
        return centred, stats

    def record(self, group: Group) -> dict[str, float | None]:
        """What the records say of a group's own responses: pairs of unequal rewards, how many reached delta, how many
        the judge sees the other way round, and its mean score."""
        if group.scores is None or len(group.rewards) < 2:
            return {}
        rewards, scores = torch.from_numpy(group.rewards), torch.from_numpy(group.scores)
        alone = scores.isnan() if self.settings.fail_closed else None
        delta = self._delta_by_uid.get(group.uid, self._delta)
        mask = {"delta": delta, "signed": self.settings.signed, "alone": alone}
        pairs = pairs_by_size(rewards, scores, group_stats(rewards, [0] * len(rewards)))
        counts = _pair_counts(pairs, torch.ones(len(rewards), dtype=torch.bool), mask)
        judged = group.scores[~np.isnan(group.scores)]
        return {
            "dagrpo_pairs": counts["pairs"],
            "dagrpo_pairs_kept": counts["kept"],
            "dagrpo_pairs_contradicted": counts["contradicted"],
            "judge_failed": float(len(group.scores) - len(judged)),
            "judge_score": float(judged.mean()) if len(judged) else None,
        }

    def worker_flags(self, update: Update) -> dict[str, Any]:
        """Whether the workers compare the gradients of positives and negatives."""
        every = self.settings.probe_every
        return {} if every is None else {PROBE: update.step % every == 0}

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Delta moves on; returns ``dagrpo/delta``, and of the step's batches, of the policy's pairs of unequal
        rewards, the shares ``pairs/kept`` (which reach delta, or are not judged) and ``pairs/judged`` (both scores
        known), of those judged ``pairs/contradicted`` (the judge prefers the worse) and ``pairs/tied``;
        ``masked/{right,wrong}``, the share of responses above (below) their group's mean that were masked, and
        ``masked/groups``, of groups wholly masked."""
        counts, self._counts = self._counts, Counter()
        self._steps += 1
        self._delta_by_uid.clear()
        metrics = {} if math.isinf(self._delta) else {"dagrpo/delta": self._delta}
        for name, part, whole in (
            ("pairs/kept", "kept", "pairs"),
            ("pairs/judged", "judged", "pairs"),
            ("pairs/contradicted", "contradicted", "judged"),
            ("pairs/tied", "tied", "judged"),
            ("masked/right", "silent_right", "right"),
            ("masked/wrong", "silent_wrong", "wrong"),
            ("masked/groups", "silent_groups", "groups"),
        ):
            if counts[whole]:
                metrics[f"dagrpo/{name}"] = counts[part] / counts[whole]
        if counts["judged"] >= 20 and not counts["kept"] and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "algorithm.gsd.dagrpo.delta=%g: the mask dropped all %d judged pairs of a step, %d of which the judge "
                "scored alike. Set a smaller delta, or use a judge that tells more apart: verl-gsd judge calibrate.",
                self._delta,
                counts["judged"],
                counts["tied"],
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        self._steps = int(state["steps"])
        self._delta = self.settings.delta.at(self._steps)

    def _delta_of(self, rows: Rows, score: torch.Tensor) -> float:
        delta = self.settings.delta
        if delta.quantile is None:
            return delta.at(self._steps)
        found = [
            (pairs.gap if self.settings.signed else pairs.gap.abs())[(pairs.difference > 0) & ~pairs.gap.isnan()]
            for pairs in pairs_by_size(rows.rewards, score, rows.stats)
        ]
        gaps = torch.cat(found) if found else score[:0]
        # numpy's, because torch's takes 2^24 numbers at most.
        return float(np.quantile(gaps.cpu().numpy(), delta.quantile)) if len(gaps) else -math.inf

    def _count(self, rows: Rows, blocks: Sequence[Pairs], alive: torch.Tensor, mask: Mapping[str, Any]) -> None:
        """Of the policy's own responses and groups that have pairs of their own: with a demonstration every group of
        failures is mixed, and its pairs are never judged, which would hide what is masked."""
        own = ~rows.columns["demonstration"]
        self._counts.update(_pair_counts(blocks, own, mask))
        paired = own & _rows_with(blocks, [_among(pairs, own) for pairs in blocks], rows.rewards)
        mean = rows.stats.per_row(rows.stats.mean)
        for name, of_class in (("right", rows.rewards > mean), ("wrong", rows.rewards < mean)):
            self._counts[name] += int((paired & of_class).sum())
            self._counts[f"silent_{name}"] += int((paired & of_class & ~alive).sum())
        groups = len(rows.stats.group[paired].unique())
        self._counts["groups"] += groups
        self._counts["silent_groups"] += groups - len(rows.stats.group[paired & alive].unique())


def _of_kept(rows: Rows, keep: torch.Tensor) -> tuple[torch.Tensor, GroupStats]:
    """Rewards less the mean of the kept rows of their group, and those rows' groups; 0 in rows that are not kept."""
    if not keep.any():
        return torch.zeros_like(rows.rewards), rows.stats
    stats = group_stats(rows.rewards.double(), rows.stats.group, keep)
    return centre(rows.rewards, stats), stats


def _rows_with(blocks: Sequence[Pairs], chosen: Sequence[torch.Tensor], rewards: torch.Tensor) -> torch.Tensor:
    """(N,) bool: rows in a pair of ``chosen``, (g, k, k) bool for each of ``blocks``; on the device of ``rewards``."""
    found = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
    for pairs, of_block in zip(blocks, chosen, strict=True):
        found[pairs.row] = of_block.any(dim=-1)
    return found


def _among(pairs: Pairs, own: torch.Tensor) -> torch.Tensor:
    """(g, k, k) bool: pairs of unequal rewards, both of ``own``."""
    of_group = own[pairs.row]
    return (pairs.difference != 0) & of_group.unsqueeze(2) & of_group.unsqueeze(1)


def _pair_counts(blocks: Iterable[Pairs], own: torch.Tensor, mask: Mapping[str, Any]) -> dict[str, int]:
    """Of the pairs among the rows ``own``, each once: how many there are, are kept, judged, contradicted, tied."""
    counts = Counter(pairs=0, kept=0, judged=0, contradicted=0, tied=0)
    for pairs in blocks:
        pair = _among(pairs, own) & (pairs.difference > 0)
        counts["pairs"] += int(pair.sum())
        counts["kept"] += int((pair & pairs.kept(**mask)).sum())
        counts["judged"] += int((pair & ~pairs.gap.isnan()).sum())
        counts["contradicted"] += int((pair & (pairs.gap < 0)).sum())
        counts["tied"] += int((pair & (pairs.gap == 0)).sum())
    return dict(counts)
