"""The type of a finding, thresholds of the package's findings, and helpers for finders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column, source_column, sources_of
from verl_gsd.scalars import is_finite


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
        silent_errors: standard errors by which that share must exceed its threshold.
        partial: share of groups whose verdicts agree and whose scores differ.
        alone: share of groups with one response.
        failed: share of groups without a usable response.
        surplus, stale: shares of rollouts with these fates.
        noise: observed minus predicted share of groups without a right response, among groups that were predicted to
            be mixed.
        noise_groups: groups that this comparison needs.
        noise_errors: standard errors that the difference must exceed.
        start: the smallest number of first steps whose median counts as a level at the start of the run.
        entropy: recent mean divided by the largest level at the start, below which the policy collapses.
        length: recent mean divided by the largest earlier mean, below which the policy collapses.
        clipped: share of responses that reach the maximum length.
        accuracy: fall of held-out accuracy from its best. It must also exceed what chance explains.
        reward_of_step: time of the slowest reward as a share of its step.
        gradient_spike: gradient norm of a step divided by the median norm.
        gradient_spreads: robust standard deviations of the logarithm of the norm that a spike must exceed.
        oscillation: spread of the loss in the last third of the steps divided by that in the first third.
        oscillation_steps: steps that this comparison needs.
        loss_spread: spread of the loss below which its growth does not matter.
        shift: sudden change of the accuracy of the rollouts.
        unverified: growth of the share of responses that the verifier could not verify.
        growth_errors: standard errors that a growth must exceed.
    """

    window: int = 20
    trend: int = 12
    silent: float = 0.5
    silent_errors: float = 2.0
    partial: float = 0.01
    alone: float = 0.05
    failed: float = 0.02
    surplus: float = 0.2
    stale: float = 0.1
    noise: float = 0.06
    noise_groups: int = 100
    noise_errors: float = 4.0
    start: int = 3
    entropy: float = 0.2
    length: float = 0.5
    clipped: float = 0.3
    accuracy: float = 0.05
    reward_of_step: float = 0.5
    gradient_spike: float = 100.0
    gradient_spreads: float = 8.0
    oscillation: float = 6.0
    oscillation_steps: int = 60
    loss_spread: float = 1e-3
    shift: float = 0.15
    unverified: float = 0.05
    growth_errors: float = 4.0


THRESHOLDS = FindingThresholds()
#: Whether verl subtracts a KL penalty from rewards, which makes equal ones differ.
KL_IN_REWARD = "algorithm.use_kl_in_reward"
#: A finding describes this many data sources.
_MOST_SOURCES = 5


def recent_mean(table: Columns, name: str) -> float:
    """Mean of a column over the last steps that have a value; NaN if no step has one."""
    values = known_values(table, name)
    return float(values[-window_size(values) :].mean()) if len(values) else float("nan")


def recent_sum(table: Columns, name: str) -> float:
    """Sum of a column over the steps of ``recent_mean``; 0 if no step has a value."""
    values = known_values(table, name)
    return float(values[-window_size(values) :].sum()) if len(values) else 0.0


def recent_count(table: Columns, name: str) -> int:
    """Number of steps of ``recent_mean``; 0 if no step has a value."""
    values = known_values(table, name)
    return window_size(values) if len(values) else 0


def initial_mean(table: Columns, name: str) -> float:
    """Mean of a column over the first steps that have a value; NaN if no step has one."""
    values = known_values(table, name)
    return float(values[: window_size(values)].mean()) if len(values) else float("nan")


def largest_mean(table: Columns, name: str) -> float:
    """The largest mean of a column over as many steps in a row as ``recent_mean`` uses; NaN if no step has a value."""
    values = known_values(table, name)
    if not len(values):
        return float("nan")
    size = window_size(values)
    return float(np.lib.stride_tricks.sliding_window_view(values, size).mean(axis=1).max())


