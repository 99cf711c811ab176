"""What ``verl-gsd eval`` shows and sums up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from verl_gsd.compare.comparison_file import finite
from verl_gsd.evaluation.results import RESULT, Result, compare, read_result
from verl_gsd.writing import atomic_write


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
            shown.add_row("", "", "second opinion", _second(result.figures))
    return shown


def _second(figures: Mapping[str, float | str]) -> str:
    failed = f"failed {figures['second_failed']:.1%}"
    if "second_accuracy" not in figures:
        return failed
    low, high = figures["second_accuracy_low"], figures["second_accuracy_high"]
    accuracy = f"accuracy {figures['second_accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{accuracy}, agreement {figures['second_agreement']:.3f}, {failed}"


def write_summary(folder: Path, results: Mapping[str, Result], compared: Mapping[str, Result]) -> None:
    """OUTPUT/results.json: the same by benchmark, those included that earlier lines evaluated into ``folder``.

    Raises:
        ValueError: a result there is damaged.
        OSError: there is no room, or no right to write.
    """
    earlier = {path.parent.name: read_result(path.parent) for path in sorted(folder.glob(f"*/{RESULT}"))}
    summed = {name: _summed_up(result, compared.get(name)) for name, result in {**earlier, **results}.items()}
    with atomic_write(folder / "results.json") as building:
        building.write_text(json.dumps(finite(summed), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _summed_up(result: Result, other: Result | None) -> dict[str, Any]:
    made_with = {name: result.settings.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    summed: dict[str, Any] = {
        "model": result.settings["model"]["checkpoint"],
        **made_with,
        "questions": len(result.correct),
        "samples": result.samples,
        "average": asdict(result.average()),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in result.passing().items()},
        **result.figures,
    }
    if other is not None:
        summed["against"] = {"model": other.settings["model"]["checkpoint"], **asdict(compare(other, result))}
    return summed
