"""The results of a study from the runs that have finished: accuracies at equal tokens, and gains over the baseline."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import publishing

from studies.declaration import Study
from studies.runs import Cell, given_rate, late_accuracy, main_cell, tuned_rate, tuning_cells
from verl_gsd.compare.comparison import holm
from verl_gsd.compare.curves import Curve
from verl_gsd.evaluation.intervals import Estimate, difference_over_seeds, paired_test, student_mean
from verl_gsd.lab.training.seeds import parse_seeds, read_lines
from verl_gsd.rundir import RunDirectory

#: The budget of a task, as a share of the tokens of the baseline's shortest run: arms that generate a little less per
#: step then reach it, too.
_SHARE = 0.9
#: Levels of difficulty by their exact accuracy before training.
_LEVELS = {"hard": (0.0, 0.2), "middle": (0.2, 0.8), "easy": (0.8, 1.01)}
_LEVEL = "exact/level/"
#: Metrics averaged over the last quarter of the steps.
_LATE = {"entropy": "actor/entropy", "distinct_answers": "group/answers/distinct", "gradient_norm": "actor/grad_norm"}


def analyse(study: Study, runs: Path) -> dict[str, Any]:
    """Everything that the study's page shows, as JSON."""
    rates: dict[str, dict[str, float]] = {}
    tried: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    budgets: dict[str, int] = {}
    for task in study.tasks:
        cells: dict[str, Cell] = {}
        for arm in study.arms_of(task):
            best = tuned_rate(tuning) if (tuning := tuning_cells(study, task, arm, runs)) else None
            rate = best[0] if best else given_rate(arm, task)
            if best:
                tried.setdefault(task, {})[arm.name] = {f"{value:.3g}": mean for value, mean in best[1].items()}
            if rate is None:
                missing.append(f"{task}/{arm.name}: its learning rate is not tuned")
                continue
            rates.setdefault(task, {})[arm.name] = rate
            cells[arm.name] = main_cell(study, task, arm, rate, runs)
        curves = {name: cell.curves() for name, cell in cells.items()}
        for name, cell in cells.items():
            if absent := len(parse_seeds(cell.seeds)) - len(curves[name]):
                missing.append(f"{task}/{name}: {absent} seeds")
        if curves.get(study.baseline):
            budgets[task] = int(_SHARE * min(curve.tokens[-1] for curve in curves[study.baseline].values()))
            rows += [
                _row(cells[name], found, curves.get(study.other(cells[name].arm), {}), budgets[task])
                for name, found in curves.items()
                if found
            ]
    adjusted = holm({f"{row['task']}/{row['arm']}": row["gain"]["p"] for row in rows if row["gain"]})
    for row in rows:
        if row["gain"]:
            row["gain"]["p_adjusted"] = adjusted[f"{row['task']}/{row['arm']}"]
    return {
        "study": {name: getattr(study, name) for name in ("question", "hypothesis", "measure", "spread", "correction")},
        "machine": publishing.machine(),
        "date": datetime.date.today().isoformat(),
        "missing": missing,
        "budget_tokens": budgets,
        "rates": rates,
        "rates_tried": tried,
        "rows": rows,
    }


def _row(cell: Cell, found: Mapping[int, Curve], baseline: Mapping[int, Curve], budget: int) -> dict[str, Any]:
    late = {seed: late_accuracy(curve, budget) for seed, curve in found.items()}
    lines = {seed: read_lines(RunDirectory(Path(curve.run))) for seed, curve in found.items()}
    common = [] if found is baseline else sorted(found.keys() & baseline.keys())
    return {
        "task": cell.task,
        "arm": cell.arm.name,
        "rate": cell.rate,
        "command": cell.command,
        "seeds": sorted(found),
        "accuracy": _estimate(student_mean(np.array(list(late.values())))),
        "by_seed": {str(seed): round(value, 5) for seed, value in sorted(late.items())},
        # A run has diverged if the policy is worse than before training.
        "diverged": sum(late[seed] < curve.accuracy[0] for seed, curve in found.items()),
        "short": sum(curve.tokens[-1] < budget for curve in found.values()),
        "tokens_per_step": float(np.mean([curve.tokens[-1] / curve.steps[-1] for curve in found.values()])),
        "seconds_per_step": float(np.mean([_late(of_run, "timing_s/step") for of_run in lines.values()])),
        **{name: float(np.mean([_late(of_run, key) for of_run in lines.values()])) for name, key in _LATE.items()},
        "levels": _levels(list(lines.values())),
        "gain": _gain([late_accuracy(baseline[seed], budget) for seed in common], [late[seed] for seed in common]),
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _gain(first: Sequence[float], second: Sequence[float]) -> dict[str, float] | None:
    """The difference second - first, paired by seed; None without two common seeds."""
    if len(first) < 2:
        return None
    pair = np.array(first), np.array(second)
    return {**_estimate(difference_over_seeds(*pair, None)), "p": paired_test(*pair).p_value, "n": len(first)}


def _late(lines: Sequence[tuple[int, Mapping[str, float]]], key: str) -> float:
    """The mean of a metric over the last quarter of the steps; NaN if the run does not have it."""
    last = max(step for step, _ in lines)
    values = [data[key] for step, data in lines if step > 0.75 * last and key in data]
    return float(np.mean(values)) if values else float("nan")


def _levels(runs: Sequence[Sequence[tuple[int, Mapping[str, float]]]]) -> dict[str, float]:
    """Mean exact accuracy of the last quarter's validations over levels that were hard, middle or easy at first."""
    first = {key: value for _, data in runs[0][:1] for key, value in data.items() if key.startswith(_LEVEL)}
    found = {}
    for name, (low, high) in _LEVELS.items():
        keys = [key for key, value in first.items() if low <= value < high]
        if keys:
            found[name] = float(np.mean([_late(lines, key) for lines in runs for key in keys]))
    return found
