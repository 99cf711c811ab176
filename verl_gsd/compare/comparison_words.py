"""A comparison in words and rows, on a terminal and on a page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from verl_gsd.compare.comparison import Comparison, Row
from verl_gsd.compare.run_curves import SHUFFLE, VALIDATED
from verl_gsd.evaluation.intervals import Estimate, PairedTest

#: What neither the interval nor the test parts.
TIE = "no difference seen at 95%"
_NOTHING = "-"
_LEVEL = 0.05


def setting(comparison: Comparison) -> str:
    """What is compared, and how far."""
    shortest = comparison.shortest
    return (
        f"Accuracy on held-out prompts of {shortest.data_source}, at equal generated tokens. The run that generated "
        f"least is {shortest.name}, with {shortest.tokens[-1]:,}: no budget is above that."
    )


def caveats(comparison: Comparison) -> list[str]:
    """What the figures cannot say."""
    counts = [row.cells[-1].against.difference.n for row in comparison.rows if row.cells[-1].against]
    fewest = min(counts, default=0)
    said = [
        "Tokens are all that training generated, evicted groups included. Not counted: steps that a resume undid, "
        "groups that waited in the end, validation, a judge's answers.",
        "Between two validations an accuracy is on the line between them; before a run's first one it has none.",
        "Intervals of means are bootstrap percentiles over seeds: from five seeds a 95% interval holds the mean in "
        "some 84 of 100 cases. Differences have Student's interval over the seeds of both.",
        "An interval is over training seeds. " + _validated_on(comparison),
    ]
    if comparison.tests:
        said.append(
            f"Comparisons with {comparison.baseline}: {comparison.tests}, one a method, at the largest budget alone. "
            "Holm's p counts them all."
        )
    if counts and comparison.tests * 2 * 0.5**fewest > _LEVEL:
        needed = math.ceil(math.log2(2 * comparison.tests / _LEVEL))
        said.append(
            f"Seeds of both: {fewest} where they are fewest. The sign-flip test then has no p below "
            f"{2 * 0.5**fewest:.2g}, whatever they show; Holm's of {comparison.tests} can be below {_LEVEL:g} from "
            f"{needed} seeds on."
        )
    return said


def _validated_on(comparison: Comparison) -> str:
    if any(curve.validation.get(SHUFFLE) for curve in comparison.curves):
        return f"Each seed is validated on a choice of its own ({VALIDATED}, {SHUFFLE}), all methods of a seed on one."
    return "All seeds are validated on the same prompts, whose choice it leaves out."


def accuracy_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each label's accuracy at each budget."""
    header = ["method", "seeds", *(f"{budget:,} tokens" for budget in comparison.budgets), "mean over tokens"]
    rows = [
        [
            row.label,
            seeds_of(row, comparison.all_seeds),
            *(_over_seeds(cell.accuracy, len(row.seeds)) for cell in row.cells),
            _over_seeds(row.area, len(row.seeds)) if row.area else _NOTHING,
        ]
        for row in comparison.rows
    ]
    return header, rows


def against_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each label against the baseline at the largest budget."""
    header = ["method", "difference", "seeds of both", "won, tied, lost", "p", "p, Holm", "verdict"]
    rows = []
    for row in comparison.rows:
        if row.label == comparison.baseline:
            continue
        against = row.cells[-1].against
        if against is None or row.p_adjusted is None:
            rows.append([row.label, *[_NOTHING] * 5, "no seed of both was validated by then"])
            continue
        wins = f"{against.wins}, {against.ties}, {against.losses}"
        figures = [f"{against.p_value:.3g}", f"{row.p_adjusted:.3g}"]
        seen = verdict(against, row.p_adjusted)
        rows.append([row.label, _signed(against.difference), str(against.difference.n), wins, *figures, seen])
    return header, rows


def end_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: where each label's runs ended, at unequal tokens."""
    header = ["method", "last step", "tokens, mean", "accuracy there"]
    rows = []
    for row in comparison.rows:
        steps = sorted({curve.steps[-1] for curve in comparison.curves if curve.label == row.label})
        last = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
        accuracy = _over_seeds(row.end_accuracy, len(row.seeds))
        rows.append([row.label, last, f"{row.end_tokens.value:,.0f}", accuracy])
    return header, rows


def seeds_of(row: Row, all_seeds: Sequence[int]) -> str:
    """``1, 2, 3``, and that it is partial where another label has more."""
    listed = ", ".join(map(str, row.seeds))
    partial = len(row.seeds) < len(all_seeds)
    return f"{listed} (partial: {len(row.seeds)} of {len(all_seeds)} seeds)" if partial else listed


def verdict(against: PairedTest, p_adjusted: float) -> str:
    """What a difference amounts to: both the interval and the adjusted test must see it for a plain word."""
    difference = against.difference
    if difference.n == 1:
        return "one seed says nothing"
    by_interval = difference.low > 0 or difference.high < 0
    by_test = p_adjusted <= _LEVEL
    word = "better" if difference.value > 0 else "worse"
    if by_interval and by_test:
        return word
    if by_interval:
        return f"{word} by the interval, not by the test"
    return f"{word} by the test, not by the interval" if by_test else TIE


def _over_seeds(estimate: Estimate | None, seeds: int) -> str:
    """With its interval where there is one, and of how many seeds where some have nothing."""
    if estimate is None:
        return "none so far"
    known = str(estimate) if math.isfinite(estimate.low) else f"{estimate.value:.3f}"
    return known if estimate.n == seeds else f"{known}, {estimate.n} of {seeds} seeds"


def _signed(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"{estimate.value:+.3f}"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
