"""What HA-DW shows of a run: record columns, figures per step and its section of a report."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection, StepFigure

RECORD_COLUMNS = (
    RecordColumn("hadw_anchor", about="HA-DW: the anchor that the group met. Null before the first one."),
    RecordColumn("hadw_factor_right", about="HA-DW: factor of the group's right responses."),
    RecordColumn("hadw_factor_wrong", about="HA-DW: factor of the group's wrong responses."),
)

STEP_FIGURES = (
    StepFigure("anchor", "hadw_anchor", taught=True),
    StepFigure("phi_right", "hadw_factor_right", taught=True),
    StepFigure("phi_wrong", "hadw_factor_wrong", taught=True),
)

REPORT = ReportSection(
    "hadw",
    "HA-DW",
    "Phi multiplies an advantage: on prompts harder than the anchor right responses count for more and wrong ones "
    "for less, on easier ones the reverse. Means over the mixed groups that were trained on.",
    (
        ReportChart(
            "anchor",
            "Anchor and accuracy",
            {"anchor": "anchor", "accuracy": "accuracy"},
            "accuracy",
            values="share",
        ),
        ReportChart(
            "phi",
            "Phi",
            {"of right responses": "phi_right", "of wrong ones": "phi_wrong"},
            "mean Phi",
            from_zero=False,
        ),
    ),
    needs="anchor",
)
