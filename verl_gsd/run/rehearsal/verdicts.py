"""Checks, before Ray starts, that the reward function returns the values that the config of a run reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.dynamic_sampling import filter_metric
from verl_gsd.scalars import without_rounding

#: Row of the data, its data source, and what the reward function returned for a response to it, by name.
Returned = tuple[int, str, Mapping[str, Any]]

_FUNCTION = "reward.custom_reward_function"


def returned_values(result: Any) -> Mapping[str, Any]:
    """The values that verl keeps of a reward function's result: a dict's entries, or a plain number as ``acc``."""
    return result if isinstance(result, Mapping) else {"acc": result}


def verdict_problems(config: DictConfig, returned: Sequence[Returned]) -> Iterator[str]:
    """One sentence per setting that reads a value which the reward function did not return.

    Dynamic sampling needs the value that ``algorithm.filter_groups.metric`` names. Extensions that read accuracies need
    a number from 0 to 1 in ``acc``, or in the range that their section's ``accuracy_range`` rescales. The run would
    stop in its first step.

    Args:
        returned: for right and wrong answers.
    """
    metric = filter_metric(config)
    if metric not in (None, "reward") and (lacking := [row for row, _, values in returned if metric not in values]):
        yield (
            f"algorithm.filter_groups.metric={metric}: {_FUNCTION} returns no {metric} for row {lacking[0]} of the "
            f"data. Return {metric} beside score, or set algorithm.filter_groups.metric=reward."
        )
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    for declaration in extension.active(gsd):
        if not declaration.reads_accuracy:
            continue
        for row, source, values in returned:
            low, high = _accuracy_range(config, declaration.name, source) or (0, 1)
            accuracy = values.get("acc")
            if not low <= without_rounding(_number(accuracy)) <= high:
                section = f"algorithm.gsd.{declaration.name}"
                yield (
                    f"{section} reads acc, the verifier's verdict from {low:g} to {high:g}, but {_FUNCTION} returns "
                    f"{_given(values)} for row {row} of the data. Return acc from the function, for example "
                    f'{{"score": -1.0, "acc": 0.0}} for a wrong response, or set {section}=null.'
                )
                break


def accuracy_warning(config: DictConfig, returned: Sequence[Returned]) -> str | None:
    """What the run will lack if the reward function returns no ``acc`` from 0 to 1; None if it returns one.

    The training itself does not need it, unless ``verdict_problems`` finds so. In a rehearsal, seeded scores replace
    the function's own, so that its run does not show this. If the function returns one for other responses of the data
    source, a response without ``acc`` counts as wrong.

    Args:
        returned: for right and wrong answers.
    """
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    rated = {source for _, source, values in returned if _has_number(values)}
    for row, source, values in returned:
        ranges = (_accuracy_range(config, declaration.name, source) for declaration in extension.active(gsd))
        low, high = next(filter(None, ranges), (0, 1))
        is_missing = source in rated and not _has_number(values)
        if not is_missing and not low <= without_rounding(_number(values.get("acc"))) <= high:
            return (
                f"{_FUNCTION}: it returns {_given(values)} for row {row} of the data, which is no accuracy from "
                f"{low:g} to {high:g}. verl uses a plain number as acc. The run will log no accuracy and no pass@K of "
                "this data source, and the report will not have them. Return acc from the function, for example "
                '{"score": -1.0, "acc": 0.0} for a wrong response.'
            )
    for row, source, values in returned:
        if source in rated and not _has_number(values):
            return (
                f"{_FUNCTION}: it returns {_given(values)} for row {row} of the data, but a number for another "
                f"response of data_source={source}. The run will count responses without acc as wrong, as verl does "
                'in validations. Return acc for every response, for example {"score": 0.0, "acc": 0.0} if the function '
                "finds no answer."
            )
    return None


def _given(values: Mapping[str, Any]) -> str:
    return f"acc={str(values['acc'])[:40]}" if "acc" in values else "no acc"


def _has_number(values: Mapping[str, Any]) -> bool:
    return not math.isnan(_number(values.get("acc")))


def _accuracy_range(config: DictConfig, name: str, source: str) -> tuple[float, float] | None:
    """The range of a data source that the section of an extension rescales to [0, 1]; None if it rescales none."""
    ranges = OmegaConf.select(config, f"algorithm.gsd.{name}.accuracy_range")
    return ranges.get(source) if OmegaConf.is_dict(ranges) else ranges


def _number(value: Any) -> float:
    """A verdict as the trainer reads it; NaN if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # None, text, a tensor of several values, 10**400
        return math.nan
