"""Checks, before Ray starts, that the reward function returns the values that the config of a run reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd import extension
from verl_gsd.dynamic_sampling import filter_metric

#: Row of the data, and what the reward function returned for a response to it, by name.
Returned = tuple[int, Mapping[str, Any]]

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
    if metric not in (None, "reward") and (lacking := [row for row, values in returned if metric not in values]):
        yield (
            f"algorithm.filter_groups.metric={metric}: {_FUNCTION} returns no {metric} for row {lacking[0]} of the "
            f"data. Return {metric} beside score, or set algorithm.filter_groups.metric=reward."
        )
    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    for declaration in extension.active(gsd):
        if not declaration.reads_accuracy:
            continue
        low, high = OmegaConf.select(config, f"algorithm.gsd.{declaration.name}.accuracy_range") or (0, 1)
        for row, values in returned:
            accuracy = values.get("acc")
            if not low <= _number(accuracy) <= high:
                given = "no acc" if "acc" not in values else f"acc={str(accuracy)[:40]}"
                section = f"algorithm.gsd.{declaration.name}"
                yield (
                    f"{section} reads acc, the verifier's verdict from {low:g} to {high:g}, but {_FUNCTION} returns "
                    f"{given} for row {row} of the data. Return acc from the function, for example "
                    f'{{"score": -1.0, "acc": 0.0}} for a wrong response, or set {section}=null.'
                )
                break


def _number(value: Any) -> float:
    """A verdict as the trainer reads it; NaN if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # None, text, a tensor of several values, 10**400
        return math.nan
