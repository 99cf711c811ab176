"""What a finding is, and the thresholds of findings that no extension makes."""

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
    """Something wrong: ``title`` says what, ``text`` what it means; ``write`` are keys for the command line, each with
    a comment."""

    title: str
    text: str
    write: tuple[str, ...] = ()


#: Of a table with a row a step (``steps.by_step``) and a config's dotted keys. It yields nothing where all is well, or
#: where the table does not have what it looks at.
Finder = Callable[[Columns, Mapping[str, Any]], Iterator[Finding]]


@dataclass(frozen=True)
class Limits:
    """From where on something is worth a reader's time. Shares are in [0, 1]."""

    #: Steps that "now" and "at first" mean, a third of the run at most; and steps below which no trend is one.
    window: int = 20
    trend: int = 12
    silent: float = 0.5
    alone: float = 0.05
    failed: float = 0.02
    surplus: float = 0.2
    stale: float = 0.1
    #: Observed silence less predicted, where a mixed group was likelier; groups it takes; standard errors.
    noise: float = 0.15
    noise_groups: int = 100
    noise_errors: float = 4.0
    #: Of what it was at first.
    entropy: float = 0.2
    length: float = 0.5
    #: Responses cut at the longest length allowed.
    clipped: float = 0.3
    #: Held-out accuracy below its best, twice running.
    accuracy: float = 0.05
    #: The slowest reward as a share of its step.
    reward_of_step: float = 0.5


LIMITS = Limits()


def now(table: Columns, name: str) -> float:
    """Mean of the last steps that have the column; NaN where none has."""
    return _mean(column(table, name), last=True)


def at_first(table: Columns, name: str) -> float:
    """Mean of the first steps that have the column; NaN where none has."""
    return _mean(column(table, name), last=False)


def steps_with(table: Columns, name: str) -> int:
    return int((~np.isnan(column(table, name))).sum())


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 or share == 0 else f"{100 * share:.1f} %"


def number_of(config: Mapping[str, Any], key: str) -> float | None:
    """The key's value if it is a number."""
    value = config.get(key)
    return float(value) if is_number(value) else None


def scaled(config: Mapping[str, Any], key: str, factor: float, why: str) -> tuple[str, ...]:
    """``key=value`` with ``factor`` times what it is, a whole number where that is one; ``...`` where it is not known,
    and nothing where it would stay what it is."""
    value = config.get(key)
    if not is_number(value):
        return (f"{key}=...  # {why}",)
    wanted = max(1, int(value * factor)) if isinstance(value, int) else value * factor
    return () if wanted == value else (f"{key}={wanted:g}  # {why}; it is {value:g}",)


def _mean(values: np.ndarray, *, last: bool) -> float:
    known = values[~np.isnan(values)]
    size = max(1, min(LIMITS.window, len(known) // 3))
    return float((known[-size:] if last else known[:size]).mean()) if len(known) else float("nan")
