"""Expected figures of a data set at a given group size: its silent groups, its signal, and the source of its gradient.

The input is the solve rates p of n prompts. Plug-in figures treat each rate as the true one, which overstates the
silent rate if the rate comes from few responses. Unbiased figures use the counts of responses, and need at least
``group_size`` responses per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from verl_gsd.planning.counts import expected_std_from_counts, silent_rate_from_counts
from verl_gsd.planning.rates import expected_std, fidelity, gain, required_group_size, silent_rate

#: Bins of solve rates, in order.
BINS = ("0", "0 to 0.1", "0.1 to 0.4", "0.4 to 0.6", "0.6 to 0.9", "0.9 to 1", "1")
#: Indices of the bins below 0.1 or above 0.9 (the paper's extremes), and of the bin in the middle.
EXTREMES, MIDDLE = (0, 1, 5, 6), 3


@dataclass(frozen=True)
class UnbiasedMeans:
    """Unbiased means over the prompts with at least ``group_size`` responses.

    Attributes:
        prompts: the number of these prompts.
        silent, gain: as in ``GroupSizeSummary``.
    """

    prompts: int
    silent: float
    gain: float


@dataclass(frozen=True)
class GroupSizeSummary:
    """Expected means over all prompts for groups of ``group_size``.

    Attributes:
        silent, gain: plug-in means of P(all rewards are equal) and of E[sigma_hat].
        fidelity: the mean over prompts with 0 < p < 1, because fidelity is undefined for the others; NaN if there are
            no such prompts.
        unbiased: unbiased means of ``silent`` and ``gain``; None if no prompt has enough responses.
    """

    group_size: int
    silent: float
    gain: float
    fidelity: float
    unbiased: UnbiasedMeans | None


@dataclass(frozen=True, eq=False)
class Target:
    """The group sizes that reach a fidelity, or a probability of a mixed group, of at least ``wanted``.

    Attributes:
        smallest: (n,) the smallest such size for each prompt; inf if there is none, as at p=0 and p=1.
    """

    criterion: Literal["fidelity", "mixed"]
    wanted: float
    smallest: np.ndarray

    def reached(self, group_size: int) -> float:
        """The share of prompts for which ``group_size`` is large enough."""
        return float((self.smallest <= group_size).mean())

    def quantile(self, share: float) -> float:
        """The smallest size that is large enough for this ``share`` of the prompts; inf if there is none."""
        ordered = np.sort(self.smallest)
        return float(ordered[max(0, int(np.ceil(share * len(ordered))) - 1)])


def summarize(p: np.ndarray, correct: np.ndarray | None, total: np.ndarray | None, group_size: int) -> GroupSizeSummary:
    """The expected means at one group size.

    Args:
        p: (n,) solve rates.
        correct, total: (n,) integers, the correct responses and all responses behind each rate; None if unknown.

    Raises:
        ValueError: a rate, count or group size is out of range; the message names the entry.
    """
    interior = (p > 0) & (p < 1)
    mean_fidelity = float(np.mean(fidelity(p[interior], group_size))) if interior.any() else float("nan")
    silent, mean_gain = (float(np.mean(figure(p, group_size))) for figure in (silent_rate, expected_std))
    unbiased = None
    if correct is not None and total is not None and (enough := total >= group_size).any():
        counts = (correct[enough], total[enough], group_size)
        unbiased = UnbiasedMeans(
            prompts=int(enough.sum()),
            silent=float(np.mean(silent_rate_from_counts(*counts))),
            gain=float(np.mean(expected_std_from_counts(*counts))),
        )
    return GroupSizeSummary(group_size, silent, mean_gain, mean_fidelity, unbiased)


def target(p: np.ndarray, criterion: Literal["fidelity", "mixed"], wanted: float) -> Target:
    """Exact group sizes for a fidelity, or a probability of a mixed group, of at least ``wanted``.

    Raises:
        ValueError: ``wanted`` is not between 0 and 1, or the criterion is unknown.
    """
    if not 0 < wanted < 1:
        raise ValueError(f"{criterion}={wanted:g} is out of range. Use a number between 0 and 1.")
    return Target(criterion, wanted, np.asarray(required_group_size(p, 1 - wanted, criterion)))


def bin_of(p: np.ndarray) -> np.ndarray:
    """(n,) the index in ``BINS`` of each rate. 0.1, 0.4, 0.6 and 0.9 belong to the neighbouring bin closer to 1/2."""
    inner = (p >= 0.1).astype(np.int64) + (p >= 0.4) + (p > 0.6) + (p > 0.9)
    return np.select([p == 0, p == 1], [0, len(BINS) - 1], inner + 1)


def share_by_bin(p: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """(n_bins,) each bin's share of ``weight`` (n,), or of the prompts if None; NaN if all weights are 0."""
    sums = np.bincount(bin_of(p), weight, minlength=len(BINS))
    with np.errstate(invalid="ignore"):
        return sums / sums.sum()


def gradient_mass(p: np.ndarray, alpha: float, group_size: int | None = None) -> np.ndarray:
    """(n,) each prompt's weight in the update under the dial, E[sigma_hat^(2 - alpha); mixed].

    Args:
        group_size: None for the limit of large groups, (p (1-p))^((2 - alpha) / 2), as in the paper's figures.
    """
    if group_size is not None:
        return np.asarray(gain(p, group_size, alpha))
    spread = p * (1 - p)
    return np.where(spread > 0, np.where(spread > 0, spread, 1.0) ** ((2 - alpha) / 2), 0.0)


def sampling_factor(silent: float) -> float:
    """Groups generated per group kept, 1 / (1 - silent), if silent groups are replaced by other prompts' (DAPO)."""
    return float("inf") if silent >= 1 else 1 / (1 - silent)
