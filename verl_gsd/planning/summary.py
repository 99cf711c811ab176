"""What a data set promises at a group size: how much of it is silent, how strong its signal is, and where that lies.

Of n prompts with solve rates p. "Plug-in" puts each rate in place of the true one, which overstates silence where few
responses are behind a rate; "unbiased" figures come from the counts and need group_size responses a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from verl_gsd.planning.counts import expected_std_from_counts, silent_rate_from_counts
from verl_gsd.planning.rates import expected_std, fidelity, gain, required_group_size, silent_rate

#: Solve rates that are told apart, in order.
BINS = ("0", "0 to .1", ".1 to .4", ".4 to .6", ".6 to .9", ".9 to 1", "1")
#: Which of them are below .1 or above .9, the paper's extremes, and which is its middle.
EXTREMES, MIDDLE = (0, 1, 5, 6), 3


@dataclass(frozen=True)
class Unbiased:
    """Of the prompts with ``group_size`` responses or more: means, and of how many prompts."""

    prompts: int
    silent: float
    gain: float


@dataclass(frozen=True)
class Promise:
    """Means over all prompts in groups of ``group_size``.

    Attributes:
        silent, gain: plug-in P(all rewards agree) and E[sigma_hat].
        fidelity: of the prompts with 0 < p < 1; NaN where there is none. It is no property of the others.
        unbiased: the same from counts; None where no prompt has enough of them.
    """

    group_size: int
    silent: float
    gain: float
    fidelity: float
    unbiased: Unbiased | None


@dataclass(frozen=True, eq=False)
class Target:
    """Which group sizes reach ``wanted``.

    Attributes:
        criterion, wanted: fidelity or probability of a mixed group, at least this.
        smallest: (n,) the smallest size that does for each prompt; inf where none does, at p = 0 and 1.
    """

    criterion: Literal["fidelity", "mixed"]
    wanted: float
    smallest: np.ndarray

    def reached(self, group_size: int) -> float:
        """Share of prompts that ``group_size`` is enough for."""
        return float((self.smallest <= group_size).mean())

    def quantile(self, share: float) -> float:
        """The size that is enough for this ``share`` of the prompts; inf where none is."""
        ordered = np.sort(self.smallest)
        return float(ordered[max(0, int(np.ceil(share * len(ordered))) - 1)])


def promise(p: np.ndarray, correct: np.ndarray | None, total: np.ndarray | None, group_size: int) -> Promise:
    """Means at one group size.

    Args:
        p: (n,) solve rates.
        correct, total: (n,) integers behind them, or None.

    Raises:
        ValueError: a rate, count or group size is out of range (naming the entry).
    """
    interior = (p > 0) & (p < 1)
    faithful = float(np.mean(fidelity(p[interior], group_size))) if interior.any() else float("nan")
    silent, signal = (float(np.mean(of(p, group_size))) for of in (silent_rate, expected_std))
    unbiased = None
    if correct is not None and total is not None and (enough := total >= group_size).any():
        counts = (correct[enough], total[enough], group_size)
        unbiased = Unbiased(
            prompts=int(enough.sum()),
            silent=float(np.mean(silent_rate_from_counts(*counts))),
            gain=float(np.mean(expected_std_from_counts(*counts))),
        )
    return Promise(group_size, silent, signal, faithful, unbiased)


def target(p: np.ndarray, criterion: Literal["fidelity", "mixed"], wanted: float) -> Target:
    """Exact group sizes for a fidelity or a probability of a mixed group of at least ``wanted``.

    Raises:
        ValueError: ``wanted`` is not between 0 and 1, or the criterion has another name.
    """
    if not 0 < wanted < 1:
        raise ValueError(f"{criterion}={wanted:g}: write a number between 0 and 1")
    return Target(criterion, wanted, np.asarray(required_group_size(p, 1 - wanted, criterion)))


def bin_of(p: np.ndarray) -> np.ndarray:
    """(n,) the place in ``BINS`` of each rate; .1, .4, .6 and .9 belong to the bin that is nearer to 1/2."""
    inner = (p >= 0.1).astype(np.int64) + (p >= 0.4) + (p > 0.6) + (p > 0.9)
    return np.select([p == 0, p == 1], [0, len(BINS) - 1], inner + 1)


def by_bin(p: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """(n_bins,) each bin's share of ``weight`` (n,), of the prompts where None; NaN where all weigh nothing."""
    sums = np.bincount(bin_of(p), weight, minlength=len(BINS))
    with np.errstate(invalid="ignore"):
        return sums / sums.sum()


def gradient_mass(p: np.ndarray, alpha: float, group_size: int | None = None) -> np.ndarray:
    """(n,) what each prompt weighs in the update under the dial, E[sigma_hat^(2 - alpha)] of mixed groups.

    Args:
        group_size: None for the limit of large groups, (p (1-p))^((2 - alpha) / 2), which the paper's figures are of.
    """
    if group_size is not None:
        return np.asarray(gain(p, group_size, alpha))
    spread = p * (1 - p)
    return np.where(spread > 0, np.where(spread > 0, spread, 1.0) ** ((2 - alpha) / 2), 0.0)


def sampling_factor(silent: float) -> float:
    """Groups drawn for each that is kept where silent ones are replaced by other prompts' (DAPO): 1 / (1 - silent)."""
    return float("inf") if silent >= 1 else 1 / (1 - silent)