def columns_of_parts(table: Columns, pooled: str, figure: str) -> list[tuple[str, str]]:
    """(words, column) of each data source, or of ``pooled`` alone if the run has a single source.

    A figure over all sources changes with their shares of the groups, although nothing changes in any of them. And a
    source in which much changes can be hidden by the others.

    Args:
        pooled: the column over all rollouts. Its words are empty. The words of a source are `` of SOURCE``.
        figure: the figure in ``steps.source_column``.
    """
    of_sources = [(f" of {source}", source_column(figure, source)) for source in sources_of(table)]
    return of_sources or [("", pooled)]


def errors_in_parts(errors: float, n_parts: int) -> float:
    """The standard errors that chance exceeds in any of ``n_parts`` as rarely as it exceeds ``errors`` in one.

    It follows from the tail of the normal law.
    """
    return float(np.sqrt(errors**2 + 2 * np.log(n_parts)))


def about_sources(sentences: Sequence[str]) -> str:
    """The first few of ``sentences``, of which each is about another data source, and how many more there are."""
    more = len(sentences) - _MOST_SOURCES
    return " ".join(
        [*sentences[:_MOST_SOURCES], *([f"The same holds for {more} other data sources."] if more > 0 else [])]
    )


def known_values(table: Columns, name: str) -> np.ndarray:
    """The values of a column, without the steps that have none."""
    values = column(table, name)
    return values[~np.isnan(values)]


def count_values(table: Columns, name: str) -> int:
    """Number of steps at which the column has a value."""
    return len(known_values(table, name))


def is_rated(table: Columns) -> bool:
    """Whether no rollout of the run is known to lack an accuracy in [0, 1]. One that counts as wrong has one."""
    return not np.nansum(column(table, "unrated"))


def has_every_acc(table: Columns) -> bool:
    """Whether the verifier is not known to have returned no ``acc`` in [0, 1] for some rollout."""
    return is_rated(table) and not np.nansum(column(table, "without_acc"))


def on_reward_scale(table: Columns, threshold: float, spreads: str = "reward_spread") -> float:
    """A threshold for accuracies, in the units of the run's rewards; NaN if their spread is not known.

    Right and wrong responses in equal numbers have a standard deviation of 0.5. For rewards of 0 and 1, the threshold
    therefore stays what it is, and for rewards of -1 and 1 it is twice as large. Almost the largest spread of all steps
    is decisive: it is small as long as a policy solves almost nothing.

    Args:
        spreads: the column with the standard deviations of the rewards.
    """
    spread = known_values(table, spreads)
    return threshold * float(np.quantile(spread, 0.9)) / 0.5 if len(spread) else float("nan")


def percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 or share == 0 else f"{100 * share:.1f}%"


def numeric_value(config: Mapping[str, Any], key: str) -> float | None:
    """The value of ``key`` if it is a finite number, else None."""
    value = config.get(key)
    return float(value) if is_finite(value) else None


def assigned(config: Mapping[str, Any], key: str, value: str | float | bool, why: str) -> tuple[str, ...]:
    """Return an override that sets ``key`` to ``value``, or nothing if the key is known to have this value.

    Args:
        config: dotted key -> value.
        why: the comment of the override.
    """
    text = str(value).lower() if isinstance(value, bool) else f"{value}"
    return () if config.get(key) == value else (f"{key}={text}  # {why}",)


def scaled(config: Mapping[str, Any], key: str, factor: float, why: str, *, is_count: bool = True) -> tuple[str, ...]:
    """Return an override that multiplies a key's value by ``factor``, or nothing if the value would not change.

    If the value is not known to be a number, the override is ``key=...``.

    Args:
        config: dotted key -> value.
        why: the comment of the override.
        is_count: an integer stays one: it is rounded down, to at least 1. Set it to False for a quantity that can have
            any value, and that a user may have written as an integer.
    """
    value = config.get(key)
    if not is_finite(value):
        return (f"{key}=...  # {why}",)
    wanted = max(1, int(value * factor)) if is_count and isinstance(value, int) else value * factor
    return () if wanted == value else (f"{key}={wanted:g}  # {why}; it is {value:g}",)


def window_size(values: np.ndarray) -> int:
    """Number of values whose mean counts as recent or initial."""
    return max(1, min(THRESHOLDS.window, len(values) // 3))
