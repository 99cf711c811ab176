"""A judge against the verifier, and judges of known quality in its place.

The sweep is the controlled experiment with synthetic scores: its judges know the verifier's verdict and noise, nothing
of what makes two responses distinct. It measures what a judge of a given quality costs in signal at a given delta; it
says nothing of what the mask may gain by dropping pairs that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from verl_gsd.evaluation.masking import DELTAS, Mask, MaskReport, mask_report
from verl_gsd.groups import Labels, group_numbers
from verl_gsd.judge.calibration import Area, Histogram, auc, auc_with_interval, histograms, within_group_auc
from verl_gsd.judge.scorer import HIGHEST, LOWEST

#: Standard deviation of a synthetic judge's scores before they are rounded, classes being equally frequent. It is the
#: same whatever the quality: a bad judge uses as much of the scale as a good one, and differs in how it uses it.
SPREAD = 3.0

CAVEATS = (
    "Intervals are of 95%, from drawing groups anew 1000 times; with few groups, or near 0 or 1, they are too narrow.",
    "Signal left: how much of GRPO's push of right responses up and of wrong ones down remains, masked pairs gone. "
    "Alignment: the cosine between the advantages of a group that is not silenced and GRPO's.",
    "The synthetic judges know the verdict and noise, nothing of what makes responses distinct: their table is what a "
    "judge of that quality costs in signal, not what the mask gains by dropping pairs that are alike.",
    f"Their scores have a standard deviation of about {SPREAD:g}. A judge that uses less of the scale keeps fewer "
    "pairs at the same AUC.",
)


@dataclass(frozen=True)
class Sweep:
    """Judges of one quality at one delta, means over seeds.

    Attributes:
        quality: the AUC asked for.
        auc: the AUC obtained over all rows, which rounding and clipping to the scale have moved.
        mask: what is left.
    """

    quality: float
    auc: float
    mask: Mask


@dataclass(frozen=True, eq=False)
class Calibration:
    """A judge against the verifier on one set of responses.

    Attributes:
        overall, within: AUC over all pairs, and over those within groups.
        histograms: of the scores, {"right": ..., "wrong": ...}.
        off_scale: scores below 0 or above 10.
        mask: what DaGRPO's mask does with them.
        sweep: what it does under synthetic judges; empty without a mixed group.
    """

    overall: Area
    within: Area
    histograms: dict[str, Histogram]
    off_scale: int
    mask: MaskReport
    sweep: tuple[Sweep, ...]

    def cannot_say(self) -> list[str]:
        """Sentences on what these responses leave open."""
        right, wrong = self.histograms["right"], self.histograms["wrong"]
        said = []
        if not right.rows or not wrong.rows:
            said.append(
                f"All {right.rows + wrong.rows} responses are {'right' if right.rows else 'wrong'}: how the judge "
                "tells right from wrong, and what the mask does, cannot be said."
            )
        elif not self.mask.pairs:
            said.append(
                "No group has a right and a wrong response: of agreement within groups and of the mask, which drops "
                "pairs within groups, nothing can be said. Score several responses to each problem."
            )
        elif not self.within.pairs:
            said.append("Within groups every pair has a failed judgement: of agreement there nothing can be said.")
        if self.off_scale:
            said.append(
                f"Scores off the scale of 0 to 10: {self.off_scale}, counted at its ends. Deltas are on the scale of "
                "the scores themselves."
            )
        return said


def calibrate(scores: np.ndarray, correct: np.ndarray, group: Labels, deltas: Sequence[float] = DELTAS) -> Calibration:
    """All of it; the sweep runs over those of ``deltas`` that are above 0.

    Raises:
        ValueError: as ``mask_report`` and ``calibration.auc``.
    """
    mask = mask_report(scores, correct, group, deltas)
    swept = [delta for delta in deltas if delta > 0]
    return Calibration(
        auc_with_interval(scores, correct, group),
        within_group_auc(scores, correct, group),
        histograms(scores, correct),
        int(((scores < LOWEST) | (scores > HIGHEST)).sum()),
        mask,
        tuple(judge_sweep(correct, group, deltas=swept) if mask.pairs else ()),
    )


def synthetic_scores(correct: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Integer scores 0 to 10 of a judge that tells right from wrong with an AUC of about ``quality``.

    Each response has a latent value N(+-d'/2, 1), with d' = sqrt(2) Phi^-1(quality), which gives exactly that AUC; it
    is scaled to a standard deviation of SPREAD about the middle of the scale, rounded, and clipped to its ends. The
    last two make ties and so draw the AUC towards 1/2, by less than 0.005; ``auc`` of the scores is what was
    obtained. At a quality of 1 all right responses have one score, all wrong ones another, 6 below.

    Args:
        correct: (N,) bool.

    Returns:
        (N,) float64.

    Raises:
        ValueError: ``quality`` is outside [0.5, 1].
    """
    if not 0.5 <= quality <= 1:
        raise ValueError(f"quality={quality}: write an AUC from 0.5 (knows nothing) to 1 (never errs)")
    side = np.where(correct, 1.0, -1.0)
    half = ndtri(quality) / math.sqrt(2)  # d' / 2
    noise = rng.standard_normal(len(correct))
    latent = side if math.isinf(half) else (half * side + noise) / math.sqrt(1 + half**2)
    return np.clip(np.rint((LOWEST + HIGHEST) / 2 + SPREAD * latent), LOWEST, HIGHEST)


def judge_sweep(
    correct: np.ndarray,
    group: Labels,
    qualities: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    deltas: Sequence[float] = (1.0, 3.0, 5.0),
    seeds: Sequence[int] = range(8),
) -> list[Sweep]:
    """The mask under synthetic judges of these qualities on the same responses, quality by quality, delta by delta.

    Raises:
        ValueError: as ``mask_report`` and ``synthetic_scores``.
    """
    index = group_numbers(group, len(correct))
    sweep = []
    for quality in qualities:
        judged = [synthetic_scores(correct, quality, np.random.default_rng(seed)) for seed in seeds]
        reports = [mask_report(scores, correct, index.numpy(), deltas) for scores in judged]
        obtained = float(np.mean([auc(scores, correct) for scores in judged]))
        for masks in zip(*(report.by_delta for report in reports), strict=True):
            figures = np.array([list(vars(mask).values()) for mask in masks])
            # Where every group is silenced under a seed there is no cosine; the mean is over the other seeds.
            known = [column[~np.isnan(column)] for column in figures.T]
            means = (float(column.mean()) if len(column) else math.nan for column in known)
            sweep.append(Sweep(quality, obtained, Mask(*means)))
    return sweep
