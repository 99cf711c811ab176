"""How often a 95% interval contains the true value, by simulation: accuracies over questions, and over seeds.

    .venv/bin/python benchmarks/interval_coverage.py

Over questions: a benchmark has Q questions, whose solve rates are drawn from a law of difficulty. Each question is
answered N times. The truth is the mean of the law. Laws are Beta distributions and mixtures in which few questions
carry most of the accuracy. They are not mirrored, because 1 - values have the mirrored interval. With one response per
question only the mean of a law matters, so that coverage is summed over all outcomes, for 400 means. Besides the
interval that the package uses, the script measures candidates that were not chosen, on the same draws.

Over seeds: S runs have true accuracies drawn from a Beta distribution, and are validated with R responses each. The
standard deviation between seeds is up to 0.3 of the mean, and at most 0.03. Differences are between two methods, the
second of which has the mean of the first, or twice that. Seeds that differ by as much as their mean, as
where most runs learn nothing, are beyond what the package states. They are in the file as ``seeds beyond``.

If the package's interval covers less than 0.945 in a cell, the cell is drawn again with ten times as many draws, and
only those count: the lowest of many estimates is too low by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import publishing
import typer
from scipy import stats

from verl_gsd.evaluation.intervals import (
    Estimate,
    difference_over_seeds,
    mean_accuracy_over_seeds,
    mean_by_question,
)

QUESTIONS, SAMPLES = (15, 30, 100, 300, 1000), (4, 32)
SEEDS, RESPONSES = (2, 3, 5, 8, 32), (30, 1024)
MEANS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)
#: Standard deviation between seeds, as a share of the mean. It is at most a tenth of this share.
SPREADS, LARGE_SPREAD = (0.0, 0.1, 0.3), 1.0
#: Mean accuracy of the second method, as a multiple of the first one's.
RATIOS = (1.0, 2.0)
DRAWS, LOW, FURTHER = 1000, 0.945, 10
Z = float(stats.norm.ppf(0.975))

#: (R, Q) values in [0, 1] -> the low and the high ends of R intervals.
Interval = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Law:
    """A law of difficulty: Beta(a, b), or a mixture of (weight, solve rate). The rest of the weight is at rate 0."""

    name: str
    beta: tuple[float, float] | None = None
    mixture: tuple[tuple[float, float], ...] = ()

    @property
    def mean(self) -> float:
        return self.beta[0] / sum(self.beta) if self.beta else sum(weight * rate for weight, rate in self.mixture)

    def draw(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        if self.beta:
            return rng.beta(*self.beta, shape)
        weights, rates = zip(*self.mixture, strict=True)
        return rng.choice([*rates, 0.0], shape, p=[*weights, 1 - sum(weights)])


def laws() -> list[Law]:
    found = [Law(f"Beta({a:g}, 1)", (a, 1.0)) for a in (1.0, 0.3, 0.1, 0.05)]
    for mean in MEANS:
        found.append(Law(f"all at {mean:g}", mixture=((1.0, mean),)))
        found += [Law(f"Beta, mean {mean:g}, a + b = {n:g}", (mean * n, (1 - mean) * n)) for n in (0.1, 1.0, 10.0)]
    mixtures = (
        ((0.04, 0.8), (0.3, 0.02)),
        ((0.02, 0.5),),
        ((0.01, 1.0),),
        ((0.05, 0.3),),
        ((0.01, 0.9), (0.1, 0.01)),
        ((0.03, 1.0), (0.97, 0.5)),
        ((0.02, 1.0), (0.9, 0.3)),
        ((0.1, 0.9), (0.5, 0.02)),
    )
    for parts in mixtures:
        found.append(Law(" and ".join(f"{weight:.0%} at {rate:g}" for weight, rate in parts), mixture=parts))
    return found


def ends(estimates: Iterable[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """The low and the high ends of intervals."""
    low, high = zip(*((estimate.low, estimate.high) for estimate in estimates), strict=True)
    return np.array(low), np.array(high)


def student(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, mean = values.shape[1], values.mean(axis=1)
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=1, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def wilson(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, share = values.shape[1], values.mean(axis=1)
    centre, half = share + Z**2 / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n)


def wilson_near_ends(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's if values are 0 and 1, or if fewer than 5 questions' worth are solved, or unsolved; else Student's."""
    solved, n = values.sum(axis=1), values.shape[1]
    is_near = (np.minimum(solved, n - solved) < 5) | np.isin(values, (0, 1)).all(axis=1)
    (low, high), (other_low, other_high) = wilson(values), student(values)
    return np.where(is_near, low, other_low), np.where(is_near, high, other_high)


