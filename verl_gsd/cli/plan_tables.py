"""The text and tables that ``verl-gsd plan`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from verl_gsd.console import out
from verl_gsd.planning.summary import (
    BINS,
    EXTREMES,
    MIDDLE,
    GroupSizeSummary,
    Target,
    gradient_mass,
    sampling_factor,
    share_by_bin,
)
from verl_gsd.solve_rates import SolveRates

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Name of ``EXTREMES``.
_ENDS = "below 0.1 or above 0.9"


def show(
    rates: SolveRates, summaries: Sequence[GroupSizeSummary], alphas: Sequence[float], targets: Sequence[Target]
) -> None:
    """Print what was read, then the tables by group size, by solve rate, and by target."""
    for sentence in source_sentences(rates):
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)
    out.print(_table("By group size", *by_group_size(rates, summaries, alphas, targets)))
    for sentence in by_group_size_notes(rates, summaries):
        out.print(f"- {sentence}", markup=False, highlight=False)
    # With several group sizes, the table above already has the gradient shares of each.
    for title, header, rows in by_solve_rate(rates, summaries if len(summaries) == 1 else (), alphas):
        out.print(_table(title, header, rows))
    if targets:
        out.print(_table("Group sizes that are large enough for a share of the prompts", *by_target(targets)))


def source_sentences(rates: SolveRates) -> list[str]:
    """What was read, how to interpret it, and what was skipped."""
    sentences = [
        f"{len(rates)} prompts from {rates.path}, mean solve rate {rates.rate.mean():.3f}; {_response_counts(rates)}."
    ]
    if rates.row is None and rates.path.is_dir():
        sentences.append("Responses of all training steps are pooled, so these rates average over a changing policy.")
    if rates.graded:
        sentences.append(
            f"Prompts with verdicts between 0 and 1 (partial credit): {rates.graded}. The figures take the mean "
            "verdict of a prompt for its probability of a right response. Groups with partial credit can agree or "
            "differ more often than the figures say."
        )
    return [*sentences, *rates.notices()]


def by_group_size_notes(rates: SolveRates, summaries: Sequence[GroupSizeSummary]) -> list[str]:
    """Explanations of the row names of ``by_group_size``."""
    exact = "Exact rates: takes each rate for exact"
    if rates.is_biased:
        kinds = f"{exact}. The source is biased, so there are no unbiased figures."
    elif any(summary.unbiased for summary in summaries):
        kinds = (
            f"{exact}, which overstates silent groups. Unbiased: draws groups of G from the prompt's counted responses."
        )
    elif rates.graded:
        kinds = f"{exact}. Unbiased figures need verdicts of 0 and 1."
    else:
        kinds = f"{exact}, which overstates silent groups. Unbiased figures need G responses per prompt"
        if rates.total is None:
            kinds += ": set --samples or --total-column to say how many there were."
        else:
            kinds += f", and no prompt has more than {int(rates.total.max())}."
    return [
        "G: responses per group. A group is silent if all its rewards are equal, and mixed if they differ.",
        kinds,
        "Sigma: standard deviation of a group's rewards, the strength of GRPO's signal. Fidelity of sigma: its mean "
        "over groups of G, divided by its value in infinite groups.",
        "Groups per mixed group: groups to generate until one is mixed, if silent groups are replaced (DAPO).",
        "Gradient from rates X: share of the algorithm's update that comes from prompts with these solve rates.",
    ]


def _response_counts(rates: SolveRates) -> str:
    if rates.graded:
        return "without counts of right responses"
    if rates.total is None:
        return "the number of responses per prompt is unknown"
    fewest, most = int(rates.total.min()), int(rates.total.max())
    return f"{fewest} responses per prompt" if fewest == most else f"{fewest} to {most} responses per prompt"


def by_group_size(
    rates: SolveRates, summaries: Sequence[GroupSizeSummary], alphas: Sequence[float], targets: Sequence[Target]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table with one column per group size."""
    unbiased = [summary.unbiased for summary in summaries]
    rows = [
        ("silent groups (exact rates)", *(_share(summary.silent, 2) for summary in summaries)),
        ("silent groups (unbiased)", *(_share(means.silent, 2) if means else "-" for means in unbiased)),
        ("mixed groups (exact rates)", *(_share(1 - summary.silent, 2) for summary in summaries)),
        ("mixed groups (unbiased)", *(_share(1 - means.silent, 2) if means else "-" for means in unbiased)),
        ("mean sigma of a group (exact rates)", *(f"{summary.gain:.4f}" for summary in summaries)),
        ("mean sigma of a group (unbiased)", *(f"{means.gain:.4f}" if means else "-" for means in unbiased)),
        ("fidelity of sigma, 0 < rate < 1", *(_number(summary.fidelity, ".3f") for summary in summaries)),
        ("groups per mixed group (exact rates)", *(_factor(summary.silent) for summary in summaries)),
        ("groups per mixed group (unbiased)", *(_factor(means.silent) if means else "-" for means in unbiased)),
        ("prompts behind unbiased figures", *(str(means.prompts if means else 0) for means in unbiased)),
    ]
    if not any(unbiased):
        rows = [row for row in rows if "unbiased" not in row[0]]
    sizes = [summary.group_size for summary in summaries]
    for alpha in alphas:
        shares = [share_by_bin(rates.rate, gradient_mass(rates.rate, alpha, size)) for size in sizes]
        ends, middle = ([float(share[bins].sum()) for share in shares] for bins in (list(EXTREMES), [MIDDLE]))
        rows.append((f"{algorithm_name(alpha)}: gradient from rates {_ENDS}", *map(_share, ends)))
        rows.append((f"{algorithm_name(alpha)}: gradient from rates {BINS[MIDDLE]}", *map(_share, middle)))
    for target in targets:
        name = f"prompts with {target.criterion} >= {target.wanted:g}"
        rows.append((name, *(_share(target.reached(size)) for size in sizes)))
    return ["", *(f"G = {size}" for size in sizes)], rows


