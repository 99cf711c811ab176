"""DaGRPO's record columns, figures per step, and report section."""

from __future__ import annotations

from verl_gsd.extension import RecordColumn, ReportChart, ReportSection, StepFigure

#: All are null for a group that was not judged.
RECORD_COLUMNS = (
    RecordColumn(
        "dagrpo_pairs",
        "int32",
        "DaGRPO: pairs of a right and a wrong response: their verdicts and their rewards differ. Without `acc`, pairs "
        "of unequal rewards. Null if the group was not judged.",
    ),
    RecordColumn(
        "dagrpo_pairs_kept",
        "int32",
        "DaGRPO: of these pairs, those that the mask kept. With `mask=min`, `mean` or `max`, those of which it kept "
        "both responses.",
    ),
    RecordColumn(
        "dagrpo_pairs_contradicted", "int32", "DaGRPO: of these pairs, those in which the judge prefers the wrong one."
    ),
    RecordColumn(
        "dagrpo_pairs_shaped",
        "int32",
        "DaGRPO: pairs of unequal rewards and equal verdicts, which differ by a shaped term alone. Null in files in "
        "which `dagrpo_pairs` and the two columns after it count these pairs, too.",
    ),
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
    "Each pair is a right and a wrong response to one prompt. The mask keeps the pairs whose judge scores differ by "
    "delta or more; with mask=min, mean or max, it keeps the pairs of which it keeps both responses. The judge "
    "contradicts the verifier in pairs in which it prefers the wrong response. Pairs scored alike have equal scores. "
    "Pairs with equal verdicts, whose rewards differ by a shaped term alone, have a chart of their own and count in no "
    "other.",
    (
        ReportChart(
            "pairs",
            "Pairs",
            {"kept": "pairs_kept", "contradicted": "pairs_contradicted", "scored alike": "dagrpo/pairs/tied"},
            "share of the pairs",
            values="share",
        ),
        ReportChart(
            "shaped",
            "Pairs with equal verdicts and unequal rewards",
            {"equal verdicts": "dagrpo/pairs/shaped"},
            "share of the pairs of unequal rewards",
            values="share",
            hide_zeros=True,
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
