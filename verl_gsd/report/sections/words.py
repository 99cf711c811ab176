"""First in words: what is wrong, and what the runs amount to."""

from __future__ import annotations

import numpy as np

from verl_gsd.charts import Notice, Section, Table
from verl_gsd.report.findings import findings
from verl_gsd.report.findings.finding import LIMITS, percent
from verl_gsd.report.findings.of_policy import held_out
from verl_gsd.report.sections.view import View, Views
from verl_gsd.report.steps import column


def wrong(views: Views) -> Section:
    """The findings of each run, and what could not be read."""
    notices = []
    for name, view in views.items():
        prefix = f"{name}: " if len(views) > 1 else ""
        notices += [
            Notice(prefix + finding.title, finding.text, finding.write)
            for finding in findings(view.table, view.run.config)
        ]
        notices += [Notice(f"{prefix}left out: {reason}") for reason in view.run.left_out()]
        if not len(view.run.records):
            notices.append(
                Notice(
                    f"{prefix}no records, so that nothing is known of groups",
                    "What is looked for in groups (silence, noise, waste, anchors, judges) was not looked at. A "
                    "trainer mode of ours writes records.",
                    ("trainer.v1.trainer_mode=gsd_sync  # or gsd_colocate_async, gsd_separate_async",),
                )
            )
    text = f"What stands out in the last {LIMITS.window} steps, or a third of a shorter run, and what to write instead."
    quiet = (
        "Nothing of what is looked for was found: silence, noise, waste, collapse, a frozen anchor, a judge that fails."
    )
    return Section("words", "In words", [text if notices else quiet], notices=notices)


def runs(views: Views) -> Section:
    """A row a run."""
    header = ("run", "steps", "attempts", "groups", "rollouts", "tokens", "silent", "accuracy of rollouts", "held out")
    return Section("runs", "Runs", table=Table(header, [_row(name, view) for name, view in views.items()]))


def _row(name: str, view: View) -> list[str]:
    table = view.table
    counts = [float(np.nansum(column(table, of))) for of in ("groups", "rollouts", "tokens")]
    silent = column(table, "silent")
    accuracy = column(table, "accuracy")
    validations = [f"{_ends(table[of])}" for of in held_out(table)]
    return [
        name,
        f"{int((table['step'] > 0).sum())}",
        f"{view.run.attempts}",
        *(f"{count:,.0f}" if count else "-" for count in counts),
        percent(float(np.nanmean(silent))) if (~np.isnan(silent)).any() else "-",
        _ends(accuracy),
        "; ".join(validations) or "-",
    ]


def _ends(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return (
        f"{known[0]:.3f}\u00a0to\u00a0{known[-1]:.3f}" if len(known) > 1 else f"{known[0]:.3f}" if len(known) else "-"
    )
