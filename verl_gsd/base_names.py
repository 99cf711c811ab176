"""Names that the package itself uses in records, reports and histograms. Extensions must choose other names."""

from __future__ import annotations

from collections.abc import Mapping

from verl_gsd.declaration import RecordColumn

#: Record columns that every run has, in their order in a file. Columns of extensions follow.
RECORD_COLUMNS: tuple[RecordColumn, ...] = (
    RecordColumn("step", "int32", "Trainer step in which the group left the replay buffer."),
    RecordColumn("attempt", "int32", "Attempt of the run. A resume begins the next one."),
    RecordColumn("fate", "string", "How the group left: `trained`, `filtered`, `surplus`, `stale` or `failed`."),
    RecordColumn("data_source", "string", "Data source of the prompt."),
    RecordColumn("index", "int64", "Dataset index of the prompt, or its hash if indices are not unique."),
    RecordColumn("size", "int32", "Responses in the group."),
    RecordColumn("correct", "float64", "Sum of the responses' accuracies. A response without an `acc` counts as 0."),
    RecordColumn(
        "total",
        "int32",
        "Responses that have an accuracy: all responses of the visit, or 0 if their data source has no accuracies. It "
        "has none before the first step in which one of its responses has an `acc`, and from the step on in which one "
        "has an `acc` outside [0, 1].",
    ),
    RecordColumn("mean", "float64", "Mean reward. Null for a group without responses."),
    RecordColumn("std", "float64", "Population standard deviation sigma of the rewards. Null without responses."),
    RecordColumn(
        "kind",
        "string",
        "`all_right` if all responses of the visit have the accuracy 1, `all_wrong` if all have 0, `equal` if all have "
        "the same between 0 and 1, else `mixed`. If the data source has no accuracies: `equal` if all responses have "
        "the same `acc`, or the same reward if one has no `acc`, else `mixed`. Nothing tells then whether equal "
        "responses are right. Null without responses. In files of older versions, `all_right` can be any equal "
        "accuracy above 0.5, and `all_wrong` any other.",
    ),
    RecordColumn(
        "silent",
        "bool",
        "Whether the group teaches nothing: its rewards are all equal, or dynamic sampling evicted it. A length or "
        "format penalty can make the rewards of an `all_right` group differ; such a group is not silent if it is "
        "trained on. With `algorithm.use_kl_in_reward=true`, whose penalty makes equal rewards differ, it is whether "
        "`mass` is 0, or dynamic sampling evicted the group. Null without responses, and in files of version 5 and "
        "older, in which `kind` described the rewards.",
    ),
    RecordColumn(
        "gain",
        "float64",
        "sigma^(2 - alpha), and 0 for a silent group. For alpha > 1, sigma has a floor f, and the gain is sigma^alpha "
        "f^(2 - 2 alpha) below it (`verl_gsd/dial.py`). Null without responses, with `algorithm.use_kl_in_reward=true`"
        ", and where the estimator has no gain.",
    ),
    RecordColumn("tokens", "int64", "Tokens that the policy wrote, of all responses. What tools wrote does not count."),
    RecordColumn(
        "demonstrations",
        "int32",
        "Demonstrations in the group. The other columns describe the response that a demonstration replaced.",
    ),
    RecordColumn(
        "silent_predicted",
        "float64",
        "Probability that a group of this size is all right or all wrong, predicted from earlier visits to the prompt. "
        "Null at the first visit, and where responses have no accuracy or the prompt had accuracies between 0 and 1.",
    ),
    RecordColumn(
        "unverified",
        "int32",
        "Responses that the verifier could not verify and counted as wrong. Null if the verifier does not report it.",
    ),
    RecordColumn(
        "failed_rewards",
        "int32",
        "Responses that left the group because their reward failed. They count in no other column.",
    ),
    RecordColumn(
        "distinct_answers",
        "int32",
        "Different final answers of the responses, as the verifier returned them (`answer` or `pred`). Null if it does "
        "not return them.",
    ),
    RecordColumn(
        "partial",
        "float64",
        "Sum of accuracy (1 - accuracy) of the responses: 0 if every accuracy is 0 or 1, and more with partial credit. "
        "Null if the data source has no accuracies, and the verifier returned no `acc` for any of them.",
    ),
    RecordColumn(
        "answers",
        "binary",
        "The final answers as digests, with the number of responses of each (`verl_gsd/answer_counts.py`). Null if the "
        "verifier does not return answers.",
    ),
    RecordColumn(
        "earlier",
        "int32",
        "Responses that an earlier visit to the prompt generated. They count in `size` and in the columns about "
        "rewards, and in no other. Null in files of version 6 and older.",
    ),
    RecordColumn(
        "mass",
        "float64",
        "Half the sum of the absolute advantages of the group's rows, as the update uses them. With the dial alone and "
        "rewards of 0 and 1, this is `size` times `gain`. Weights, masks and demonstrations change it. Null if the "
        "group was not trained on or the estimator is not `gsd`, and in files of version 6 and older.",
    ),
    RecordColumn(
        "without_acc",
        "int32",
        "Responses of the visit for which the verifier returned no `acc`, or one that is no number. Null in files of "
        "version 7 and older.",
    ),
)

#: The k for which reports and metrics have pass@k of the groups.
PASS_KS = (2, 4, 8, 16, 32, 64)

#: Kind of name -> names that the package uses.
BASE_NAMES: Mapping[str, tuple[str, ...]] = {
    "record column": tuple(column.name for column in RECORD_COLUMNS),
    "figure per step": (
        *("step", "groups", "rollouts", "tokens", "tokens_per_response", "lost_rewards", "accuracy", "sigma"),
        *("reward", "reward_spread", "unrated", "without_acc"),
        "entropy",
        *("mixed", "all_right", "all_wrong", "equal", "silent", "shaped", "graded", "alone", "demonstrated", "failed"),
        *("rollouts_taught", "rollouts_silent", "rollouts_filtered"),
        *("rollouts_surplus", "rollouts_stale", "rollouts_failed"),
        *("tokens_taught", "tokens_silent", "tokens_filtered", "tokens_surplus", "tokens_stale", "tokens_failed"),
        *("gain_hard", "gain_between", "gain_easy"),
        *("seen_silent", "seen_predicted", "seen_predicted_without_forgetting", "seen_predicted_by_law"),
        *("law_a", "law_b"),
        *("likely_groups", "likely_silent", "likely_predicted"),
        *("likely_wrong", "likely_wrong_predicted", "likely_wrong_variance"),
        *("distinct_answers", "answers_in_visit", "answers_in_visits", "pass_at_1", *(f"pass_at_{k}" for k in PASS_KS)),
    ),
    "report section": (
        *("headline", "words", "runs", "settings", "accuracy", "diversity", "sigma", "silence", "difficulty", "waste"),
        *("prompts", "policy"),
        *("waiting", "error"),  # only in a page of `verl-gsd report --watch`
    ),
    "histogram": ("sigma", "accuracy", "judge_score"),
}