def by_solve_rate(
    rates: SolveRates, summaries: Sequence[GroupSizeSummary], alphas: Sequence[float]
) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Title, header and rows of the tables with one column per exponent: for large groups, then for each group size."""
    prompts = share_by_bin(rates.rate)
    tables = []
    for size in (None, *(summary.group_size for summary in summaries)):
        shares = [prompts, *(share_by_bin(rates.rate, gradient_mass(rates.rate, alpha, size)) for alpha in alphas)]
        rows = [(name, *(_share(float(share[position])) for share in shares)) for position, name in enumerate(BINS)]
        rows.append((_ENDS, *(_share(float(share[list(EXTREMES)].sum())) for share in shares)))
        where = "the limit of large groups" if size is None else f"groups of {size}"
        tables.append(
            (f"Where the gradient comes from, {where}", ["solve rate", "prompts", *map(algorithm_name, alphas)], rows)
        )
    return tables


def by_target(targets: Sequence[Target]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows of the table with one row per target and one column per share of the prompts that reach it."""
    header = ["target", *(f"{share:.0%} of the prompts" for share in _QUANTILES), "no size is enough"]
    rows = []
    for target in targets:
        quantiles = (target.quantile(share) for share in _QUANTILES)
        sizes = ("-" if math.isinf(size) else f"{size:.0f}" for size in quantiles)
        rows.append((f"{target.criterion} {target.wanted:g}", *sizes, _share(float(np.isinf(target.smallest).mean()))))
    return header, rows


def algorithm_name(alpha: float) -> str:
    """The algorithm with this exponent of the dial, or the exponent itself."""
    return {1.0: "GRPO", 0.0: "Dr. GRPO"}.get(alpha, f"alpha {alpha:g}")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _share(value: float, digits: int = 1) -> str:
    return _number(100 * value, f".{digits}f", " %")


def _number(value: float, digits: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{digits}}{unit}"


def _factor(silent: float) -> str:
    return _number(sampling_factor(silent), ".2f")
