"""The type of a finding, thresholds of the package's findings, and helpers for finders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column
from verl_gsd.scalars import is_number


@dataclass(frozen=True)
class Finding:
    """A problem of a run.

    Attributes:
        title: what is wrong.
        text: what it means.
        overrides: config overrides that help, each for the command line and followed by a comment.
    """

    title: str
    text: str
    overrides: tuple[str, ...] = ()


#: A function (table with one row per step, config by dotted keys) -> findings. The table is a ``steps.step_table``. The
#: function yields nothing if there is no problem, or if the table lacks the columns that it reads.
Finder = Callable[[Columns, Mapping[str, Any]], Iterator[Finding]]


@dataclass(frozen=True)
class FindingThresholds:
    """Thresholds of the package's findings. A problem lies above its threshold, unless stated otherwise.

    Shares are in [0, 1].

    Attributes:
        window: number of steps whose mean counts as recent or initial; at most a third of the run's steps.
        trend: steps that a comparison of recent with initial means needs.
        silent: share of groups whose rewards are all equal.
        alone: share of groups with one response.
        failed: share of groups without a usable response.
        surplus, stale: shares of rollouts with these fates.
        noise: observed minus predicted share of silent groups, among groups that were predicted to be mixed.
        noise_groups: groups that this comparison needs.
        noise_errors: standard errors that the difference must exceed.
        entropy, length: recent mean divided by initial mean, below which the policy collapses.
        clipped: share of responses that reach the maximum length.
        accuracy: drop of held-out accuracy below its best, at two validations in succession.
        reward_of_step: time of the slowest reward as a share of its step.
    """

    window: int = 20
    trend: int = 12
    silent: float = 0.5
    alone: float = 0.05
    failed: float = 0.02
    surplus: float = 0.2
    stale: float = 0.1
    noise: float = 0.15
    noise_groups: int = 100
    noise_errors: float = 4.0
    entropy: float = 0.2
    length: float = 0.5
    clipped: float = 0.3
    accuracy: float = 0.05
    reward_of_step: float = 0.5


THRESHOLDS = FindingThresholds()


def recent_mean(table: Columns, name: str) -> float:
    """Mean of a column over the last steps that have a value; NaN if no step has one."""
    return _window_mean(column(table, name), last=True)


def initial_mean(table: Columns, name: str) -> float:
    """Mean of a column over the first steps that have a value; NaN if no step has one."""
    return _window_mean(column(table, name), last=False)


def count_values(table: Columns, name: str) -> int:
    """Number of steps at which the column has a value."""
    return int((~np.isnan(column(table, name))).sum())


def percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 or share == 0 else f"{100 * share:.1f}%"


def numeric_value(config: Mapping[str, Any], key: str) -> float | None:
    """The value of ``key`` if it is a number, else None."""
    value = config.get(key)
    return float(value) if is_number(value) else None


def scaled(config: Mapping[str, Any], key: str, factor: float, why: str) -> tuple[str, ...]:
    """Return an override that multiplies a key's value by ``factor``, or nothing if the value would not change.

    Integers are rounded down, to at least 1. If the value is not known to be a number, the override is ``key=...``.

    Args:
        config: dotted key -> value.
        why: the comment of the override.
    """
    value = config.get(key)
    if not is_number(value):
        return (f"{key}=...  # {why}",)
    wanted = max(1, int(value * factor)) if isinstance(value, int) else value * factor
    return () if wanted == value else (f"{key}={wanted:g}  # {why}; it is {value:g}",)


def _window_mean(values: np.ndarray, *, last: bool) -> float:
    known = values[~np.isnan(values)]
    size = max(1, min(THRESHOLDS.window, len(known) // 3))
    return float((known[-size:] if last else known[:size]).mean()) if len(known) else float("nan")
