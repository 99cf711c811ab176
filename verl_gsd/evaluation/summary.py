"""Summarises a finished run: held-out accuracy before and after, number of steps, seconds per step."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_gsd.evaluation.intervals import Proportion, proportion
from verl_gsd.rundir import HELD_OUT_PROMPTS
from verl_gsd.scalars import is_finite, is_number

#: verl's metric names of held-out accuracies. ``samples`` is the number of responses per prompt.
ACCURACY = re.compile(r"^val-core/(?P<source>.+)/acc/mean@(?P<samples>\d+)$")


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one validation. ``interval`` and ``responses`` are None if the number of prompts is unknown."""

    step: int
    value: float
    interval: Proportion | None
    responses: int | None = None

    def __str__(self) -> str:
        return f"{self.interval or f'{self.value:.3f}'} at step {self.step}"


@dataclass(frozen=True)
class HeldOut:
    """Accuracies on one data source's held-out prompts: of the first validation and, if there are more, of the last.

    ``prompts`` is the number of prompts of the last validation; None if it is unknown.
    """

    source: str
    accuracies: tuple[Accuracy, ...]
    prompts: int | None = None


@dataclass(frozen=True)
class Summary:
    """The summary of a run. ``seconds_per_step`` is the median of verl's step timer; None if there was no step."""

    held_out: list[HeldOut]
    steps: int
    seconds_per_step: float | None


def summarise(metrics: Sequence[tuple[int, Mapping[str, float]]], prompts: Mapping[str, int]) -> Summary:
    """Summarise a run's metrics.

    Args:
        metrics: (step, scalars by name), in order.
        prompts: number of held-out prompts per data source, if known, for validations whose metrics do not have it
            (those of verl's own trainers and of older runs). The interval counts each prompt as one trial.
            With several samples per prompt it is therefore wider than necessary, but never too narrow.
    """
    seconds = [data["timing_s/step"] for _, data in metrics if is_number(data.get("timing_s/step"))]
    by_source: dict[str, list[Accuracy]] = {}
    counts: dict[str, int | None] = {}
    for step, data in metrics:
        for name, value in data.items():
            if (match := ACCURACY.match(name)) and is_number(value) and not math.isnan(value):
                source = match["source"]
                counted = data.get(HELD_OUT_PROMPTS + source)
                n = counts[source] = int(counted) if is_finite(counted) else prompts.get(source)
                interval = proportion(value * n, n) if n and 0 <= value <= 1 else None
                responses = n * int(match["samples"]) if n else None
                by_source.setdefault(source, []).append(Accuracy(step, value, interval, responses))
    held_out = [
        HeldOut(source, tuple(dict.fromkeys((accuracies[0], accuracies[-1]))), counts[source])
        for source, accuracies in by_source.items()
    ]
    return Summary(held_out, len(seconds), statistics.median(seconds) if seconds else None)
