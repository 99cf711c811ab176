"""Summarises a finished run: held-out accuracy or reward before and after, number of steps, seconds per step."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verl_gsd.evaluation.intervals import Proportion, proportion
from verl_gsd.rundir import HELD_OUT, HELD_OUT_INDEPENDENT, HELD_OUT_OUTSIDE, HELD_OUT_PROMPTS
from verl_gsd.scalars import is_finite, is_number

#: verl's metric names of held-out accuracies. ``samples`` is the number of responses per prompt.
ACCURACY = re.compile(r"^val-core/(?P<source>.+)/acc/mean@(?P<samples>\d+)$")


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one validation.

    ``interval`` and ``responses`` are None if the number of prompts is unknown, or if the values are no accuracies
    (``HeldOut.not_accuracy``).
    """

    step: int
    value: float
    interval: Proportion | None
    responses: int | None = None

    def __str__(self) -> str:
        return f"{self.interval or f'{self.value:.3f}'} at step {self.step}"


@dataclass(frozen=True)
class HeldOut:
    """Accuracies on one data source's held-out prompts: of the first validation and, if there are more, of the last.

    ``prompts`` is the number of prompts of the last validation that the interval counts; None if it is unknown.
    ``rows`` is larger if prompts are repeated (``prompts.independent_prompts``). ``is_outside``: the values are means
    of numbers outside [0, 1] and no accuracies. ``is_reward``: they are mean rewards, because the verifier
    returns no ``acc``.
    """

    source: str
    accuracies: tuple[Accuracy, ...]
    prompts: int | None = None
    rows: int | None = None
    is_outside: bool = False
    is_reward: bool = False

    @property
    def not_accuracy(self) -> str | None:
        """What the values are means of if they are no accuracies, else None."""
        if self.is_reward:
            return "reward"
        return "acc, not in [0, 1]" if self.is_outside else None


@dataclass(frozen=True)
class Summary:
    """The summary of a run. ``seconds_per_step`` is the median of verl's step timer; None if there was no step."""

    held_out: list[HeldOut]
    steps: int
    seconds_per_step: float | None


def outside_sources(metrics: Iterable[Mapping[str, float]]) -> set[str]:
    """Return the data sources whose held-out ``acc`` is no accuracy, because a response has one outside [0, 1].

    verl sets ``acc`` to the reward if a reward function returns a plain number, for example 1 or -1. The metric
    ``val/outside/SOURCE`` counts such responses. Runs of verl's own trainers and of older versions lack it. There, only
    a mean outside [0, 1] tells.

    Args:
        metrics: the metrics of all validations of a run.
    """
    outside = set()
    for data in metrics:
        for name, value in data.items():
            if name.startswith(HELD_OUT_OUTSIDE) and is_number(value) and value > 0:
                outside.add(name.removeprefix(HELD_OUT_OUTSIDE))
            elif (match := ACCURACY.match(name)) and is_number(value) and (value < 0 or value > 1):
                outside.add(match["source"])
    return outside


def why_without_intervals(held_out: Sequence[HeldOut]) -> str | None:
    """Why no value of ``held_out`` has an interval; None if one has."""
    if any(accuracy.interval for of_source in held_out for accuracy in of_source.accuracies):
        return None
    if any(of_source.not_accuracy is None for of_source in held_out):
        return "the number of prompts is unknown"
    if any(of_source.is_outside for of_source in held_out):
        return "the verifier returned an acc outside [0, 1]"
    return "the verifier returned no acc"


def summarise(metrics: Sequence[tuple[int, Mapping[str, float]]], prompts: Mapping[str, int]) -> Summary:
    """Summarise a run's metrics.

    Args:
        metrics: (step, scalars by name), in order.
        prompts: number of held-out prompts per data source, if known, for validations whose metrics do not have it
            (those of verl's own trainers and of older runs), as ``prompts.independent_prompts``. The interval counts
            each prompt as one trial, also if it is repeated. With several samples per prompt it is therefore wider than
            necessary, but never too narrow.
    """
    seconds = [data["timing_s/step"] for _, data in metrics if is_number(data.get("timing_s/step"))]
    by_source: dict[tuple[str, str], list[Accuracy]] = {}
    counts: dict[tuple[str, str], tuple[int | None, int | None]] = {}  # prompts and rows
    outside = outside_sources(data for _, data in metrics)
    for step, data in metrics:
        for name, value in data.items():
            if (match := HELD_OUT.fullmatch(name)) and is_number(value) and not math.isnan(value):
                source, figure = match["source"], match["figure"]
                counted = data.get(HELD_OUT_PROMPTS + source)
                rows = int(counted) if is_finite(counted) else prompts.get(source)
                independent = data.get(HELD_OUT_INDEPENDENT + source)
                n = int(independent) if rows and is_finite(independent) and independent >= 1 else rows
                counts[source, figure] = n, rows
                is_counted = bool(n) and figure == "acc" and source not in outside
                interval = proportion(value * n, n) if n and is_counted else None
                responses = rows * int(match["samples"]) if rows and is_counted else None
                by_source.setdefault((source, figure), []).append(Accuracy(step, value, interval, responses))
    held_out = [
        HeldOut(
            source,
            tuple(dict.fromkeys((accuracies[0], accuracies[-1]))),
            *counts[source, figure],
            is_outside=figure == "acc" and source in outside,
            is_reward=figure == "reward",
        )
        for (source, figure), accuracies in by_source.items()
    ]
    return Summary(held_out, len(seconds), statistics.median(seconds) if seconds else None)