def korn_graubard(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's interval for the effective number of trials (Survey Methodology 24, 1998)."""
    n, share, variance = values.shape[1], values.mean(axis=1), values.var(axis=1, ddof=1) / values.shape[1]
    is_spread = variance > 0
    effective = share * (1 - share) / np.where(is_spread, variance, 1) * (Z / stats.t.ppf(0.975, n - 1)) ** 2
    effective = np.where(is_spread, effective, n)
    solved = share * effective
    low, high = (
        stats.beta.ppf(0.025, solved, effective - solved + 1),
        stats.beta.ppf(0.975, solved + 1, effective - solved),
    )
    return np.nan_to_num(low, nan=0.0), np.nan_to_num(high, nan=1.0)


def pseudo(count: float, *, normal: bool = False) -> Interval:
    """``count`` pseudo-questions, half of them solved, with Student's or the normal quantile."""

    def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = values.shape[1] + count
        mean = (values.sum(axis=1) + count / 2) / both
        variance = ((values**2).sum(axis=1) + count / 2) / both - mean**2
        half = (Z if normal else stats.t.ppf(0.975, values.shape[1] - 1)) * np.sqrt(variance / both)
        return mean - half, mean + half

    return interval


USED = "the package's: three pseudo-questions, t"
CANDIDATES: dict[str, Interval] = {
    USED: lambda values: ends(map(mean_by_question, values)),
    "two pseudo-questions, t": pseudo(2),
    "four pseudo-questions, t": pseudo(4),
    "four pseudo-questions, normal": pseudo(4, normal=True),
    "Student's": student,
    "Wilson's, one trial per question": wilson,
    "Wilson's near 0 and 1 or for one response, else Student's": wilson_near_ends,
    "Korn and Graubard's": korn_graubard,
}


def coverage(interval: tuple[np.ndarray, np.ndarray], truth: float) -> float:
    """The share of intervals that contain ``truth``."""
    low, high = interval
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())


