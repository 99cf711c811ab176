"""What a budget and a sampler show of a run: a record column and their section of a report."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection

RECORD_COLUMNS = (
    RecordColumn(
        "asked",
        "int32",
        "Budget: rollouts that it requested. The size differs from it only by sessions that failed.",
    ),
)

#: Of both: the budget declares it.
REPORT = ReportSection(
    "allotment",
    "Budget and sampler",
    "A budget shares out a step's rollouts, and a sampler chooses its prompts, by what earlier visits say of them.",
    (
        ReportChart(
            "sizes",
            "Rollouts of a prompt",
            {f"{percent}th percentile": f"budget/rollouts/p{percent}" for percent in (10, 50, 90)},
            "rollouts",
        ),
        ReportChart(
            "mixed",
            "Mixed groups, expected and as it was",
            {
                "with the budget": "budget/mixed/expected",
                "with equal groups": "budget/mixed/expected_if_equal",
                "as it was": "mixed",
            },
            "share of the groups",
            values="share",
            needs="budget/mixed/expected",
        ),
        ReportChart(
            "drawn",
            "Expected disagreement of prompts",
            {"drawn": "sampler/disagreement/drawn", "in all the data": "sampler/disagreement/everywhere"},
            "mean of 2p(1-p)",
        ),
        ReportChart(
            "effective",
            "Prompts drawn from, effectively",
            {"prompts": "sampler/effective_prompts"},
            "prompts",
            values="large",
        ),
    ),
)
