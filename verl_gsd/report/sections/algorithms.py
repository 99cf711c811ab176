"""What HA-DW, DaGRPO, GVPO, a budget and a sampler did."""

from __future__ import annotations

from verl_gsd.charts import Section
from verl_gsd.report.charts import LARGE, NUMBER, SHARE, lines
from verl_gsd.report.sections.view import Views, has, section, tables


def hadw(views: Views) -> Section | None:
    if not has(views, "anchor"):
        return None
    of = tables(views, having="anchor")
    text = [
        "Phi multiplies an advantage: on prompts harder than the anchor right responses count for more and wrong ones "
        "for less, on easier ones the reverse. Means over the mixed groups that were trained on."
    ]
    panels = [
        ("anchor", "Anchor and accuracy", lines(of, {"anchor": "anchor", "accuracy": "accuracy"}, "accuracy", SHARE)),
        (
            "phi",
            "Phi",
            lines(of, {"of right responses": "phi_right", "of wrong ones": "phi_wrong"}, "mean Phi", zero=False),
        ),
    ]
    return section("hadw", "HA-DW", text, panels)


def dagrpo(views: Views) -> Section | None:
    of = tables(views)
    text = [
        "Pairs of a better and a worse response to one prompt; the mask keeps those that the judge tells apart. The "
        "judge contradicts the verifier where it prefers the worse, and scores them alike where it has no preference."
    ]
    pairs = {"kept": "pairs_kept", "contradicted": "pairs_contradicted", "scored alike": "dagrpo/pairs/tied"}
    waits = {"median": "judge/latency/p50", "95th percentile": "judge/latency/p95"}
    stories = {name: f"dagrpo/demonstrations/{name}" for name in ("wanted", "found")}
    failures = lines(of, {"failed": "judge_failed"}, "share of the responses", SHARE)
    shown = lines(of, {"demonstrated": "demonstrated"}, "share of the groups", SHARE)
    panels = [
        ("pairs", "Pairs", lines(of, pairs, "share of the pairs", SHARE)),
        ("score", "Judge's mean score", lines(of, {"score": "judge_score"}, "score")),
        ("failed", "Judgements that failed", failures if has(views, "judge_failed") else None),
        ("latency", "Time of a judge's call", lines(of, waits, "seconds")),
        ("wanted", "Demonstrations", lines(of, stories, "groups in a step")),
        ("shown", "Groups with a demonstration", shown if has(views, "demonstrated") else None),
    ]
    return section("dagrpo", "DaGRPO", text, panels)


def gvpo(views: Views) -> Section | None:
    of = tables(views)
    text = ["s is a response's log-ratio to the policy before the step, A its advantage."]
    figures = (
        ("mse", "Fit of beta s to A, both centred", "gvpo/mse", "squared error, rewards", NUMBER),
        ("s", "Spread of s within groups", "gvpo/s_std", "standard deviation, nats", NUMBER),
        ("pull", "Pull of the reference over push of the rewards", "gvpo/pull_over_push", "ratio", NUMBER),
        ("kl", "Distance from the policy before the step", "gvpo/sequence_kl", "nats a response", NUMBER),
        ("length", "Correlation of s with length", "gvpo/s_length_correlation", "correlation", NUMBER),
        ("history", "Earlier responses in the batch", "gvpo/history/share", "share of the responses", SHARE),
    )
    drawn = [
        (name, title, lines(of, {title: metric}, y, form) if has(views, metric) else None)
        for name, title, metric, y, form in figures
    ]
    return section("gvpo", "GVPO", text, drawn)


def allotment(views: Views) -> Section | None:
    of = tables(views)
    text = [
        "A budget shares out a step's rollouts, and a sampler chooses its prompts, by what earlier visits say of them."
    ]
    sizes = {f"{percent}th percentile": f"budget/rollouts/p{percent}" for percent in (10, 50, 90)}
    mixed = {
        "with the budget": "budget/mixed/expected",
        "with equal groups": "budget/mixed/expected_if_equal",
        "as it was": "mixed",
    }
    spread = {"drawn": "sampler/disagreement/drawn", "in all the data": "sampler/disagreement/everywhere"}
    expected = lines(tables(views, having="budget/mixed/expected"), mixed, "share of the groups", SHARE)
    panels = [
        ("sizes", "Rollouts of a prompt", lines(of, sizes, "rollouts")),
        ("mixed", "Mixed groups, expected and as it was", expected),
        ("drawn", "Expected disagreement of prompts", lines(of, spread, "mean of 2p(1-p)")),
        (
            "effective",
            "Prompts drawn from, effectively",
            lines(of, {"prompts": "sampler/effective_prompts"}, "prompts", LARGE),
        ),
    ]
    return section("allotment", "Budget and sampler", text, panels)
