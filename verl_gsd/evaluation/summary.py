"""What a finished run amounts to: held-out accuracy before and after, steps, seconds a step."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_gsd.evaluation.intervals import Proportion, wilson

#: What verl calls a held-out accuracy.
ACCURACY = re.compile(r"^val-core/(?P<source>.+)/acc/mean@\d+$")


@dataclass(frozen=True)
class Accuracy:
    """One validation: its step, the accuracy, and the interval where the number of trials is known."""

    step: int
    value: float
    interval: Proportion | None

    def __str__(self) -> str:
        return f"{self.interval or f'{self.value:.3f}'} at step {self.step}"


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on one data source's held-out prompts at the first and, if there was another, the last validation."""

    source: str
    accuracies: tuple[Accuracy, ...]


@dataclass(frozen=True)
class Summary:
    """``seconds_per_step`` is the median of verl's own step timer; None where no step was made."""

    held_out: list[HeldOut]
    steps: int
    seconds_per_step: float | None


def summarise(metrics: Sequence[tuple[int, Mapping[str, float]]], prompts: Mapping[str, int]) -> Summary:
    """Read a run's metrics lines.

    Args:
        metrics: (step, scalars), in order.
        prompts: held-out prompts per data source where that is known: the trials of the interval. Several samples a
            prompt are counted as one, which makes the interval wider than need be, never narrower.
    """
    seconds = [data["timing_s/step"] for _, data in metrics if "timing_s/step" in data]
    seen: dict[str, list[Accuracy]] = {}
    for step, data in metrics:
        for name, value in data.items():
            if (match := ACCURACY.match(name)) and not math.isnan(value):
                n = prompts.get(match["source"])
                interval = wilson(value * n, n) if n and 0 <= value <= 1 else None
                seen.setdefault(match["source"], []).append(Accuracy(step, value, interval))
    held_out = [HeldOut(source, tuple(dict.fromkeys((all_[0], all_[-1])))) for source, all_ in seen.items()]
    return Summary(held_out, len(seconds), statistics.median(seconds) if seconds else None)
