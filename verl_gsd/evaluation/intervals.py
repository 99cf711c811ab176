"""Confidence intervals for an accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Proportion:
    """A share of ``n`` independent trials with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson(correct: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval for ``correct`` successes in ``n`` independent trials.

    Raises:
        ValueError: ``n`` is not positive or ``correct`` is outside [0, n].
    """
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct={correct} of n={n}: need 0 <= correct <= n and n >= 1")
    interval = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    return Proportion(correct / n, float(interval.low), float(interval.high), n)
