"""The prompts a lab works on: solve rates that a user has, or a Beta mixture as wide as Big-Math's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from verl_gsd.solve_rates import SolveRates

#: (weight, a, b) of Beta distributions of the solve rate. Found by maximum likelihood, two components, from the 65
#: counts of Big-Math's published difficulty histogram (arXiv 2607.00152: 215,608 prompts, 64 responses each), rounded.
#: 64 responses then all fail for 5.1 % of prompts and all succeed for 7.5 % (published: 4.0 and 7.2 %); groups of 8 are
#: silent in 42.6 % (43.1 %).
MIXTURE = ((0.8, 0.72, 0.49), (0.2, 1.57, 27.9))
#: Responses behind each of the mixture's rates, as behind Big-Math's; and how many prompts stand for it.
MIXTURE_SAMPLES, MIXTURE_PROMPTS = 64, 20_000

#: Where the paper's controlled run starts, whatever was measured: a logit has no 0 and no 1.
LOWEST, HIGHEST = 0.02, 0.98


@dataclass(frozen=True, eq=False)
class Prompts:
    """What is known of n prompts.

    Attributes:
        origin: where from, in words.
        rate: (n,) float64 in [0, 1].
        correct, total: (n,) int64, counts behind the rates; None where nobody knows them.
        invented: whether these are the mixture's, so that figures about a data set need not agree with anybody's.
    """

    origin: str
    rate: np.ndarray
    correct: np.ndarray | None
    total: np.ndarray | None
    invented: bool = False


def mixture() -> Prompts:
    """``MIXTURE_PROMPTS`` prompts at the middle quantiles of the mixture's counts, the same ones every time."""
    counts = np.arange(MIXTURE_SAMPLES + 1)
    share = sum(weight * betabinom.pmf(counts, MIXTURE_SAMPLES, a, b) for weight, a, b in MIXTURE)
    correct = counts[np.searchsorted(np.cumsum(share), _middles(MIXTURE_PROMPTS))]
    terms = " + ".join(f"{weight:g} Beta({a:g}, {b:g})" for weight, a, b in MIXTURE)
    total: np.ndarray = np.full(MIXTURE_PROMPTS, MIXTURE_SAMPLES)
    return Prompts(f"the Beta mixture {terms}", correct / MIXTURE_SAMPLES, correct, total, invented=True)


def measured(rates: SolveRates) -> Prompts:
    """Prompts whose solve rates were read from somewhere."""
    return Prompts(str(rates.path), rates.rate, rates.correct, rates.total)


def starting_rates(prompts: Prompts, n: int) -> np.ndarray:
    """(n,) float64, ascending: the middle quantiles of the rates that are neither 0 nor 1, clipped to 0.02 and 0.98.

    The paper's start: a prompt that never or always succeeded has no logit that anybody measured.

    Raises:
        ValueError: every rate is 0 or 1.
    """
    interior = np.sort(prompts.rate[(prompts.rate > 0) & (prompts.rate < 1)])
    if not len(interior):
        raise ValueError(
            f"{prompts.origin}: all {len(prompts.rate)} solve rates are 0 or 1, where no group disagrees; the lab "
            "needs one in between"
        )
    return np.quantile(interior, _middles(n), method="inverted_cdf").clip(LOWEST, HIGHEST)


def _middles(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n
