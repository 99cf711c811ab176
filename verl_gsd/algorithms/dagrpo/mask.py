"""DaGRPO's trainer extension: applies the mask in the chain, schedules delta, and reports what the mask did.

The equations are in ``pairs.py``.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from verl_gsd.algorithms.dagrpo.pairs import Pairs, any_pair, judged_gaps, pairs_by_size
from verl_gsd.algorithms.dagrpo.settings import MaskSettings
from verl_gsd.chain import Rows
from verl_gsd.dial import centre
from verl_gsd.extension import Extension, Services, Update
from verl_gsd.groups import Group, GroupStats, Member, group_stats

logger = logging.getLogger(__name__)

#: The flag that tells the workers whether to probe a step's gradients.
PROBE = "dagrpo_probe"


class Dagrpo(Extension):
    """DaGRPO's mask: reads each row's score from its group, applies the mask, and counts masked pairs and rows.

    Args:
        settings: settings or config section of ``algorithm.gsd.dagrpo``.
    """

    def __init__(self, settings: MaskSettings | Mapping[str, Any], services: Services | None = None) -> None:
        self.settings = MaskSettings.of(settings)
        super().__init__(self.settings, services)
        self._steps = 0
        self._delta = self.settings.delta.at(0)
        self._delta_by_uid: dict[str, float] = {}  # of the current step
        self._uids: set[str] = set()  # of the current batch
        self._counts: Counter[str] = Counter()  # of the current step
        self._has_warned = False

    def stage_inputs(self, members: Sequence[Member | None], left: Sequence[Group]) -> dict[str, Any]:
        """Four columns, (N,) each.

        - ``judge_score``: float, NaN for a row without a score
        - ``verdict``: float, see ``_verdicts``; NaN for a demonstration and a row of no group
        - ``judge_failed``: bool, whether the judgement of the row failed
        - ``demonstration``: bool, whether the row is a demonstration
        """
        score, verdict = np.full(len(members), math.nan), np.full(len(members), math.nan)
        failed: np.ndarray = np.zeros(len(members), bool)
        demonstration: np.ndarray = np.zeros(len(members), bool)
        by_uid = {row.group.uid: row.group for row in members if row is not None}
        verdicts = {uid: _verdicts(group) for uid, group in by_uid.items()}
        for number, row in enumerate(members):
            if row is None:
                continue
            if row.response_index is None:
                demonstration[number] = True
                continue
            verdict[number] = verdicts[row.group.uid][row.response_index]
            if row.group.scores is not None:
                score[number] = row.group.scores[row.response_index]
                failed[number] = math.isnan(score[number])
        self._uids = set(by_uid)
        columns = {"judge_score": score, "verdict": verdict, "judge_failed": failed, "demonstration": demonstration}
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def centre(self, rows: Rows) -> torch.Tensor | tuple[torch.Tensor, GroupStats]:
        """The masked, centred rewards. The method also counts what was masked."""
        settings, score = self.settings, rows.column("judge_score", "dagrpo")
        verdict = rows.columns["verdict"]
        failed = rows.columns["judge_failed"] if settings.fail_closed else None
        self._delta = self._delta_of(rows, score)
        self._delta_by_uid |= dict.fromkeys(self._uids, self._delta)
        mask: dict[str, Any] = {"delta": self._delta, "drop_rows": failed, "keep_rows": rows.columns["demonstration"]}
        own = ~rows.columns["demonstration"]
        centred = torch.zeros_like(rows.rewards, dtype=torch.float64)
        has_signal, paired = (torch.zeros_like(centred, dtype=torch.bool) for _ in range(2))
        keep = rows.stats.group >= 0  # of the masks on responses; a group of one has no pair, and its row is kept
        for pairs in pairs_by_size(rows.rewards, score, rows.stats):
            among_own, (kept, of_row) = pairs.among(own), self._kept(pairs, **mask)
            paired[pairs.row] = any_pair(among_own)
            self._counts.update(_pair_counts(pairs, among_own, kept, verdict))
            if of_row is None:
                centred[pairs.row], has_signal[pairs.row] = pairs.centred(kept), any_pair(kept)
            else:
                keep[pairs.row] = of_row
        centred, stats = centred.to(rows.rewards.dtype), rows.stats
        if settings.mask != "pairs":
            keep = keep if failed is None else keep & ~failed
            centred, stats = _centre_kept_rows(rows, keep)
            has_signal = keep & ~stats.per_row(stats.unanimous, elsewhere=True)
        self._count_rows(rows, paired, has_signal)
        mixed = ~rows.stats.per_row(rows.stats.unanimous, elsewhere=True)
        if settings.rescale and (n_kept := int((mixed & has_signal).sum())):
            centred = centred * (int(mixed.sum()) / n_kept)
        return centred, stats

    def record(self, group: Group) -> dict[str, float | None]:
        """Columns for the records, over the group's own responses.

        They count the pairs with unequal verdicts, those of them that the mask keeps, those on which the judge
        contradicts the verifier, the pairs that differ by a shaped term alone, and the failed judgements. The last
        column is the mean score.
        """
        if group.scores is None or len(group.rewards) < 2:
            return {}
        rewards, scores = torch.from_numpy(group.rewards), torch.from_numpy(group.scores)
        failed = scores.isnan() if self.settings.fail_closed else None
        (pairs,) = pairs_by_size(rewards, scores, group_stats(rewards, [0] * len(rewards)))
        kept, _ = self._kept(pairs, self._delta_by_uid.get(group.uid, self._delta), drop_rows=failed)
        counts = _pair_counts(pairs, pairs.unequal, kept, torch.from_numpy(_verdicts(group)))
        judged = group.scores[~np.isnan(group.scores)]
        return {
            "dagrpo_pairs": counts["pairs"],
            "dagrpo_pairs_kept": counts["kept"],
            "dagrpo_pairs_contradicted": counts["contradicted"],
            "dagrpo_pairs_shaped": counts["shaped"],
            "judge_failed": float(len(group.scores) - len(judged)),
            "judge_score": float(judged.mean()) if len(judged) else None,
        }

    def worker_flags(self, update: Update) -> dict[str, Any]:
        """Whether the workers compare the gradients of rows with positive and with negative advantages in this step."""
        every = self.settings.probe_every
        return {} if every is None else {PROBE: update.step % every == 0}

    def end_step(self, left: Sequence[Group]) -> dict[str, float]:
        """Advance delta's schedule. Returns ``dagrpo/delta``, and shares over the step's batches, ``dagrpo/...``.

        Among pairs of the policy's responses with unequal rewards:

        - ``pairs/shaped``: pairs with equal verdicts. Their rewards differ by a shaped term alone, such as a length
          penalty, of which a judge need not know anything

        Among the other ones, whose verdicts differ, too:

        - ``pairs/kept``: pairs that reach delta or are not judged; with a mask on responses, pairs of which it keeps
          both
        - ``pairs/judged``: pairs with two scores
        - ``pairs/contradicted``: of the judged pairs, those in which the judge prefers the response with the worse
          verdict
        - ``pairs/tied``: of the judged pairs, those with equal scores

        Among the responses of groups with pairs of unequal rewards:

        - ``masked/right``, ``masked/wrong``: of the responses above, and below, their group's mean, those masked
        - ``masked/groups``: groups in which every response was masked
        """
        counts, self._counts = self._counts, Counter()
        self._steps += 1
        self._delta_by_uid.clear()
        metrics = {} if math.isinf(self._delta) else {"dagrpo/delta": self._delta}
        for name, part, whole in (
            ("pairs/shaped", "shaped", "unequal"),
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
                "algorithm.gsd.dagrpo.delta=%g: the mask dropped all %d judged pairs of a step. The judge scored %d of "
                "them alike. Set a smaller delta, or use a judge that distinguishes more responses. Run verl-gsd judge "
                "calibrate to compare judges.",
                self._delta,
                counts["judged"],
                counts["tied"],
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._steps = int(state["steps"])
        self._delta = self.settings.delta.at(self._steps)

    def _delta_of(self, rows: Rows, score: torch.Tensor) -> float:
        delta = self.settings.delta
        if delta.quantile is None:
            return delta.at(self._steps)
        gaps = _judged_gaps(rows, score, signed=self.settings.signed)
        # numpy's quantile, because torch's accepts at most 2^24 numbers. It may reorder the gaps, and so needs no copy.
        return float(np.quantile(gaps, delta.quantile, overwrite_input=True)) if len(gaps) else -math.inf

    def _kept(
        self,
        pairs: Pairs,
        delta: float,
        *,
        drop_rows: torch.Tensor | None = None,
        keep_rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(g, k, k) bool, the pairs of unequal rewards that the mask keeps; and (g, k) bool, the rows that it keeps.

        A mask on rows keeps the pairs of which it keeps both rows. Only these have a signal. With a mask on pairs, the
        second value is None.

        Args:
            drop_rows, keep_rows: see ``Pairs.kept``. No mask on rows drops a row without scores, so that it needs no
                ``keep_rows``.
        """
        settings = self.settings
        if settings.mask == "pairs":
            return pairs.kept(delta, signed=settings.signed, drop_rows=drop_rows, keep_rows=keep_rows), None
        rows = pairs.kept_rows(delta, by=settings.mask, signed=settings.signed)
        if drop_rows is not None:
            rows &= ~drop_rows[pairs.row]
        return pairs.unequal & rows.unsqueeze(2) & rows.unsqueeze(1), rows

    def _count_rows(self, rows: Rows, paired: torch.Tensor, has_signal: torch.Tensor) -> None:
        """Count the rows ``paired``: the policy's own responses, in groups in which they form pairs.

        Demonstrations do not count. A demonstration makes every group of failures a mixed group whose pairs are never
        judged; counting it would hide how much is masked.
        """
        mean = rows.stats.per_row(rows.stats.mean)
        for name, in_class in (("right", rows.rewards > mean), ("wrong", rows.rewards < mean)):
            self._counts[name] += int((paired & in_class).sum())
            self._counts[f"silent_{name}"] += int((paired & in_class & ~has_signal).sum())
        groups = len(rows.stats.group[paired].unique())
        self._counts["groups"] += groups
        self._counts["silent_groups"] += groups - len(rows.stats.group[paired & has_signal].unique())


