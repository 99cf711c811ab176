"""What ``verl-gsd eval`` shows and sums up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from verl_gsd.evaluation.results import Result, compare


def table(results: Mapping[str, Result], compared: Mapping[str, Result]) -> Table:
    """A row a figure; with ``compared``, another model's results, the paired differences to it."""
    shown = Table("benchmark", "questions", "figure", "95%, over questions")
    if compared:
        for column in ("there", "difference, paired", "p", "better, same, worse"):
            shown.add_column(column)
    for name, result in results.items():
        row = [name, str(len(result.correct)), f"avg@{result.samples}", str(result.average())]
        if name in compared:
            pair = compare(compared[name], result)
            row += [f"{compared[name].average().value:.3f}", str(pair.difference), f"{pair.p_value:.3g}"]
            row += [f"{pair.wins}, {pair.ties}, {pair.losses}"]
        shown.add_row(*row)
        for k, estimate in result.passing().items():
            shown.add_row("", "", f"pass@{k}", str(estimate))
        unverified, cut_off = result.figures["unverified"], result.figures["cut_off"]
        if unverified or cut_off:
            shown.add_row("", "", f"{cut_off:.1%} cut off", f"{unverified:.2%} not verified, counted as wrong")
        if "second_failed" in result.figures:
            said = [
                f"{name} {result.figures[f'second_{name}']:.3f}"
                for name in ("accuracy", "agreement")
                if (f"second_{name}" in result.figures)
            ]
            shown.add_row("", "", "second opinion", ", ".join([*said, f"failed {result.figures['second_failed']:.1%}"]))
    return shown


def summary(results: Mapping[str, Result], compared: Mapping[str, Result]) -> dict[str, Any]:
    """The same for OUTPUT/results.json, by benchmark."""
    return {name: _summed_up(result, compared.get(name)) for name, result in results.items()}


def _summed_up(result: Result, other: Result | None) -> dict[str, Any]:
    summed: dict[str, Any] = {
        "questions": len(result.correct),
        "samples": result.samples,
        "average": asdict(result.average()),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in result.passing().items()},
        **result.figures,
    }
    if other is not None:
        summed["against"] = {"model": other.settings["model"]["checkpoint"], **asdict(compare(other, result))}
    return summed
