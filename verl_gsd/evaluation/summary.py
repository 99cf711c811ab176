"""What a finished run amounts to: held-out accuracy before and after, steps, seconds a step."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_gsd.evaluation.intervals import Proportion, wilson

_ACCURACY = re.compile(r"^val-core/(?P<source>.+)/acc/mean@\d+$")


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on one data source's held-out prompts at the first and the last validation."""

    source: str
    first_step: int
    before: Proportion
    last_step: int
    after: Proportion


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
        prompts: held-out prompts per data source, the trials of the interval. Several samples a prompt are counted as
            one, which makes the interval wider than need be, never narrower.
    """
    seconds = [data["timing_s/step"] for _, data in metrics if "timing_s/step" in data]
    seen: dict[str, list[tuple[int, float]]] = {}
    for step, data in metrics:
        for name, value in data.items():
            if match := _ACCURACY.match(name):
                seen.setdefault(match["source"], []).append((step, value))
    held_out = []
    for source, values in seen.items():
        (first_step, before), (last_step, after) = values[0], values[-1]
        n = prompts[source]
        held_out.append(
            HeldOut(source, first_step, wilson(round(before * n), n), last_step, wilson(round(after * n), n))
        )
    return Summary(held_out, len(seconds), statistics.median(seconds) if seconds else None)
