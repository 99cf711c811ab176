"""What ``verl-gsd plan`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from verl_gsd.console import out
from verl_gsd.planning.summary import BINS, EXTREMES, MIDDLE, Promise, Target, by_bin, gradient_mass, sampling_factor
from verl_gsd.solve_rates import SolveRates

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def show(rates: SolveRates, promises: Sequence[Promise], alphas: Sequence[float], targets: Sequence[Target]) -> None:
    """Print what was read, then a table of group sizes, of the gradient's sources, and of the targets."""
    for sentence in sentences(rates):
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)
    out.print(_table("By group size", *by_group_size(rates, promises, alphas, targets)))
    for sentence in meanings(promises):
        out.print(f"- {sentence}", markup=False, highlight=False)
    # Of several sizes the ends and the middle of each are in the table above.
    for title, header, rows in by_solve_rate(rates, promises if len(promises) == 1 else (), alphas):
        out.print(_table(title, header, rows))
    if targets:
        out.print(_table("Group sizes enough for a share of the prompts", *by_target(targets)))


def sentences(rates: SolveRates) -> list[str]:
    """What was read, what that means, and what was left out."""
    found = [f"{len(rates)} prompts from {rates.path}, mean solve rate {rates.rate.mean():.3f}; {_behind(rates)}."]
    if rates.row is None and rates.path.is_dir():
        found.append("Visits at all steps count alike: these are rates of the policy as it was on the way.")
    return [*found, *(f"Left out: {reason}." for reason in rates.skipped)]


def meanings(promises: Sequence[Promise]) -> list[str]:
    """What the words of ``by_group_size`` mean."""
    found = [
        "plug-in takes each rate as exact, which overstates silence; unbiased draws G of the responses behind it.",
        "gain: E[sigma] of a group, GRPO's scalar signal. ends: share of the gradient from rates below .1 or above .9.",
        "draws per mixed: groups generated for each that is kept where silent ones are replaced (DAPO), on average.",
    ]
    if not any(promise.unbiased for promise in promises):
        found[0] = (
            "plug-in takes each rate as exact, which overstates silence. Unbiased figures need G responses behind a "
            "rate: a source that tells how many there were, or fewer responses a group."
        )
    return found


def _behind(rates: SolveRates) -> str:
    if rates.total is None:
        return "how many responses are behind the rates is not known"
    fewest, most = int(rates.total.min()), int(rates.total.max())
    return f"{fewest} responses behind each" if fewest == most else f"{fewest} to {most} responses behind each"


def by_group_size(
    rates: SolveRates, promises: Sequence[Promise], alphas: Sequence[float], targets: Sequence[Target]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows: a column a group size."""
    unbiased = [promise.unbiased for promise in promises]
    rows = [
        ("silent groups, plug-in", *(_share(one.silent, 2) for one in promises)),
        ("silent groups, unbiased", *(_share(one.silent, 2) if one else "-" for one in unbiased)),
        ("mixed groups, plug-in", *(_share(1 - one.silent, 2) for one in promises)),
        ("mixed groups, unbiased", *(_share(1 - one.silent, 2) if one else "-" for one in unbiased)),
        ("mean gain, plug-in", *(f"{one.gain:.4f}" for one in promises)),
        ("mean gain, unbiased", *(f"{one.gain:.4f}" if one else "-" for one in unbiased)),
        ("fidelity (0 < rate < 1)", *(_number(one.fidelity, ".3f") for one in promises)),
        ("draws per mixed, plug-in", *(_factor(one.silent) for one in promises)),
        ("draws per mixed, unbiased", *(_factor(one.silent) if one else "-" for one in unbiased)),
        ("prompts, if unbiased", *(str(one.prompts if one else 0) for one in unbiased)),
    ]
    if not any(unbiased):
        rows = [row for row in rows if "unbiased" not in row[0]]
    for alpha in alphas:
        shares = [by_bin(rates.rate, gradient_mass(rates.rate, alpha, one.group_size)) for one in promises]
        ends, middle = ([float(share[places].sum()) for share in shares] for places in (list(EXTREMES), [MIDDLE]))
        rows.append((f"{name_of(alpha)}: ends", *map(_share, ends)))
        rows.append((f"{name_of(alpha)}: .4 to .6", *map(_share, middle)))
    for goal in targets:
        name = f"prompts of {goal.criterion} >= {goal.wanted:g}"
        rows.append((name, *(_share(goal.reached(one.group_size)) for one in promises)))
    return ["", *(f"G = {promise.group_size}" for promise in promises)], rows


def by_solve_rate(
    rates: SolveRates, promises: Sequence[Promise], alphas: Sequence[float]
) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
    """Title, header and rows of a table for large groups and one for each group size: a column an exponent."""
    prompts = by_bin(rates.rate)
    tables = []
    for size in (None, *(promise.group_size for promise in promises)):
        shares = [prompts, *(by_bin(rates.rate, gradient_mass(rates.rate, alpha, size)) for alpha in alphas)]
        rows = [(name, *(_share(float(share[place])) for share in shares)) for place, name in enumerate(BINS)]
        rows.append(("ends: below .1, above .9", *(_share(float(share[list(EXTREMES)].sum())) for share in shares)))
        where = "the limit of large groups" if size is None else f"groups of {size}"
        tables.append(
            (f"Where the gradient comes from, {where}", ["solve rate", "prompts", *map(name_of, alphas)], rows)
        )
    return tables


def by_target(targets: Sequence[Target]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Header and rows: a row a target, a column a share of the prompts that are to reach it."""
    header = ["", *(f"{share:.0%}" for share in _QUANTILES), "no size"]
    rows = []
    for goal in targets:
        needed = (goal.quantile(share) for share in _QUANTILES)
        sizes = ("-" if math.isinf(size) else f"{size:.0f}" for size in needed)
        rows.append((f"{goal.criterion} {goal.wanted:g}", *sizes, _share(float(np.isinf(goal.smallest).mean()))))
    return header, rows


def name_of(alpha: float) -> str:
    """The algorithm that has the dial's exponent, or the exponent."""
    return {1.0: "GRPO", 0.0: "Dr. GRPO"}.get(alpha, f"alpha {alpha:g}")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _share(value: float, digits: int = 1) -> str:
    return _number(100 * value, f".{digits}f", " %")


def _number(value: float, digits: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{digits}}{unit}"


def _factor(silent: float) -> str:
    return _number(sampling_factor(silent), ".2f")
