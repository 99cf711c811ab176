"""Compares methods at equal generated tokens, over seeds. Each method has a label.

The largest budget is the number of tokens that the shortest run generated, so that no curve is extrapolated. Between
two validations, accuracy is interpolated linearly. There is one test per label: against the baseline, at the largest
budget, on the seeds that both have. Its p-value is adjusted for the number of labels with Holm's method (Scandinavian
Journal of Statistics 6, 1979):

    for p_(1) <= ... <= p_(m), the adjusted p_(i) is the maximum over j <= i of min(1, (m - j + 1) p_(j))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

from verl_gsd.compare.curves import Curve, check_comparable
from verl_gsd.evaluation.intervals import Estimate, PairedTest, mean_accuracy_over_seeds, paired_test, student_mean

_SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class BudgetResult:
    """The result of one label at one budget.

    Attributes:
        accuracy: mean over the seeds that had a validation within the budget, with Student's interval within [0, 1];
            None if no seed had one.
        against: comparison with the baseline on the seeds that both have; None for the baseline itself, and if there is
            no such seed.
    """

    accuracy: Estimate | None
    against: PairedTest | None


@dataclass(frozen=True)
class LabelResult:
    """All results of one label.

    Attributes:
        seeds: in ascending order.
        cells: one per budget.
        p_adjusted: Holm's adjusted p-value of the test at the largest budget; None if there is no test.
        area: mean accuracy over tokens, from the latest first validation of all runs to the largest budget; None if
            that range is empty.
        end_tokens, end_accuracy: mean over the seeds' last validations. Token counts differ between seeds.
    """

    label: str
    seeds: tuple[int, ...]
    cells: tuple[BudgetResult, ...]
    p_adjusted: float | None
    area: Estimate | None
    end_tokens: Estimate
    end_accuracy: Estimate


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare_curves``.

    Attributes:
        budgets: generated tokens, in ascending order.
        shortest: the run that generated the fewest tokens.
        rows: one per label, the baseline first.
        curves: all compared curves.
    """

    baseline: str
    budgets: tuple[int, ...]
    shortest: Curve
    rows: tuple[LabelResult, ...]
    curves: tuple[Curve, ...]

    @property
    def tests(self) -> int:
        return sum(row.p_adjusted is not None for row in self.rows)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return tuple(sorted({curve.seed for curve in self.curves}))


def compare_curves(curves: Sequence[Curve], baseline: str) -> Comparison:
    """Compare each label with the baseline, at 25%, 50%, 75% and 100% of the tokens that the shortest run generated.

    Raises:
        ValueError: the curves cannot be compared (``check_comparable``), or no curve has the label ``baseline``.
    """
    check_comparable(curves)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    if baseline not in labels:
        raise ValueError(f"--baseline {baseline}: no run has this label. Use one of {', '.join(labels)}")
    shortest = min(curves, key=lambda curve: curve.tokens[-1])
    largest = shortest.tokens[-1]
    budgets = list(dict.fromkeys(math.ceil(share * largest) for share in _SHARES))
    labels.sort(key=lambda label: label != baseline)  # stable: the other labels keep their order
    by_seed = {label: {curve.seed: curve for curve in curves if curve.label == label} for label in labels}
    baselines = {label: by_seed[baseline] if label != baseline else {} for label in labels}
    cells = {
        label: tuple(_at_budget(by_seed[label], baselines[label], budget) for budget in budgets) for label in labels
    }
    p_values = {label: against.p_value for label in labels if (against := cells[label][-1].against)}
    adjusted = holm(p_values)
    start = max(curve.tokens[0] for curve in curves)
    rows = [
        _label_result(label, by_seed[label], cells[label], adjusted.get(label), (start, largest)) for label in labels
    ]
    return Comparison(baseline, tuple(budgets), shortest, tuple(rows), tuple(curves))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p-values, with the same keys."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for position, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        adjusted[key] = largest
    return adjusted


def mean_accuracy(curve: Curve, first: int, last: int) -> float:
    """Return the curve's mean accuracy over tokens from ``first`` to ``last``: the area below it, divided by its width.

    Both ends must lie within the curve.
    """
    knots = np.array([first, *(tokens for tokens in curve.tokens if first < tokens < last), last])
    return float(trapezoid(np.interp(knots, curve.tokens, curve.accuracy), knots) / (last - first))


def _at_budget(curves: Mapping[int, Curve], baseline: Mapping[int, Curve], budget: int) -> BudgetResult:
    own, others = _accuracies(curves, budget), _accuracies(baseline, budget)
    accuracy = mean_accuracy_over_seeds(np.array(list(own.values()))) if own else None
    common_seeds = sorted(own.keys() & others.keys())
    if not common_seeds:
        return BudgetResult(accuracy, None)
    first, second = (np.array([accuracies[seed] for seed in common_seeds]) for accuracies in (others, own))
    return BudgetResult(accuracy, paired_test(first, second))


def _accuracies(curves: Mapping[int, Curve], budget: int) -> dict[int, float]:
    """Return accuracies by seed, without the runs whose first validation is after ``budget``."""
    return {seed: value for seed, curve in curves.items() if not math.isnan(value := curve.at(budget))}


def _label_result(
    label: str,
    curves: Mapping[int, Curve],
    cells: tuple[BudgetResult, ...],
    p_adjusted: float | None,
    span: tuple[int, int],
) -> LabelResult:
    area = None
    if span[0] < span[1]:
        area = mean_accuracy_over_seeds(np.array([mean_accuracy(curve, *span) for curve in curves.values()]))
    return LabelResult(
        label,
        tuple(sorted(curves)),
        cells,
        p_adjusted,
        area,
        student_mean(np.array([curve.tokens[-1] for curve in curves.values()])),
        mean_accuracy_over_seeds(np.array([curve.accuracy[-1] for curve in curves.values()])),
    )
