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
from dataclasses import dataclass, replace

import numpy as np
from scipy.integrate import trapezoid

from verl_gsd.compare.curves import Curve, check_comparable
from verl_gsd.evaluation.intervals import (
    Estimate,
    PairedTest,
    difference_over_seeds,
    mean_accuracy_over_seeds,
    paired_test,
    student_mean,
)

_SHARES = (0.25, 0.5, 0.75, 1.0)
#: A validation that is farther from a budget than this share of it says little about the accuracy there.
_NEAR = 0.125


@dataclass(frozen=True)
class BudgetResult:
    """The result of one label at one budget.

    Attributes:
        accuracy: mean over the seeds that had a validation within the budget, with its interval over seeds; None if no
            seed had one.
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
        area: mean accuracy over tokens in ``Comparison.span``; None if that range is empty.
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
        span: the range of tokens that all runs' validations cover: from the latest first validation of all runs to the
            largest budget. Means over tokens are over this range.
        shortest: the run that generated the fewest tokens.
        rows: one per label, the baseline first.
        curves: all compared curves.
    """

    baseline: str
    budgets: tuple[int, ...]
    span: tuple[int, int]
    shortest: Curve
    rows: tuple[LabelResult, ...]
    curves: tuple[Curve, ...]

    @property
    def tests(self) -> int:
        return sum(row.p_adjusted is not None for row in self.rows)

    @property
    def unmeasured(self) -> dict[str, Curve]:
        """Label -> a run without a validation near the largest budget, for labels that have one.

        The accuracy of such a run is a point of a straight line between two distant validations. Learning curves are
        no straight lines, so that a difference there can be one of the line alone.
        """
        budget = self.budgets[-1]
        far = [curve for curve in self.curves if min(abs(tokens - budget) for tokens in curve.tokens) > _NEAR * budget]
        return {curve.label: curve for curve in reversed(far)}

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
    span = (max(curve.tokens[0] for curve in curves), largest)
    rows = [_label_result(label, by_seed[label], cells[label], adjusted.get(label), span) for label in labels]
    return Comparison(baseline, tuple(budgets), span, shortest, tuple(rows), tuple(curves))


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
    accuracy = mean_over_seeds([curves[seed] for seed in own], list(own.values())) if own else None
    common_seeds = sorted(own.keys() & others.keys())
    if not common_seeds:
        return BudgetResult(accuracy, None)
    first, second = (np.array([accuracies[seed] for seed in common_seeds]) for accuracies in (others, own))
    pairs = [curve for by_seed in (curves, baseline) for curve in map(by_seed.__getitem__, common_seeds)]
    trials = None if (both := _responses(pairs)) is None else both // 2
    difference = difference_over_seeds(first, second, trials)
    return BudgetResult(accuracy, replace(paired_test(first, second), difference=difference))


def mean_over_seeds(curves: Sequence[Curve], accuracies: Sequence[float]) -> Estimate:
    """Return the mean of one accuracy per curve, with its interval over seeds.

    An accuracy between two validations, or a mean of several, counts as one validation.
    """
    return mean_accuracy_over_seeds(np.array(accuracies), _responses(curves))


def _responses(curves: Sequence[Curve]) -> int | None:
    """Return the number of responses behind one validation of each curve; None if it is unknown of one of them."""
    counts = [curve.responses for curve in curves if curve.responses is not None]
    return sum(counts) if len(counts) == len(curves) else None


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
    own = list(curves.values())
    area = mean_over_seeds(own, [mean_accuracy(curve, *span) for curve in own]) if span[0] < span[1] else None
    return LabelResult(
        label,
        tuple(sorted(curves)),
        cells,
        p_adjusted,
        area,
        student_mean(np.array([curve.tokens[-1] for curve in own])),
        mean_over_seeds(own, [curve.accuracy[-1] for curve in own]),
    )
