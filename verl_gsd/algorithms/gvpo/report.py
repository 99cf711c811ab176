"""GVPO's report section."""

from __future__ import annotations

from verl_gsd.extension import ReportChart, ReportSection

REPORT = ReportSection(
    "gvpo",
    "GVPO",
    "s is a response's log-ratio to the reference, which is the policy before the step, or the reference model if "
    "policy_loss.reference=ref. A is its advantage.",
    (
        ReportChart(
            "mse",
            "Fit of beta s to A, both centred",
            {"fit": "gvpo/mse"},
            "squared error, rewards",
            hide_zeros=True,
        ),
        ReportChart(
            "s",
            "Spread of s within groups",
            {"spread": "gvpo/s_std"},
            "standard deviation, nats",
            hide_zeros=True,
        ),
        ReportChart(
            "pull",
            "Pull of the reference over push of the rewards",
            {"pull over push": "gvpo/pull_over_push"},
            "ratio",
            hide_zeros=True,
        ),
        ReportChart(
            "kl",
            "Distance from the reference",
            {"distance": "gvpo/sequence_kl"},
            "nats per response",
            hide_zeros=True,
        ),
        ReportChart(
            "length",
            "Correlation of s with length",
            {"correlation": "gvpo/s_length_correlation"},
            "correlation",
            hide_zeros=True,
        ),
        ReportChart(
            "history",
            "Earlier responses in the batch",
            {"earlier": "gvpo/history/share"},
            "share of the responses",
            values="share",
            hide_zeros=True,
        ),
    ),
)
