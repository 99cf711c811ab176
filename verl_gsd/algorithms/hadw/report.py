"""HA-DW's record columns, figures per step, and report section."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection, StepFigure

RECORD_COLUMNS = (
    RecordColumn("hadw_anchor", about="HA-DW: the group's anchor. Null before the first observation."),
    RecordColumn("hadw_factor_right", about="HA-DW: the factor of the group's right responses."),
    RecordColumn("hadw_factor_wrong", about="HA-DW: the factor of the group's wrong responses."),
)

#: The metric with the accuracy that the anchors observe: under a budget, every prompt has the same weight in it. The
#: figure ``accuracy`` of a report is the mean over responses, most of which are then to hard prompts.
OBSERVED = "hadw/accuracy"

STEP_FIGURES = (
    StepFigure("anchor", "hadw_anchor", taught=True),
    StepFigure("phi_right", "hadw_factor_right", taught=True),
    StepFigure("phi_wrong", "hadw_factor_wrong", taught=True),
)

REPORT = ReportSection(
    "hadw",
    "HA-DW",
    "Phi multiplies the advantages. On prompts harder than the anchor, right responses count for more and wrong ones "
    "for less. On easier prompts it is the reverse. The charts show means over the mixed groups that were trained on. "
    "The accuracy is that of all groups, as the anchors observe it: under a budget, the mean over prompts.",
    (
        ReportChart(
            "anchor",
            "Anchor and accuracy",
            {"anchor": "anchor", "accuracy": OBSERVED},
            "accuracy",
            values="share",
        ),
        ReportChart(
            "phi",
            "Phi",
            {"right responses": "phi_right", "wrong responses": "phi_wrong"},
            "mean Phi",
            from_zero=False,
        ),
    ),
    needs="anchor",
)
