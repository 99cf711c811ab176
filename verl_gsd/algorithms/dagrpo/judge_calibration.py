"""How well a judge agrees with the verifier, and the mask under synthetic judges of known quality.

The sweep is a controlled experiment with synthetic scores. Its judges know the verifier's verdict and add noise; they
know nothing of what makes two responses distinct. It measures how much signal a judge of a given quality costs at a
given delta. It does not measure what the mask may gain by dropping pairs that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from verl_gsd.algorithms.dagrpo.mask_quality import DELTAS, MaskAtDelta, MaskReport, mask_report
from verl_gsd.groups import Labels, group_numbers
from verl_gsd.judge.calibration import Area, Histogram, auc, auc_with_interval, histograms, within_group_auc
from verl_gsd.judge.scorer import HIGHEST, LOWEST

#: Standard deviation of a synthetic judge's scores before rounding, if both classes are equally frequent. It does not
#: depend on the quality: a bad judge uses as much of the scale as a good one.
SPREAD = 3.0

CAVEATS = (
    "Intervals are 95% bootstrap intervals over groups (1000 replicates). With few groups, or near 0 or 1, they are "
    "too narrow.",
    "Signal left: how much of GRPO's reinforcement of right responses and discouragement of wrong ones remains without "
    "the masked pairs. Alignment: the cosine between a group's advantages and GRPO's, over groups that are not "
    "silenced.",
    "The synthetic judges know the verdict and add noise. They know nothing of what makes responses distinct: their "
    "table shows what a judge of that quality costs in signal, not what the mask gains by dropping pairs that are "
    "alike.",
    f"The synthetic scores have a standard deviation of about {SPREAD:g}. A judge that uses less of the scale keeps "
    "fewer pairs at the same AUC.",
)


@dataclass(frozen=True)
class SweepPoint:
    """Synthetic judges of one quality at one delta, as means over seeds.

    Attributes:
        quality: the requested AUC.
        auc: the AUC of the scores over all rows. Rounding and clipping to the scale change it a little.
        mask: what the mask leaves.
    """

    quality: float
    auc: float
    mask: MaskAtDelta


@dataclass(frozen=True, eq=False)
class JudgeCalibration:
    """How well a judge agrees with the verifier on one set of responses.

    Attributes:
        overall, within: AUC over all pairs, and over the pairs within groups.
        histograms: of the scores, {"right": ..., "wrong": ...}.
        off_scale: number of scores below 0 or above 10.
        mask: what DaGRPO's mask does with these scores.
        sweep: what it does with the scores of synthetic judges; empty if no group is mixed.
    """

    overall: Area
    within: Area
    histograms: dict[str, Histogram]
    off_scale: int
    mask: MaskReport
    sweep: tuple[SweepPoint, ...]

    def limitations(self) -> list[str]:
        """Sentences on what these responses cannot show."""
        right, wrong = self.histograms["right"], self.histograms["wrong"]
        sentences = []
        if not right.rows or not wrong.rows:
            sentences.append(
                f"All {right.rows + wrong.rows} responses are {'right' if right.rows else 'wrong'}: they cannot show "
                "whether the judge tells right from wrong, nor what the mask does."
            )
        elif not self.mask.pairs:
            sentences.append(
                "No group has a right and a wrong response. Agreement within groups is unknown, and so is what the "
                "mask does, which drops pairs within groups. Score several responses per problem."
            )
        elif not self.within.pairs:
            sentences.append("Within groups, every pair has a failed judgement: agreement there is unknown.")
        if self.off_scale:
            sentences.append(
                f"Scores off the scale of 0 to 10: {self.off_scale}. Histograms count them at the ends of the scale. "
                "Deltas apply to the scores as they are."
            )
        return sentences


def calibrate(
    scores: np.ndarray, correct: np.ndarray, group: Labels, deltas: Sequence[float] = DELTAS
) -> JudgeCalibration:
    """All figures of ``JudgeCalibration``. The sweep uses the ``deltas`` above 0.

    Raises:
        ValueError: as ``mask_report`` and ``calibration.auc``.
    """
    mask = mask_report(scores, correct, group, deltas)
    swept = [delta for delta in deltas if delta > 0]
    return JudgeCalibration(
        auc_with_interval(scores, correct, group),
        within_group_auc(scores, correct, group),
        histograms(scores, correct),
        int(((scores < LOWEST) | (scores > HIGHEST)).sum()),
        mask,
        tuple(judge_sweep(correct, group, deltas=swept) if mask.pairs else ()),
    )


def synthetic_scores(correct: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Integer scores 0 to 10 of a judge that tells right from wrong with an AUC of about ``quality``.

    Each response has a latent value N(+-d'/2, 1), with d' = sqrt(2) Phi^-1(quality), which gives exactly that AUC. The
    value is scaled to a standard deviation of SPREAD around the middle of the scale, rounded, and clipped to the
    scale's ends. Rounding and clipping make ties, which move the AUC towards 1/2 by less than 0.005. At a quality of
    1, all right responses have one score, and all wrong ones have another score, 6 below.

    Args:
        correct: (N,) bool.

    Returns:
        (N,) float64.

    Raises:
        ValueError: ``quality`` is outside [0.5, 1].
    """
    if not 0.5 <= quality <= 1:
        raise ValueError(f"quality={quality}: this is not the AUC of a judge. Use 0.5 (random) to 1 (never wrong).")
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
) -> list[SweepPoint]:
    """The mask under synthetic judges on the same responses, for each quality and, within a quality, each delta.

    Raises:
        ValueError: as ``mask_report`` and ``synthetic_scores``.
    """
    index = group_numbers(group, len(correct))
    points = []
    for quality in qualities:
        scores_by_seed = [synthetic_scores(correct, quality, np.random.default_rng(seed)) for seed in seeds]
        reports = [mask_report(scores, correct, index.numpy(), deltas) for scores in scores_by_seed]
        mean_auc = float(np.mean([auc(scores, correct) for scores in scores_by_seed]))
        for masks in zip(*(report.by_delta for report in reports), strict=True):
            figures = np.array([list(vars(mask).values()) for mask in masks])
            # A seed that silences every group has no cosine; the mean is over the other seeds.
            known = [column[~np.isnan(column)] for column in figures.T]
            means = (float(column.mean()) if len(column) else math.nan for column in known)
            points.append(SweepPoint(quality, mean_auc, MaskAtDelta(*means)))
    return points
