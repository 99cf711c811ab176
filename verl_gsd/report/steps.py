"""The tidy table of a run that everything else is made from: a row a step, a column a figure."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_gsd.extension import declarations
from verl_gsd.records import EASY, HARD
from verl_gsd.report.reading import Columns, Run

#: What a rollout was spent on: a group that taught, one that was trained on and could not, or one with another fate.
USES = ("taught", "silent", "filtered", "surplus", "stale", "failed")


def by_step(run: Run) -> Columns:
    """``step``, all columns of ``run.metrics``, and of its records, NaN where a step has none of that:

    ``groups, rollouts, tokens`` in numbers;
    ``accuracy``, of all rollouts that have one; ``tokens_per_response``;
    ``mixed, all_right, all_wrong, silent, alone``: shares of the groups with responses, the last of groups of one;
    ``sigma``, its mean;
    ``rollouts_<use>, tokens_<use>`` for each of ``USES``, in numbers; ``failed``, the share of all groups;
    ``lost_rewards``, responses without a reward, in numbers, which are none of the rollouts;
    ``seen_silent, seen_predicted``: of groups whose prompt was seen before, the share silent and as predicted;
    ``likely_{groups,silent,predicted,variance}``: of those that were predicted to be mixed rather than silent, sums;
    ``gain_{hard,between,easy}``: shares of the gain that was trained on, by the group's accuracy;
    ``demonstrated``: share of groups with a demonstration;
    and the figures that extensions declare (``declaration.StepFigure``).
    """
    of_records = _of_records(run.records) if len(run.records) else {"step": np.zeros(0, np.int64)}
    steps = np.union1d(of_records["step"], run.metrics["step"])
    table: Columns = {"step": steps}
    for source in (run.metrics, of_records):
        rows = np.searchsorted(steps, source["step"])
        for name, values in source.items():
            if name != "step":
                table[name] = np.full(len(steps), np.nan)
                table[name][rows] = values
    return table


def column(table: Columns, name: str) -> np.ndarray:
    """The column, or one of NaN where the run has none of that name."""
    return table[name] if name in table else np.full(len(table["step"]), np.nan)


def numbers(records: pa.Table, name: str) -> np.ndarray:
    """A column of the records as float64, null as NaN."""
    return records[name].to_numpy().astype(float)


def accuracies(records: pa.Table) -> np.ndarray:
    """(N,) share of a group's responses that are right; NaN where none has an accuracy."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return numbers(records, "correct") / numbers(records, "total")


def is_any(records: pa.Table, name: str, *values: str) -> np.ndarray:
    """(N,) bool: whether the column, of strings, has one of ``values``; not where it is null."""
    return pc.is_in(records[name], value_set=pa.array(values)).to_numpy()


class _Steps:
    """Sums and means of rows by step."""

    def __init__(self, records: pa.Table) -> None:
        self.steps, self._row = np.unique(records["step"].to_numpy(), return_inverse=True)

    def total(self, values: np.ndarray, where: np.ndarray | bool = True) -> np.ndarray:
        """By step, over rows where ``where`` holds; NaN counts nothing."""
        return np.bincount(self._row, np.where(where, np.nan_to_num(values), 0.0), minlength=len(self.steps))

    def mean(self, values: np.ndarray, where: np.ndarray | bool, weight: np.ndarray | None = None) -> np.ndarray:
        """By step, over rows where ``where`` holds and neither is NaN; NaN where these weigh nothing."""
        weight = np.ones(len(values)) if weight is None else weight
        known = where & ~np.isnan(values) & ~np.isnan(weight)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.total(values * weight, known) / self.total(weight, known)

    def ratio(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """The sum of ``part`` over that of ``whole``, by step, over rows that have both; NaN where that is 0."""
        known = ~np.isnan(part) & ~np.isnan(whole)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.total(part, known) / self.total(whole, known)


def _of_records(records: pa.Table) -> Columns:
    by = _Steps(records)
    parts = (_of_groups, _of_uses, _of_gain, _of_extensions, _of_predictions)
    return {"step": by.steps.astype(np.int64)} | {k: v for part in parts for k, v in part(records, by).items()}


def _of_groups(records: pa.Table, by: _Steps) -> Columns:
    size, tokens, rated = (numbers(records, name) for name in ("size", "tokens", "total"))
    whole = size > 0
    kinds: Columns = {kind: is_any(records, "kind", kind).astype(float) for kind in ("mixed", "all_right", "all_wrong")}
    return {
        "groups": by.total(np.ones(len(size))),
        "rollouts": by.total(size),
        "tokens": by.total(tokens),
        "tokens_per_response": by.ratio(tokens, size),
        "lost_rewards": by.total(numbers(records, "failed_rewards")),
        **{kind: by.mean(is_kind, whole) for kind, is_kind in kinds.items()},
        "silent": by.mean(1 - kinds["mixed"], whole),
        "alone": by.mean((size == 1).astype(float), whole),
        "sigma": by.mean(numbers(records, "std"), whole),
        "accuracy": by.ratio(numbers(records, "correct"), rated),
        "demonstrated": by.mean((numbers(records, "demonstrations") > 0).astype(float), whole),
    }


def _of_uses(records: pa.Table, by: _Steps) -> Columns:
    mixed, trained = is_any(records, "kind", "mixed"), is_any(records, "fate", "trained")
    others = {fate: is_any(records, "fate", fate) for fate in USES[2:]}
    # A demonstration makes a mixed group of one in which all failed, whatever the record says of its responses.
    teaches = mixed | (numbers(records, "demonstrations") > 0)
    found = {"failed": by.mean(others["failed"].astype(float), True)}
    for use, where in {"taught": trained & teaches, "silent": trained & ~teaches, **others}.items():
        for unit, name in (("rollouts", "size"), ("tokens", "tokens")):
            found[f"{unit}_{use}"] = by.total(numbers(records, name), where)
    return found


def _of_gain(records: pa.Table, by: _Steps) -> Columns:
    rate = accuracies(records)
    gain = np.where(is_any(records, "fate", "trained"), numbers(records, "gain"), np.nan)
    places = {"hard": rate <= HARD, "between": (rate > HARD) & (rate < EASY), "easy": rate >= EASY}
    return {f"gain_{name}": by.mean(where.astype(float), ~np.isnan(rate), gain) for name, where in places.items()}


def _of_extensions(records: pa.Table, by: _Steps) -> Columns:
    taught = is_any(records, "fate", "trained") & is_any(records, "kind", "mixed")
    found: Columns = {}
    for figure in (figure for declared in declarations() for figure in declared.step_figures):
        values = numbers(records, figure.column)
        if figure.taught:
            values = np.where(taught, values, np.nan)
        found[figure.name] = by.ratio(values, numbers(records, figure.over)) if figure.over else by.mean(values, True)
    return found


def _of_predictions(records: pa.Table, by: _Steps) -> Columns:
    predicted = numbers(records, "silent_predicted")
    silent: np.ndarray = (~is_any(records, "kind", "mixed")).astype(float)
    likely = predicted < 0.5
    return {
        "seen_silent": by.mean(silent, ~np.isnan(predicted)),
        "seen_predicted": by.mean(predicted, True),
        "likely_groups": by.total(np.ones(len(predicted)), likely),
        "likely_silent": by.total(silent, likely),
        "likely_predicted": by.total(predicted, likely),
        "likely_variance": by.total(predicted * (1 - predicted), likely),
    }
