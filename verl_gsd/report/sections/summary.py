"""The first two sections of a page: the findings of each run, and a table of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verl_gsd.charts import Notice, Section, Table
from verl_gsd.errors import OUR_MODES
from verl_gsd.report.chart_data import first_and_last_fifth
from verl_gsd.report.charts import MAX_DOTS
from verl_gsd.report.findings import THRESHOLDS, collect_findings
from verl_gsd.report.findings.finding import count_values, has_every_acc, is_rated, percent
from verl_gsd.report.findings.policy import figure_of, held_out, needed_validations
from verl_gsd.report.findings.trends import SHIFT_STEPS
from verl_gsd.report.sections.view import RunView, Views
from verl_gsd.report.steps import column
from verl_gsd.rundir import EXACT

#: Checks that compare early with recent steps -> the number of steps that they need.
_CHECKS_OF_CHANGES = {
    "whether the entropy or the length of responses collapses": THRESHOLDS.trend,
    "whether the gradient norm has spikes": THRESHOLDS.trend,
    "whether the verifier can verify fewer responses than before": THRESHOLDS.trend,
    "whether the verdicts of the verifier shift at once": SHIFT_STEPS,
    "whether the loss oscillates": THRESHOLDS.oscillation_steps,
}
_MODE = "trainer.v1.trainer_mode"
#: Headers of the table of runs.
_ROLLOUTS = "accuracy of rollouts, first to last fifth"
_HELD_OUT = "held out, first to last"


def _without_records(prefix: str, config: Mapping[str, Any]) -> Notice:
    """Why a run has no records of groups, and what to set if that is the trainer mode."""
    title, text = f"{prefix}the run has no records of groups", "Most findings are based on records."
    if str(config.get(_MODE)) in OUR_MODES.values():
        return Notice(title, f"{text} The run writes them at the end of each step, so no step has ended yet.")
    return Notice(
        title,
        f"{text} They are therefore missing here. Trainer modes of verl-gsd write records.",
        (f"{_MODE}=gsd_sync  # or gsd_colocate_async, gsd_separate_async",),
    )


def findings_section(views: Views) -> Section:
    """List the findings of each run, and the files of each run that could not be read."""
    notices = []
    for name, view in views.items():
        prefix = f"{name}: " if len(views) > 1 else ""
        notices += [
            Notice(prefix + finding.title, finding.text, finding.overrides)
            for finding in collect_findings(view.table, view.run.config, view.run.words)
        ]
        notices += [Notice(f"{prefix}left out: {reason}") for reason in view.run.left_out()]
        if not len(view.run.records):
            notices.append(_without_records(prefix, view.run.config))
    text = (
        f"Problems in the last {THRESHOLDS.window} steps, or in the last third of a run with fewer than "
        f"{3 * THRESHOLDS.window} steps, and the settings that help."
    )
    no_findings = (
        "No problems were found. The report checks for silent or failed groups, wasted rollouts, failing or slow "
        "rewards, a policy that collapses, falling held-out accuracy or reward, and the problems that the run's "
        "algorithms declare."
    )
    texts = [text if notices else no_findings, *_not_checked(views)]
    return Section("words", "Findings", texts, notices=notices)


def _not_checked(views: Views) -> list[str]:
    """Sentences for the checks that need more steps, accuracies or validations than a run has, naming the runs."""
    return [*_unrated(views), *_without_acc(views), *_too_short(views), *_too_few_validations(views)]


def _unrated(views: Views) -> list[str]:
    unrated = [name for name, view in views.items() if not is_rated(view.table)]
    if not unrated:
        return []
    runs = _shares_of_rollouts(views, unrated, "unrated")
    return [
        f"There is no accuracy, a number in [0, 1], of {runs}. The report looked at their mean reward instead. It did "
        "not check whether more of their groups are silent than earlier visits predict, and has no pass@k and no "
        'difficulty of them. Return acc from the reward function, for example {"score": -1.0, "acc": 0.0} for a wrong '
        "response."
    ]


def _without_acc(views: Views) -> list[str]:
    lacking = [name for name, view in views.items() if is_rated(view.table) and not has_every_acc(view.table)]
    if not lacking:
        return []
    return [
        f"The reward function returned no acc for {_shares_of_rollouts(views, lacking, 'without_acc')}, although it "
        "did for others of the same data source. They count as wrong, as in verl's validations. Return acc for every "
        'response, for example {"score": 0.0, "acc": 0.0} if it finds no answer.'
    ]


def _shares_of_rollouts(views: Views, names: list[str], figure: str) -> str:
    """For example ``12% of the rollouts of this run``: the mean of the figure in each of the runs ``names``."""
    return ", ".join(
        f"{percent(float(np.nanmean(views[name].table[figure])))} of the rollouts of "
        f"{name if len(views) > 1 else 'this run'}"
        for name in names
    )


def _too_short(views: Views) -> list[str]:
    texts = []
    for name, view in views.items():
        count = int((view.table["step"] > 0).sum())
        skipped = [f"{check} (needs {steps} steps)" for check, steps in _CHECKS_OF_CHANGES.items() if count < steps]
        if skipped:
            run = name if len(views) > 1 else "this run"
            texts.append(f"Not checked, because {run} has {count} steps: {'; '.join(skipped)}.")
    return texts


def _too_few_validations(views: Views) -> list[str]:
    texts = []
    for name, view in views.items():
        run = name if len(views) > 1 else "this run"
        columns = held_out(view.table)
        if not columns:
            texts.append(f"Not checked, because {run} has no validations: whether held-out accuracy falls.")
        of_columns = [
            (count_values(view.table, column), needed_validations(view.table, column), figure_of(view.table, column))
            for column in columns
        ]
        for count, needed, figure in dict.fromkeys(of_columns):
            if count < needed:
                number = f"{count} validation{'s' * (count != 1)}"
                texts.append(
                    f"Not checked, because {run} has {number}: whether the held-out {figure} falls (needs {needed})."
                )
    return texts


def runs_section(views: Views) -> Section:
    """A table with one row per run."""
    header = ("run", "steps", "attempts", "groups", "rollouts", "tokens", "silent", _ROLLOUTS, _HELD_OUT)
    table = Table(header, [_row(name, view) for name, view in views.items()])
    is_smoothed = any((view.table["step"] > 0).sum() > MAX_DOTS for view in views.values())
    text = [
        "The accuracy of rollouts is a mean over prompts. Each prompt counts once, whatever its number of rollouts. "
        "The table shows the mean of the first fifth of the steps and that of the last fifth, because single steps are "
        "noisy. Held-out figures are those of the first and of the last validation. Attempts are the start of the run "
        "and each resume."
    ]
    if is_smoothed:
        text.append("In charts over steps, pale lines have the values and strong lines are smoothed.")
    return Section("runs", "Runs", text, table=table)


def _row(name: str, view: RunView) -> list[str]:
    table = view.table
    counts = [float(np.nansum(column(table, unit))) for unit in ("groups", "rollouts", "tokens")]
    silent = column(table, "silent")
    accuracy = column(table, "accuracy")
    validations = []
    for name_of_figure in held_out(table):
        figure = figure_of(table, name_of_figure)
        prefix = "" if figure == "accuracy" else f"{figure} "
        validations.append(prefix + _first_to_last(table[name_of_figure]))
    if EXACT in table:
        validations.append(f"exact {_first_to_last(table[EXACT])}")
    return [
        name,
        f"{int((table['step'] > 0).sum())}",
        f"{view.run.attempts}",
        *(f"{count:,.0f}" if count else "-" for count in counts),
        percent(float(np.nanmean(silent))) if (~np.isnan(silent)).any() else "-",
        _joined([float(accuracy[fifth].mean()) for fifth in first_and_last_fifth(accuracy)]),
        "; ".join(validations) or "-",
    ]


def _first_to_last(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return _joined([known[0], known[-1]][: len(known)])


def _joined(ends: Sequence[float]) -> str:
    return "\u00a0to\u00a0".join(f"{value:.3f}" for value in ends) or "-"
