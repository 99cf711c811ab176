"""The prompts of the lab: measured solve rates, or a Beta mixture that spreads about as widely as Big-Math's rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from verl_gsd.solve_rates import SolveRates

#: (weight, a, b) of Beta distributions of the solve rate: two components, fitted by maximum likelihood to the 65 counts
#: of Big-Math's published difficulty histogram (arXiv 2607.00152: 215,608 prompts, 64 responses each), and rounded.
#: All 64 responses then fail for 5.1% of prompts (published: 4.0%) and succeed for 7.5% (published: 7.2%). Of groups of
#: 8, 42.6% are silent (published: 43.1%).
MIXTURE = ((0.8, 0.72, 0.49), (0.2, 1.57, 27.9))
#: How many responses are behind each of the mixture's rates (as many as in Big-Math), and how many prompts stand for
#: the mixture.
MIXTURE_SAMPLES, MIXTURE_PROMPTS = 64, 20_000

#: The paper's controlled run clips the rates at the start to this range: rates of 0 and 1 have no finite logit.
LOWEST, HIGHEST = 0.02, 0.98


@dataclass(frozen=True, eq=False)
class Prompts:
    """Solve rates of n prompts.

    Attributes:
        origin: where the rates are from, as a part of a sentence.
        rate: (n,) float64 in [0, 1].
        correct, total: (n,) int64, the counts behind the rates; None if they are unknown.
        invented: whether the rates are the mixture's, so that figures of a data set need not agree with published ones.
    """

    origin: str
    rate: np.ndarray
    correct: np.ndarray | None
    total: np.ndarray | None
    invented: bool = False


def mixture() -> Prompts:
    """``MIXTURE_PROMPTS`` prompts at the middle quantiles of the mixture's counts; every call returns the same ones."""
    counts = np.arange(MIXTURE_SAMPLES + 1)
    share = sum(weight * betabinom.pmf(counts, MIXTURE_SAMPLES, a, b) for weight, a, b in MIXTURE)
    correct = counts[np.searchsorted(np.cumsum(share), _middle_quantiles(MIXTURE_PROMPTS))]
    terms = " + ".join(f"{weight:g} Beta({a:g}, {b:g})" for weight, a, b in MIXTURE)
    total: np.ndarray = np.full(MIXTURE_PROMPTS, MIXTURE_SAMPLES)
    return Prompts(f"the Beta mixture {terms}", correct / MIXTURE_SAMPLES, correct, total, invented=True)


def measured(rates: SolveRates) -> Prompts:
    """Prompts with solve rates that were read from files."""
    return Prompts(str(rates.path), rates.rate, rates.correct, rates.total)


def starting_rates(prompts: Prompts, n: int) -> np.ndarray:
    """(n,) float64, ascending: the middle quantiles of the rates between 0 and 1, clipped to 0.02 and 0.98.

    This is the paper's start. It leaves out rates of 0 and 1: they have no finite logit.

    Raises:
        ValueError: every rate is 0 or 1.
    """
    interior = np.sort(prompts.rate[(prompts.rate > 0) & (prompts.rate < 1)])
    if not len(interior):
        raise ValueError(
            f"{prompts.origin}: all {len(prompts.rate)} solve rates are 0 or 1, so that no group is mixed. Use solve "
            "rates of which one at least lies in between."
        )
    return np.quantile(interior, _middle_quantiles(n), method="inverted_cdf").clip(LOWEST, HIGHEST)


def _middle_quantiles(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n
