"""DaGRPO's record columns, figures per step, and report section."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection, StepFigure

#: All are null for a group that was not judged.
RECORD_COLUMNS = (
    RecordColumn(
        "dagrpo_pairs", "int32", "DaGRPO: pairs of a better and a worse response. Null if the group was not judged."
    ),
    RecordColumn("dagrpo_pairs_kept", "int32", "DaGRPO: pairs that the mask kept."),
    RecordColumn("dagrpo_pairs_contradicted", "int32", "DaGRPO: pairs in which the judge prefers the worse response."),
    RecordColumn("judge_failed", "int32", "DaGRPO: responses whose judgement failed."),
    RecordColumn("judge_score", "float64", "DaGRPO: mean score of the judged responses."),
)

STEP_FIGURES = (
    StepFigure("pairs_kept", "dagrpo_pairs_kept", over="dagrpo_pairs"),
    StepFigure("pairs_contradicted", "dagrpo_pairs_contradicted", over="dagrpo_pairs"),
    StepFigure("judge_failed", "judge_failed", over="size"),
    StepFigure("judge_score", "judge_score"),
)

REPORT = ReportSection(
    "dagrpo",
    "DaGRPO",
    "Each pair is a better and a worse response to one prompt. The mask keeps the pairs whose judge scores differ by "
    "delta or more. The judge contradicts the verifier in pairs in which it prefers the worse response. Pairs scored "
    "alike have equal scores.",
    (
        ReportChart(
            "pairs",
            "Pairs",
            {"kept": "pairs_kept", "contradicted": "pairs_contradicted", "scored alike": "dagrpo/pairs/tied"},
            "share of the pairs",
            values="share",
        ),
        ReportChart("score", "Judge's mean score", {"score": "judge_score"}, "score"),
        ReportChart(
            "failed",
            "Judgements that failed",
            {"failed": "judge_failed"},
            "share of the responses",
            values="share",
            hide_zeros=True,
        ),
        ReportChart(
            "latency",
            "Duration of a call to the judge",
            {"median": "judge/latency/p50", "95th percentile": "judge/latency/p95"},
            "seconds",
        ),
        ReportChart(
            "wanted",
            "Demonstrations",
            {"wanted": "dagrpo/demonstrations/wanted", "found": "dagrpo/demonstrations/found"},
            "groups per step",
        ),
        ReportChart(
            "probability",
            "Probability of a token under the policy",
            {
                "demonstrations": "dagrpo/demonstrations/token_probability",
                "own responses to the same prompts": "dagrpo/demonstrations/own_token_probability",
            },
            "mean probability",
        ),
        ReportChart(
            "shown",
            "Groups with a demonstration",
            {"demonstrated": "demonstrated"},
            "share of the groups",
            values="share",
            hide_zeros=True,
        ),
    ),
)
