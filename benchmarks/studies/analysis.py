"""The results of a study from the runs in the ledger: accuracies at equal tokens, and gains over the baseline."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import publishing

from studies.declaration import Study
from studies.ledger import TRACES, FinishedRun
from studies.runs import Cell, Ledger, late_mean, late_mean_of, learning_curve, main_cell, rate_of, tune
from verl_gsd.compare.comparison import holm
from verl_gsd.evaluation.intervals import Estimate, difference_over_seeds, paired_test, student_mean
from verl_gsd.lab.training.seeds import parse_seeds

#: The budget of a task, as a share of the tokens of the baseline's shortest run: arms that generate a little less per
#: step then reach it, too.
_SHARE = 0.9
#: What the result repeats of the declaration.
_STATED = ("name", "question", "hypothesis", "measure", "tuning", "spread", "correction", "seeds", "steps")
#: Levels of difficulty by their exact accuracy before training.
LEVELS = {"hard": (0.0, 0.2), "middle": (0.2, 0.8), "easy": (0.8, 1.01)}


def analyse(study: Study, ledger: Ledger, load: Callable[[str], Study]) -> dict[str, Any]:
    """Everything that the study's page shows, as JSON.

    ``missing`` lists what has not been trained; the table is partial unless it is empty. ``earlier`` lists what was
    trained from a start that is not the package's.
    """
    rates: dict[str, dict[str, float]] = {}
    tried: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    missing: list[str] = []
    earlier: list[str] = []
    budgets: dict[str, int] = {}
    for task in study.tasks:
        cells: dict[str, Cell] = {}
        for arm in study.arms_of(task):
            rate = rate_of(study, task, arm, ledger, load)
            if rate is None:
                missing.append(f"{task}/{arm.name}: its learning rate is not tuned")
                continue
            if arm.rate is None:
                means = tune(study, task, arm, ledger).means
                tried.setdefault(task, {})[arm.name] = {f"{value:.3g}": round(mean, 5) for value, mean in means.items()}
            rates.setdefault(task, {})[arm.name] = rate
            cells[arm.name] = main_cell(study, task, arm, rate)
        found = {name: cell.found(ledger) for name, cell in cells.items()}
        for name, cell in cells.items():
            seeds, to_train = parse_seeds(cell.seeds), cell.missing(ledger)
            absent = len(seeds) - len(found[name])
            for places, count in ((missing, absent), (earlier, len(to_train) - absent)):
                places += [f"{task}/{name}: {count} of {len(seeds)} seeds"] if count else []
        if not found.get(study.baseline):
            continue
        budgets[task] = int(_SHARE * min(run.tokens[-1] for run in found[study.baseline].values()))
        for name, runs in found.items():
            other = study.other(cells[name].arm)
            if runs:
                rows.append(_row(cells[name], runs, {} if other == name else found.get(other, {}), budgets[task]))
            if study.curves:
                curves += [_curves(cells[name], run) for run in runs.values()]
    compared = {f"{row['task']}/{row['arm']}": row for row in rows if row["gain"]}
    adjusted = holm({name: row["gain"]["p"] for name, row in compared.items()})
    for name, row in compared.items():
        row["gain"]["p_adjusted"] = adjusted[name]
    return {
        "study": {name: getattr(study, name) for name in _STATED},
        "machine": publishing.machine(),
        "date": datetime.date.today().isoformat(),
        "missing": missing,
        "earlier": earlier,
        "budget_tokens": budgets,
        "rates": rates,
        "rates_tried": tried,
        "rows": rows,
        "curves": curves,
    }


def _curves(cell: Cell, run: FinishedRun) -> dict[str, Any]:
    """One run: accuracy at each validation after the first, and the means of its metrics since the one before."""
    names = ("entropy", "length", "gradient_norm")
    return {
        "task": cell.task,
        "arm": cell.arm.name,
        "seed": run.seed,
        "steps": run.steps[1:],
        "accuracy": run.accuracy[1:],
        **{name: run.traces[name] for name in names},
    }


def _row(cell: Cell, found: Mapping[int, FinishedRun], other: Mapping[int, FinishedRun], budget: int) -> dict[str, Any]:
    late = {seed: late_mean(run, cell.task, budget) for seed, run in found.items()}
    common = sorted(seed for seed in found.keys() & other.keys() if found[seed].start == other[seed].start)
    return {
        "task": cell.task,
        "arm": cell.arm.name,
        "rate": cell.rate,
        "command": cell.command,
        "seeds": sorted(found),
        "measure": _estimate(student_mean(np.array(list(late.values())))),
        "spread": float(np.std(list(late.values()), ddof=1)) if len(late) > 1 else None,
        "before": float(np.mean([learning_curve(run, cell.task)[0] for run in found.values()])),
        "accuracy": float(
            np.mean([np.mean(run.accuracy[1:][_second_half(len(run.accuracy) - 1)]) for run in found.values()])
        ),
        # A run has diverged if the policy is worse than before training.
        "diverged": sum(late[seed] < learning_curve(run, cell.task)[0] for seed, run in found.items()),
        "short": sum(run.tokens[-1] < budget for run in found.values()),
        "tokens_per_step": float(np.mean([run.tokens[-1] / run.steps[-1] for run in found.values()])),
        "late": {name: _late([run.traces[name] for run in found.values()]) for name in TRACES},
        "levels": _levels(list(found.values()), budget),
        "gain": _gain([late_mean(other[seed], cell.task, budget) for seed in common], [late[seed] for seed in common]),
        "gain_by_level": _gain_by_level([other[seed] for seed in common], [found[seed] for seed in common], budget),
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _gain(first: Sequence[float], second: Sequence[float]) -> dict[str, float] | None:
    """The difference second - first, paired by seed; None without two common seeds. 0 if all runs are equal."""
    if len(first) < 2:
        return None
    pair = np.array(first), np.array(second)
    return {**_difference(*pair), "p": paired_test(*pair).p_value, "n": len(first)}


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The difference second - first, paired. Where an arm changes nothing, runs of equal seeds are equal."""
    if np.array_equal(first, second):
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    return _estimate(difference_over_seeds(first, second, None))


