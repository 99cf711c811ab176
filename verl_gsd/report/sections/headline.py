"""The first section of a page: the figures that one asks for first, large."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from verl_gsd.charts import KeyFigure, KeyFigureRow, Section
from verl_gsd.report.chart_data import first_and_last_fifth
from verl_gsd.report.findings.finding import percent
from verl_gsd.report.findings.policy import figure_of, held_out, source_of
from verl_gsd.report.reading import Columns
from verl_gsd.report.sections.view import Views
from verl_gsd.report.steps import column

#: verl's metric of the seconds that a training step took.
_SECONDS = "timing_s/step"
#: verl's metric of the mean score of a batch.
_SCORE = "critic/score/mean"
_UNITS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def headline_section(views: Views) -> Section:
    """Accuracy from and to, silent groups, tokens and time of each run."""
    rows = [
        KeyFigureRow(
            name if len(views) > 1 else "", [_accuracy(view.table), *_silent(view.table), *_amounts(view.table)]
        )
        for name, view in views.items()
    ]
    return Section("headline", "At a glance", figures=rows)


def _accuracy(table: Columns) -> KeyFigure:
    """The mean over data sources of the held-out accuracy; or else the accuracy, or the reward, of the rollouts."""
    names = [name for name in held_out(table) if figure_of(table, name) == "accuracy"]
    if names:
        values = np.mean([table[name] for name in names], axis=0)  # NaN at steps where a source was not validated
        note = source_of(names[0]) if len(names) == 1 else f"mean of {len(names)} data sources"
        if (~np.isnan(values)).any():
            return KeyFigure("held-out accuracy", *_from_to(table["step"], values, note, percent))
    accuracy = column(table, "accuracy")
    if (~np.isnan(accuracy)).any():
        return KeyFigure("accuracy of rollouts, mean over prompts", *_means_from_to(table["step"], accuracy, percent))
    name, figure = ("reward, mean over prompts", "reward") if "reward" in table else ("mean reward", _SCORE)
    return KeyFigure(name, *_means_from_to(table["step"], column(table, figure), lambda value: f"{value:.3g}"))


def _means_from_to(steps: np.ndarray, values: np.ndarray, written: Callable[[float], str]) -> tuple[str, str]:
    """The means of the first and of the last fifth of the known values, and a note with their steps."""
    fifths = first_and_last_fifth(values)
    if all(len(fifth) == 1 for fifth in fifths):
        return _from_to(steps, values, "", written)
    spans = " and ".join(f"{steps[fifth[0]]} to {steps[fifth[-1]]}" for fifth in fifths)
    return " to ".join(written(float(values[fifth].mean())) for fifth in fifths), f"means of steps {spans}"


def _from_to(steps: np.ndarray, values: np.ndarray, note: str, written: Callable[[float], str]) -> tuple[str, str]:
    """The first and the last known value, and a note with their steps."""
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        return "-", "unknown"
    ends = list(dict.fromkeys((known[0], known[-1])))
    at = f"step{'s' * (len(ends) - 1)} {' and '.join(str(steps[end]) for end in ends)}"
    return " to ".join(written(values[end]) for end in ends), f"{note}, {at}".removeprefix(", ")


def _silent(table: Columns) -> list[KeyFigure]:
    silent, groups = column(table, "silent"), float(np.nansum(column(table, "groups")))
    if not (~np.isnan(silent)).any():
        return []
    share = percent(float(np.nanmean(silent)))
    return [KeyFigure("silent groups", share, f"of all {groups:,.0f} groups teach nothing")]


def _amounts(table: Columns) -> list[KeyFigure]:
    tokens, rollouts, seconds = (float(np.nansum(column(table, name))) for name in ("tokens", "rollouts", _SECONDS))
    steps = f"{int((table['step'] > 0).sum()):,} training steps"
    figures = [KeyFigure("tokens generated", _amount(tokens), f"{_amount(rollouts)} rollouts")] if tokens else []
    return [*figures, *([KeyFigure("time", _duration(seconds), steps)] if seconds else [])]


def _amount(number: float) -> str:
    """A number of three digits with a word from a million on."""
    rounded = float(f"{number:.3g}")  # before the choice of the word: 999.9 million are 1 billion
    for size, word in _UNITS:
        if rounded >= size:
            return f"{rounded / size:.3g} {word}"
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
