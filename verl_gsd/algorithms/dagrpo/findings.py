"""A judge that fails, is waited for, or tells nothing apart, and demonstrations that nobody has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import Finder, Finding, percent, recent_mean, scaled
from verl_gsd.report.reading import Columns

_JUDGE = "algorithm.gsd.dagrpo.judge"
_CALIBRATE = "verl-gsd judge calibrate FILE  # how far it agrees with the verifier"
#: Shares above which a finding is made: judgements that failed; of a step, spent waiting for the judge; pairs that it
#: scores alike; pairs on which it contradicts the verifier.
FAILED, OF_STEP, TIED, CONTRADICTED = 0.05, 0.5, 0.5, 0.3
#: Shares below which a finding is made: pairs that the mask keeps; demonstrations found of those wanted.
KEPT, DEMONSTRATED = 0.1, 0.1


def undemonstrated(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Groups call for demonstrations that nobody has."""
    wanted, found = (recent_mean(table, f"dagrpo/demonstrations/{name}") for name in ("wanted", "found"))
    if not (wanted > 0 and found / wanted < DEMONSTRATED):
        return
    prefix = "dagrpo/demonstrations/rejected/"
    reasons = {name.removeprefix(prefix): recent_mean(table, name) for name in table if name.startswith(prefix)}
    why = max(reasons, key=lambda reason: reasons[reason], default=None)
    most = f" Most were refused as {why}." if why and reasons[why] > 0 else ""
    yield Finding(
        f"Of the groups that call for a demonstration {percent(found / wanted)} get one",
        f"{wanted:.0f} groups a step call for one.{most}",
        (
            "algorithm.gsd.dagrpo.demonstrations.source=expert_or_self  # else the policy's own successes",
            "algorithm.gsd.dagrpo.demonstrations.column=...  # where the data have them",
        ),
    )


def failing(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Judgements that are no scores, and the reason that most of them have."""
    share = recent_mean(table, "judge_failed")
    if not share > FAILED:
        return
    counts = {reason: recent_mean(table, f"judge/failures/{reason}") for reason in _REMEDIES}
    reason = max(counts, key=lambda name: counts[name] if counts[name] > 0 else 0.0)
    known = counts[reason] > 0
    yield Finding(
        f"{percent(share)} of the judgements failed",
        (f"Most of them: {reason.replace('_', ' ')}. " if known else "") + "Pairs without a score are kept, unmasked.",
        tuple(
            line
            for key, factor, why in _REMEDIES[reason if known else "connection"]
            for line in (scaled(config, f"{_JUDGE}.{key}", factor, why) if factor else (f"{_JUDGE}.{key}  # {why}",))
        ),
    )


def waited_for(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Steps that mostly wait."""
    share = recent_mean(table, "judge/share_of_step")
    if share > OF_STEP:
        yield Finding(
            f"{percent(share)} of a step is waiting for the judge",
            "Groups are judged while others are generated; what is left over is waited for.",
            (
                *scaled(config, f"{_JUDGE}.concurrency", 2, "calls at once, if the server has room"),
                *scaled(config, f"{_JUDGE}.budget_s", 0.5, "seconds a group may wait; then its pairs count unjudged"),
            ),
        )


def tied(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Pairs that the judge scores alike."""
    share = recent_mean(table, "dagrpo/pairs/tied")
    if share > TIED:
        yield Finding(
            f"The judge scores {percent(share)} of the pairs alike",
            "A mask by such scores drops pairs for no reason that the judge gives.",
            ("'algorithm.gsd.dagrpo.delta={quantile:0.25}'  # masks a quarter at most", _CALIBRATE),
        )


def contradicting(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Pairs of which the judge prefers the response that the verifier calls worse."""
    share = recent_mean(table, "pairs_contradicted")
    if share > CONTRADICTED:
        yield Finding(
            f"The judge contradicts the verifier on {percent(share)} of the pairs",
            "One of the two is wrong about these problems, or a response talks the judge round.",
            (f"{_JUDGE}.model=...  # a stronger judge", _CALIBRATE),
        )


def masked(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """A mask that leaves hardly anything."""
    share = recent_mean(table, "pairs_kept")
    if share < KEPT:
        yield Finding(
            f"DaGRPO's mask keeps {percent(share)} of the pairs",
            "What is left of a group's advantages is next to nothing.",
            (*scaled(config, "algorithm.gsd.dagrpo.delta", 0.5, "the gap of scores that counts"), _CALIBRATE),
        )


#: By reason (``judge/failures/<reason>``): keys below the judge's section, what to multiply them by, and why.
_REMEDIES: dict[str, tuple[tuple[str, float | None, str], ...]] = {
    "connection": (("base_url=...", None, "where the server listens"),),
    "timed_out": (("timeout_s", 2, "seconds a call may take"), ("concurrency", 0.5, "fewer calls at once")),
    "over_budget": (("budget_s", 2, "seconds a group may wait"), ("concurrency", 2, "more calls at once")),
    "rate_limited": (("concurrency", 0.5, "fewer calls at once"),),
    "server_error": (("concurrency", 0.5, "fewer calls at once"), ("retries=4", None, "further calls after a failure")),
    "refused": (("model=...", None, "as the server names it; and api_key_env, where it wants a key"),),
    "unreadable": (("answer=choice", None, "or json_schema: the server then allows scores alone"),),
    "off_scale": (("answer=choice", None, "or json_schema: the server then allows scores alone"),),
}

OF_DEMONSTRATIONS: tuple[Finder, ...] = (undemonstrated,)
OF_JUDGE: tuple[Finder, ...] = (failing, waited_for, tied, contradicting, masked)
