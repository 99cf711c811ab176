"""The text and the tables of a comparison, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verl_gsd.compare.comparison import Comparison, LabelResult
from verl_gsd.compare.curves import listed
from verl_gsd.compare.run_curves import SHUFFLE, VALIDATED
from verl_gsd.evaluation.intervals import Estimate, PairedTest
from verl_gsd.rundir import EXACT, HELD_OUT_PROMPTS

#: The title of ``accuracy_table``.
ACCURACY_TITLE = "Accuracy, at equal numbers of generated tokens"
#: The verdict if neither the interval nor the test shows a difference.
TIE = "no difference seen at 95%"
#: The verdict if a run has no validation near the largest budget.
NOT_MEASURED = "none: too few validations"
_MISSING = "-"
_SIGNIFICANCE = 0.05


def describe_setup(comparison: Comparison) -> str:
    """Return what is compared, and at which largest budget."""
    shortest = comparison.shortest
    return (
        f"Accuracy on held-out prompts of {shortest.data_source}, at equal generated tokens. All runs are compared up "
        f"to {shortest.tokens[-1]:,} tokens, because {shortest.name} generated no more."
    )


def caveats(comparison: Comparison) -> list[str]:
    """Return how the numbers were computed, and what they cannot show."""
    counts = [row.cells[-1].against.difference.n for row in comparison.rows if row.cells[-1].against]
    fewest = min(counts, default=0)
    sentences = [
        "Tokens are all that training generated, including evicted groups. Not counted: steps that a resume discarded, "
        "groups still waiting at the end, validation, and the judge's answers.",
        "Between two validations, accuracy is interpolated linearly. Before a run's first validation it has none.",
        "Intervals are 95% intervals over seeds: of means over the seeds of a method, of differences over the seeds "
        "that both methods have. They are Student's t intervals, but never narrower than the sampling error of the "
        "validations' responses allows. Those of accuracies are cut at 0 and 1. One seed has no interval.",
        "Intervals are over training seeds. " + _validated_on(comparison),
    ]
    for curve in comparison.unmeasured.values():
        before, after = curve.around(comparison.budgets[-1])
        sentences.append(
            f"{curve.name} was not validated between {before:,} and {after:,} tokens, so that its accuracy at "
            f"{comparison.budgets[-1]:,} tokens is a guess and there is no verdict on {curve.label}. Validate more "
            "often (trainer.test_freq)."
        )
    if comparison.tests:
        sentences.append(
            "p is the p-value of the sign-flip test: how likely the seeds would show at least this difference if the "
            f"methods were equal. Comparisons with {comparison.baseline}: {comparison.tests}, one per method, only at "
            "the largest budget. Holm's p accounts for all of them."
        )
    if counts and comparison.tests * 2 * 0.5**fewest > _SIGNIFICANCE:
        needed = math.ceil(math.log2(2 * comparison.tests / _SIGNIFICANCE))
        seeds = "1 seed" if fewest == 1 else f"{fewest} seeds"
        comparisons = "1 comparison" if comparison.tests == 1 else f"{comparison.tests} comparisons"
        sentences.append(
            f"These are too few seeds for the verdicts better and worse. A comparison here has {seeds} of both "
            f"methods, with which the p of the sign-flip test cannot be below {2 * 0.5**fewest:.2g}, however large the "
            f"difference is. Train at least {needed} seeds of each method: Holm's p over {comparisons} can then be "
            f"below {_SIGNIFICANCE:g}."
        )
    unknown = [
        curve for curve in comparison.curves if curve.responses is None and curve.validation.get("metric") != EXACT
    ]
    if unknown:
        sentences.append(
            f"The number of responses behind the accuracies of {unknown[0].name} is unknown, because its metrics have "
            f"no {HELD_OUT_PROMPTS}{unknown[0].data_source}. Intervals of such runs are Student's alone. They are too "
            "narrow near accuracies of 0 and 1 and for few held-out prompts, and there is none if all seeds have the "
            "same value."
        )
    for curve in comparison.curves:
        if curve.changes:
            sentences.append(
                f"{curve.name} was resumed with other settings, so that its accuracy is not that of one method: "
                f"{listed(curve.changes)}."
            )
    without = [curve for curve in comparison.curves if not curve.settings]
    if any(len(row.seeds) > 1 and row.label == curve.label for row in comparison.rows for curve in without):
        sentences.append(
            f"The settings of {without[0].name} are unknown, so they were not compared with those of other runs with "
            "the same label. Files of --output have no settings."
        )
    return sentences


def _validated_on(comparison: Comparison) -> str:
    if any(curve.validation.get(SHUFFLE) for curve in comparison.curves):
        return (
            f"Each seed is validated on its own sample of prompts ({VALIDATED}, {SHUFFLE}). All methods with the same "
            "seed use the same sample."
        )
    return "All seeds are validated on the same prompts, so the intervals do not include the choice of prompts."


def against_title(comparison: Comparison) -> str:
    """Return the title of ``against_table``."""
    return f"Difference from {comparison.baseline} in accuracy, at {comparison.budgets[-1]:,} tokens"


def accuracy_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the accuracy of each label at each budget. ``ACCURACY_TITLE`` is their title."""
    first, last = comparison.span
    mean_name = f"mean, {first:,} to {last:,}" if first < last else "mean"
    header = ["method", "seeds", *(f"{budget:,}" for budget in comparison.budgets), mean_name]
    rows = [
        [
            row.label,
            format_seeds(row, comparison.all_seeds),
            *(_over_seeds(cell.accuracy, len(row.seeds)) for cell in row.cells),
            _over_seeds(row.area, len(row.seeds)) if row.area else _MISSING,
        ]
        for row in comparison.rows
    ]
    return header, rows


