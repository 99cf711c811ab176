"""The output of ``verl-gsd eval``: a table for the terminal, and OUTPUT/results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from verl_gsd.compare.comparison_file import nonfinite_to_null
from verl_gsd.evaluation.results import RESULT, BenchResult, compare, read_result
from verl_gsd.writing import atomic_write


def results_table(results: Mapping[str, BenchResult], others: Mapping[str, BenchResult]) -> Table:
    """One row per figure, and the paired differences to another model's results ``others``, if there are any."""
    table = Table("benchmark", "questions", "figure", "95%, over questions")
    if others:
        for column in ("other model", "difference, paired", "p", "better, same, worse"):
            table.add_column(column)
    for name, result in results.items():
        row = [name, str(len(result.correct)), f"avg@{result.samples}", str(result.average())]
        if name in others:
            comparison = compare(others[name], result)
            row += [f"{others[name].average().value:.3f}", str(comparison.difference), f"{comparison.p_value:.3g}"]
            row += [f"{comparison.wins}, {comparison.ties}, {comparison.losses}"]
        table.add_row(*map(escape, row))
        for k, estimate in result.pass_at_k().items():
            table.add_row("", "", f"pass@{k}", str(estimate))
        for level, estimate in result.average_by_level().items():
            figure = f"avg@{result.samples}, level {level.removeprefix('Level ')}"
            table.add_row("", str(estimate.n), escape(figure), str(estimate))
        unverified, cut_off = result.figures["unverified"], result.figures["cut_off"]
        if unverified or cut_off:
            table.add_row("", "", f"{cut_off:.1%} cut off", f"{unverified:.2%} not verified, counted as wrong")
        if "second_failed" in result.figures:
            table.add_row("", "", "LLM verifier", _llm_verifier_text(result.figures))
    return table


def _llm_verifier_text(figures: Mapping[str, float | str]) -> str:
    failed = f"failed {figures['second_failed']:.1%}"
    if "second_accuracy" not in figures:
        return failed
    low, high = figures["second_accuracy_low"], figures["second_accuracy_high"]
    accuracy = f"accuracy {figures['second_accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    return f"{accuracy}, agreement {figures['second_agreement']:.3f}, {failed}"


def write_summary(folder: Path, results: Mapping[str, BenchResult], others: Mapping[str, BenchResult]) -> None:
    """Write OUTPUT/results.json: the figures by benchmark, including results that ``folder`` has from earlier commands.

    Raises:
        ValueError: a result in ``folder`` is damaged.
        OSError: the disk is full, or the process may not write there.
    """
    earlier = {path.parent.name: read_result(path.parent, within=folder) for path in sorted(folder.glob(f"*/{RESULT}"))}
    summary = {name: _summarise(result, others.get(name)) for name, result in {**earlier, **results}.items()}
    with atomic_write(folder / "results.json") as building:
        building.write_text(json.dumps(nonfinite_to_null(summary), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _summarise(result: BenchResult, other: BenchResult | None) -> dict[str, Any]:
    sampling = {name: result.settings.get(name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    summary: dict[str, Any] = {
        "model": result.settings["model"]["checkpoint"],
        **sampling,
        "questions": len(result.correct),
        "samples": result.samples,
        "average": asdict(result.average()),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in result.pass_at_k().items()},
        "by_level": {level: asdict(estimate) for level, estimate in result.average_by_level().items()},
        **result.figures,
    }
    if other is not None:
        summary["against"] = {"model": other.settings["model"]["checkpoint"], **asdict(compare(other, result))}
    return summary