def draw_benchmarks(law: Law, questions: int, samples: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, questions) shares of right responses."""
    return rng.binomial(samples, law.draw(rng, (draws, questions))) / samples


def draw_seeds(
    mean: float, spread: float, shape: tuple[int, int], responses: int, rng: np.random.Generator
) -> np.ndarray:
    """Accuracies of runs whose true accuracies have this mean and the standard deviation of ``SPREADS``."""
    std = min(spread * min(mean, 1 - mean), spread / 10)
    if std == 0:
        return rng.binomial(responses, mean, shape) / responses
    both = mean * (1 - mean) / std**2 - 1
    return rng.binomial(responses, rng.beta(mean * both, (1 - mean) * both, shape)) / responses


def exact_coverage(interval: Interval, questions: int) -> dict[str, object]:
    """The lowest coverage over 400 accuracies if there is one response per question, summed over all outcomes."""
    solved = np.arange(questions + 1)
    low, high = interval((np.arange(questions) < solved[:, None]).astype(float))
    means = np.geomspace(0.001, 0.5, 400)
    contains = (low <= means[:, None]) & (means[:, None] <= high)
    covered = (stats.binom.pmf(solved, questions, means[:, None]) * contains).sum(axis=1)
    return {
        "questions": questions,
        "mean": means[covered.argmin()],
        "coverage": covered.min(),
        "average": covered.mean(),
    }


def of_questions(draws: int) -> dict[str, object]:
    """Coverage of all candidates over questions."""
    rng, cells, result = np.random.default_rng(0), dict[str, list[dict]](), {}
    widths: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for law in laws():
        for questions in QUESTIONS:
            for samples in SAMPLES:
                values = draw_benchmarks(law, questions, samples, draws, rng)
                for name, interval in CANDIDATES.items():
                    low, high = interval(values)
                    widths[name].append(float((np.clip(high, 0, 1) - np.clip(low, 0, 1)).mean()))
                    covered = coverage((low, high), law.mean)
                    if name == USED and covered < LOW:
                        again = (draw_benchmarks(law, questions, samples, draws, rng) for _ in range(FURTHER))
                        covered = float(np.mean([coverage(interval(values), law.mean) for values in again]))
                    cell = {"law": law.name, "questions": questions, "samples": samples, "coverage": covered}
                    cells.setdefault(name, []).append(cell)
    for name, of_candidate in cells.items():
        exact = min((exact_coverage(CANDIDATES[name], n) for n in QUESTIONS), key=lambda cell: cell["coverage"])
        result[name] = {
            "cells": len(of_candidate),
            "below_0.93": sum(cell["coverage"] < 0.93 for cell in of_candidate),
            "worst": min(of_candidate, key=lambda cell: cell["coverage"]),
            "mean": float(np.mean([cell["coverage"] for cell in of_candidate])),
            "one_response_worst": exact,
            "width": float(np.median(np.array(widths[name]) / widths[USED])),
        }
    return result


def of_seeds(draws: int, spreads: tuple[float, ...], further: int) -> dict[str, object]:
    """Coverage of means and differences over seeds, with and without the number of responses.

    Args:
        further: how many times ``draws`` are drawn again where the coverage is low.
    """
    rng, cells = np.random.default_rng(1), dict[str, list[dict]]()

    def measure(name: str, draw: Callable[[], tuple[np.ndarray, np.ndarray]], truth: float, cell: dict) -> None:
        covered = coverage(draw(), truth)
        if covered < LOW and further and "Student" not in name:
            covered = float(np.mean([coverage(draw(), truth) for _ in range(further)]))
        cells.setdefault(name, []).append({**cell, "coverage": covered})

    for mean in MEANS:
        for spread in spreads:
            for responses in RESPONSES:
                for seeds in SEEDS:
                    shape, cell = (
                        (draws, seeds),
                        {"mean": mean, "spread": spread, "responses": responses, "seeds": seeds},
                    )

                    def one(ratio: float = 1.0) -> np.ndarray:
                        return draw_seeds(ratio * mean, spread, shape, responses, rng)  # noqa: B023

                    total = seeds * responses

                    def means() -> tuple[np.ndarray, np.ndarray]:
                        return ends(mean_accuracy_over_seeds(values, total) for values in one())  # noqa: B023

                    measure("mean", means, mean, cell)
                    measure("mean, Student's", lambda: student(one()), mean, cell)
                    for ratio in RATIOS if mean < 0.5 else (1.0,):

                        def differences(ratio: float = ratio) -> tuple[np.ndarray, np.ndarray]:
                            pairs = zip(one(), one(ratio), strict=True)
                            return ends(difference_over_seeds(*pair, total) for pair in pairs)  # noqa: B023

                        truth = (ratio - 1) * mean
                        measure("difference", differences, truth, {**cell, "ratio": ratio})
                        measure(
                            "difference, Student's",
                            lambda ratio=ratio: student(one(ratio) - one()),
                            truth,
                            {**cell, "ratio": ratio},
                        )
    return {
        name: {
            "cells": len(found),
            "below_0.93": sum(cell["coverage"] < 0.93 for cell in found),
            "worst": min(found, key=lambda cell: cell["coverage"]),
            "mean": float(np.mean([cell["coverage"] for cell in found])),
            "worst_by_seeds": {
                seeds: min(cell["coverage"] for cell in found if cell["seeds"] == seeds) for seeds in SEEDS
            },
        }
        for name, found in cells.items()
    }


def main(
    draws: Annotated[int, typer.Option(help="Simulated benchmarks, or methods, per cell.")] = DRAWS,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(
        "benchmarks/results/interval_coverage.json"
    ),
) -> None:
    """Simulate, print, write down."""
    result = {
        "draws": draws,
        "questions": of_questions(draws),
        "seeds": of_seeds(draws, SPREADS, FURTHER),
        "seeds beyond": of_seeds(draws, (LARGE_SPREAD,), 0),
    }
    for part in list(result)[1:]:
        for name, found in result[part].items():
            print(f"{part}: {name}: {found['below_0.93']} of {found['cells']} cells below 0.93, worst {found['worst']}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
