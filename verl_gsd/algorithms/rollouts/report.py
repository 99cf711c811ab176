"""The record column of a budget, and the report section of budget and sampler."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection

RECORD_COLUMNS = (
    RecordColumn(
        "asked",
        "int32",
        "Budget: requested rollouts. The size is smaller if sessions failed.",
    ),
)

#: The section shows both. The budget declares it.
REPORT = ReportSection(
    "allotment",
    "Budget and sampler",
    "A budget divides a step's rollouts among its prompts, and a sampler chooses these prompts. Both use the results "
    "of earlier visits.",
    (
        ReportChart(
            "sizes",
            "Rollouts per prompt",
            {f"{percent}th percentile": f"budget/rollouts/p{percent}" for percent in (10, 50, 90)},
            "rollouts",
        ),
        ReportChart(
            "mixed",
            "Mixed groups, expected and observed",
            {
                "expected with the budget": "budget/mixed/expected",
                "expected with equal groups": "budget/mixed/expected_if_equal",
                "observed": "mixed",
            },
            "share of the groups",
            values="share",
            needs="budget/mixed/expected",
        ),
        ReportChart(
            "drawn",
            "Expected disagreement of prompts",
            {"sampled": "sampler/disagreement/drawn", "whole data set": "sampler/disagreement/everywhere"},
            "mean of 2p(1-p) over prompts, p: solve rate",
        ),
        ReportChart(
            "effective",
            "Effective number of prompts",
            {"prompts": "sampler/effective_prompts"},
            "prompts",
            values="large",
        ),
    ),
)