def _judged_gaps(rows: Rows, score: torch.Tensor, *, signed: bool) -> np.ndarray:
    """(n,) float64, the gaps of the pairs of unequal rewards with two scores, each pair once."""
    size = rows.stats.size
    # As many as there can be. It takes memory only where it is filled.
    gaps = np.empty(int((size * (size - 1)).sum()) // 2)
    found = 0
    for gap in judged_gaps(rows.rewards, score, rows.stats):
        gaps[found : found + len(gap)] = gap if signed else np.abs(gap)
        found += len(gap)
    return gaps[:found]


def _centre_kept_rows(rows: Rows, keep: torch.Tensor) -> tuple[torch.Tensor, GroupStats]:
    """Rewards minus the mean of their group's kept rows, 0 in other rows; and the group statistics of the kept rows."""
    if not keep.any():
        return torch.zeros_like(rows.rewards), rows.stats
    stats = group_stats(rows.rewards.double(), rows.stats.group, keep)
    return centre(rows.rewards, stats), stats


def _verdicts(group: Group) -> np.ndarray:
    """(k,) float64, what tells right responses of a group from wrong ones: ``acc``, or the rewards without an ``acc``.

    Length and format terms of a reward change no verdict.
    """
    return group.rewards if np.isnan(group.accuracies).any() else group.accuracies


def _pair_counts(pairs: Pairs, among: torch.Tensor, kept: torch.Tensor, verdict: torch.Tensor) -> dict[str, int]:
    """Counts of pairs in ``among``, (g, k, k) bool, each pair once.

    ``unequal`` are all of them, and ``shaped`` those with equal verdicts. ``pairs`` are the others, and ``kept``,
    ``judged``, ``contradicted`` and ``tied`` are among these.

    Args:
        among: pairs of unequal rewards.
        kept: (g, k, k) bool, the pairs that the mask keeps.
        verdict: (N,) float64, not NaN in a row with a pair in ``among``.
    """
    of_row = verdict[pairs.row]
    difference = of_row.unsqueeze(2) - of_row.unsqueeze(1)
    clear = among & (difference != 0)
    # The gap has the sign of the better reward, which a penalty can give to the response with the worse verdict.
    gap = pairs.gap * (difference.sign_() * pairs.difference.sign())
    chosen = {
        "unequal": among,
        "shaped": among & ~clear,
        "pairs": clear,
        "kept": clear & kept,
        "judged": clear & pairs.judged,
        "contradicted": clear & (gap < 0),
        "tied": clear & (pairs.gap == 0),
    }
    # numpy counts booleans ten times as fast as torch.
    return {name: int(np.count_nonzero(both_orders.cpu().numpy())) // 2 for name, both_orders in chosen.items()}
