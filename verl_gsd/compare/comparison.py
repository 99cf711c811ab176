"""Methods compared at equal generated tokens, over seeds.

The largest budget is what the shortest run generated, so that no curve is drawn beyond its end; an accuracy between two
validations is on the line between them. One test a label is made, at that budget and against the baseline, on the seeds
that both have; its p is adjusted for the number of labels as by Holm (Scandinavian Journal of Statistics 6, 1979):

    p_(i) of p_(1) <= ... <= p_(m) becomes max over j <= i of min(1, (m - j + 1) p_(j))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from verl_gsd.compare.curves import Curve, require_comparable
from verl_gsd.evaluation.intervals import Estimate, PairedTest, bootstrap_mean, paired_test

_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Cell:
    """A label at one budget.

    Attributes:
        accuracy: mean over the seeds that were validated by then, with its bootstrap interval; None where none was.
        against: what it has over the baseline, on seeds of both; None for the baseline, and without such a seed.
    """

    accuracy: Estimate | None
    against: PairedTest | None


@dataclass(frozen=True)
class Row:
    """A label.

    Attributes:
        seeds: rising.
        cells: one a budget.
        p_adjusted: Holm's, of the test at the largest budget; None where there is none.
        area: mean accuracy over the tokens from the latest first validation of all runs to the largest budget; None
            where that is empty.
        end_tokens, end_accuracy: at each seed's last validation, at unequal tokens.
    """

    label: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    p_adjusted: float | None
    area: Estimate | None
    end_tokens: Estimate
    end_accuracy: Estimate


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found.

    Attributes:
        budgets: generated tokens, rising.
        shortest: the run that generated least.
        rows: one a label, the baseline first.
        curves: all that took part.
    """

    baseline: str
    budgets: tuple[int, ...]
    shortest: Curve
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]

    @property
    def tests(self) -> int:
        return sum(row.p_adjusted is not None for row in self.rows)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(sorted({curve.seed for curve in self.curves}))


def compare(curves: Sequence[Curve], baseline: str) -> Comparison:
    """Compare the labels of ``curves`` with that of the baseline, at a quarter, half, three quarters and all of what
    the shortest run generated.

    Raises:
        ValueError: the curves cannot be compared (``require_comparable``), or none is of the baseline.
    """
    require_comparable(curves)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    if baseline not in labels:
        raise ValueError(f"--baseline {baseline}: no run of that. Write one of {', '.join(labels)}")
    shortest = min(curves, key=lambda curve: curve.tokens[-1])
    common = shortest.tokens[-1]
    budgets = list(dict.fromkeys(math.ceil(share * common) for share in _SHARES))
    labels.sort(key=lambda label: label != baseline)  # stable: the others keep their order
    of = {label: {curve.seed: curve for curve in curves if curve.label == label} for label in labels}
    others = {label: of[baseline] if label != baseline else {} for label in labels}
    cells = {label: tuple(_cell(of[label], others[label], budget) for budget in budgets) for label in labels}
    tested = {label: against.p_value for label in labels if (against := cells[label][-1].against)}
    adjusted = holm(tested)
    start = max(curve.tokens[0] for curve in curves)
    rows = [_row(label, of[label], cells[label], adjusted.get(label), (start, common)) for label in labels]
    return Comparison(baseline, tuple(budgets), shortest, tuple(rows), tuple(curves))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values by the same keys."""
    adjusted: dict[str, float] = {}
    so_far = 0.0
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p))
        adjusted[key] = so_far
    return adjusted


def mean_accuracy(curve: Curve, first: int, last: int) -> float:
    """The curve's mean over tokens from ``first`` to ``last``, both on it: the area below it by its width."""
    knots = np.array([first, *(tokens for tokens in curve.tokens if first < tokens < last), last])
    return float(trapezoid(np.interp(knots, curve.tokens, curve.accuracy), knots) / (last - first))


def _cell(own: Mapping[int, Curve], baseline: Mapping[int, Curve], budget: int) -> Cell:
    there, at_baseline = _known(own, budget), _known(baseline, budget)
    accuracy = bootstrap_mean(np.array(list(there.values()))) if there else None
    common = sorted(there.keys() & at_baseline.keys())
    if not common:
        return Cell(accuracy, None)
    first, second = (np.array([figures[seed] for seed in common]) for figures in (at_baseline, there))
    return Cell(accuracy, paired_test(first, second))


def _known(curves: Mapping[int, Curve], budget: int) -> dict[int, float]:
    """Accuracies by seed of the runs that were validated by then."""
    return {seed: value for seed, curve in curves.items() if not math.isnan(value := curve.at(budget))}


def _row(
    label: str, curves: Mapping[int, Curve], cells: tuple[Cell, ...], p_adjusted: float | None, span: tuple[int, int]
) -> Row:
    area = None
    if span[0] < span[1]:
        area = bootstrap_mean(np.array([mean_accuracy(curve, *span) for curve in curves.values()]))
    return Row(
        label,
        tuple(sorted(curves)),
        cells,
        p_adjusted,
        area,
        bootstrap_mean(np.array([curve.tokens[-1] for curve in curves.values()])),
        bootstrap_mean(np.array([curve.accuracy[-1] for curve in curves.values()])),
    )