def against_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of each label's comparison with the baseline, at the largest budget."""
    header = [
        "method",
        "difference",
        "seeds",
        "won, tied, lost",
        "p",
        "p (Holm)",
        "verdict",
    ]
    rows, unmeasured = [], comparison.unmeasured.keys()
    for row in comparison.rows:
        if row.label == comparison.baseline:
            continue
        against = row.cells[-1].against
        if against is None or row.p_adjusted is None:
            rows.append([row.label, *[_MISSING] * 5, "no seed of both was validated by then"])
            continue
        rows.append(
            [
                row.label,
                _signed(against.difference),
                str(against.difference.n),
                f"{against.wins}, {against.ties}, {against.losses}",
                f"{against.p_value:.3g}",
                f"{row.p_adjusted:.3g}",
                NOT_MEASURED if unmeasured & {row.label, comparison.baseline} else verdict(against, row.p_adjusted),
            ]
        )
    return header, rows


def end_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of each label's last validations, at unequal tokens."""
    header = ["method", "last step", "tokens, mean over seeds", "accuracy"]
    rows = []
    for row in comparison.rows:
        steps = sorted({curve.steps[-1] for curve in comparison.curves if curve.label == row.label})
        last = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
        accuracy = _over_seeds(row.end_accuracy, len(row.seeds))
        rows.append([row.label, last, f"{row.end_tokens.value:,.0f}", accuracy])
    return header, rows


def format_seeds(row: LabelResult, all_seeds: Sequence[int]) -> str:
    """Return seeds such as ``1-16, 20``, with the note "partial" if other labels have more seeds."""
    spans: list[list[int]] = []
    for seed in row.seeds:
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    # A negative seed would make a range hard to read.
    is_range = [len(span) > 2 and span[0] >= 0 for span in spans]
    listed = ", ".join(
        f"{span[0]}-{span[-1]}" if shortened else ", ".join(map(str, span))
        for span, shortened in zip(spans, is_range, strict=True)
    )
    partial = len(row.seeds) < len(all_seeds)
    return f"{listed} (partial: {len(row.seeds)} of {len(all_seeds)})" if partial else listed


def verdict(against: PairedTest, p_adjusted: float) -> str:
    """Return the verdict on a difference: plainly better or worse only if the interval and the adjusted test agree."""
    difference = against.difference
    if difference.n == 1:
        return "one seed is not enough"
    by_interval = difference.low > 0 or difference.high < 0
    by_test = p_adjusted <= _SIGNIFICANCE
    word = "better" if difference.value > 0 else "worse"
    if by_interval and by_test:
        return word
    if by_interval:
        return f"{word} by the interval, not by the test"
    return f"{word} by the test, not by the interval" if by_test else TIE


def _over_seeds(estimate: Estimate | None, seeds: int) -> str:
    """Return the mean with its finite interval, and the number of seeds if some have no value."""
    if estimate is None:
        return "none so far"
    return str(estimate) if estimate.n == seeds else f"{estimate}, {estimate.n} of {seeds} seeds"


def _signed(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