def _second_half(count: int) -> slice:
    """The second half of ``count`` values, at least one."""
    return slice(count - max(1, count // 2), count)


def _late(traces: Sequence[Sequence[float | None]]) -> float | None:
    """The mean of a metric over the second half of the steps and over runs; None if no run has it."""
    values = [value for trace in traces for value in trace[_second_half(len(trace))] if value is not None]
    return float(np.mean(values)) if values else None


def _level(run: FinishedRun, low: float, high: float, budget: int) -> float | None:
    """The measure, of the mean over the levels whose accuracy was in [low, high) before training; None without any."""
    curves = [values for values in run.levels.values() if low <= values[0] < high]
    return late_mean_of(run, np.mean(curves, axis=0), budget) if curves else None


def _levels(runs: Sequence[FinishedRun], budget: int) -> dict[str, float]:
    found = {name: [_level(run, *bounds, budget) for run in runs] for name, bounds in LEVELS.items()}
    return {
        name: float(np.mean([value for value in values if value is not None]))
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def _gain_by_level(
    first: Sequence[FinishedRun], second: Sequence[FinishedRun], budget: int
) -> dict[str, dict[str, float]]:
    """Level -> difference second - first at equal tokens, paired by seed."""
    gains = {}
    for name, bounds in LEVELS.items():
        pairs = [
            (_level(one, *bounds, budget), _level(two, *bounds, budget)) for one, two in zip(first, second, strict=True)
        ]
        known = [(one, two) for one, two in pairs if one is not None and two is not None]
        if len(known) > 1:
            one, two = np.array(known).T
            gains[name] = _difference(one, two)
    return gains
