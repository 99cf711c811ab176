"""The findings of DaGRPO: problems of the judge and its mask, and missing demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.report.findings.finding import (
    Finder,
    Finding,
    assigned,
    numeric_value,
    percent,
    recent_mean,
    scaled,
)
from verl_gsd.report.findings.trends import rise, sudden_shift
from verl_gsd.report.reading import Columns

_DELTA = "algorithm.gsd.dagrpo.delta"
_MASK = "algorithm.gsd.dagrpo.mask"
_JUDGE = "algorithm.gsd.dagrpo.judge"
_FAIL_CLOSED = "algorithm.gsd.dagrpo.fail_closed"
_CALIBRATE = "verl-gsd judge calibrate FILE  # measures how well the judge agrees with the verifier"
#: Thresholds. A finding reports shares above these: failed judgements; the part of a step spent waiting for the judge;
#: pairs that the judge scores alike; pairs on which it contradicts the verifier.
MAX_FAILED, MAX_WAITING, MAX_TIED, MAX_CONTRADICTED = 0.05, 0.5, 0.5, 0.3
#: A finding reports a sudden shift of the mean score, and a growth of the share of contradicted pairs, above these.
MIN_SHIFT, MAX_CONTRADICTION_GROWTH = 1.0, 0.1
#: A finding reports shares below these: pairs that the mask keeps; of the groups that need a demonstration, those that
#: have one.
MIN_KEPT, MIN_DEMONSTRATED = 0.1, 0.1


def missing_demonstrations(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Few of the groups that need a demonstration get one."""
    wanted, served = (recent_mean(table, f"dagrpo/demonstrations/{name}") for name in ("wanted", "found"))
    if not (wanted > 0 and served / wanted < MIN_DEMONSTRATED):
        return
    prefix = "dagrpo/demonstrations/rejected/"
    reasons = {name.removeprefix(prefix): recent_mean(table, name) for name in table if name.startswith(prefix)}
    reason = max(reasons, key=lambda reason: reasons[reason], default=None)
    most = f" Most candidates were rejected as {reason}." if reason and reasons[reason] > 0 else ""
    yield Finding(
        f"Only {percent(served / wanted)} of the groups that need a demonstration get one",
        f"{wanted:.0f} groups per step need one.{most}",
        (
            *assigned(
                config,
                "algorithm.gsd.dagrpo.demonstrations.source",
                "expert_or_self",
                "falls back to the policy's own successes",
            ),
            "algorithm.gsd.dagrpo.demonstrations.column=...  # the column of the data that has demonstrations",
        ),
    )


def failed_judgements(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Many judgements fail; the finding names the most frequent reason."""
    share = recent_mean(table, "judge_failed")
    if not share > MAX_FAILED:
        return
    counts = {reason: recent_mean(table, f"judge/failures/{reason}") for reason in _REMEDIES}
    reason = max(counts, key=lambda name: counts[name] if counts[name] > 0 else 0.0)
    has_reason = counts[reason] > 0
    yield Finding(
        f"{percent(share)} of the judgements failed",
        (f"The most frequent reason is: {reason.replace('_', ' ')}. " if has_reason else "")
        + f"The mask {'drops' if _drops_failed(config) else 'keeps'} pairs without a score.",
        tuple(
            line
            for key, change, why in _REMEDIES[reason if has_reason else "connection"]
            for line in _changed(config, f"{_JUDGE}.{key}", change, why)
        ),
    )


def slow_judge(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Steps spend much of their time waiting for the judge."""
    share = recent_mean(table, "judge/share_of_step")
    if share > MAX_WAITING:
        verb, cost = ("drops", ", and the policy learns from fewer pairs") if _drops_failed(config) else ("keeps", "")
        why = f"seconds per group; the mask {verb} pairs without a score{cost}"
        yield Finding(
            f"{percent(share)} of the time of a step is spent waiting for the judge",
            "Groups are judged while others are generated. After generation, the step waits for the remaining scores.",
            (
                *scaled(config, f"{_JUDGE}.concurrency", 2, "calls at once, if the server can handle them"),
                *scaled(config, f"{_JUDGE}.budget_s", 0.5, why),
            ),
        )


def tied_scores(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The judge scores many pairs alike."""
    share = recent_mean(table, "dagrpo/pairs/tied")
    if share > MAX_TIED:
        quantile = numeric_value(config, f"{_DELTA}.quantile")
        is_set = quantile is not None and quantile <= 0.25
        advice = () if is_set else (f"'{_DELTA}={{quantile:0.25}}'  # masks at most a quarter of the pairs",)
        yield Finding(
            f"The judge scores {percent(share)} of the pairs alike",
            "With such scores, the mask drops pairs that the judge did not distinguish.",
            (*advice, _CALIBRATE),
        )


def contradicted_verifier(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """In many pairs, the judge prefers the response that the verifier rates worse."""
    share = recent_mean(table, "pairs_contradicted")
    if share > MAX_CONTRADICTED:
        yield Finding(
            f"The judge contradicts the verifier on {percent(share)} of the pairs",
            "Either one of the two is wrong about these problems, or responses manipulate the judge. With a judge that "
            "is wrong about 30% of the pairs, the mask learned less than GRPO without it (study judge).",
            (f"{_JUDGE}.model=...  # a stronger judge", _CALIBRATE),
        )


def drifting_judge(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The judge's scores shift at once, or it contradicts the verifier more and more."""
    shift = sudden_shift(table, "judge_score", MIN_SHIFT)
    sentences = []
    if shift is not None:
        sentences.append(
            f"At step {shift.step}, its mean score changed at once from {shift.before:.2f} to {shift.after:.2f}."
        )
    contradictions = rise(table, "pairs_contradicted", MAX_CONTRADICTION_GROWTH)
    if contradictions is not None:
        sentences.append(
            f"It contradicted the verifier on {percent(contradictions.first)} of the pairs, and now on "
            f"{percent(contradictions.last)}."
        )
    if sentences:
        follows = numeric_value(config, f"{_DELTA}.quantile") is not None
        advice = () if follows else (f"'{_DELTA}={{quantile:0.25}}'  # follows the scale of the scores",)
        yield Finding(
            "The judge's scores drift",
            " ".join(
                [
                    *sentences,
                    "Possible causes: its server has another model, or responses manipulate the judge. A fixed delta "
                    "then keeps other pairs than before.",
                ]
            ),
            (
                *advice,
                f"{_JUDGE}.model=...  # a judge that does not change during a run",
                _CALIBRATE,
            ),
        )


def few_pairs_kept(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The mask drops almost all pairs."""
    share = recent_mean(table, "pairs_kept")
    if share < MIN_KEPT:
        is_by_smallest = config.get(_MASK) == "min"
        yield Finding(
            f"DaGRPO's mask keeps only {percent(share)} of the pairs",
            "The mask removes almost all of the advantages of a group.",
            (
                *scaled(config, _DELTA, 0.5, "the score gap from which a pair counts", is_count=False),
                *([f"{_MASK}=pairs  # keeps every pair that reaches delta"] if is_by_smallest else ()),
                _CALIBRATE,
            ),
        )


def _drops_failed(config: Mapping[str, Any]) -> bool:
    """Whether the mask drops the pairs of a failed judgement instead of keeping them."""
    return config.get(_FAIL_CLOSED) is True


def _changed(config: Mapping[str, Any], key: str, change: float | str, why: str) -> tuple[str, ...]:
    return assigned(config, key, change, why) if isinstance(change, str) else scaled(config, key, change, why)


_ONLY_SCORES = (
    ("answer", "choice", "the server then accepts only scores; not all servers have it"),
    ("answer", "json_schema", "the server then accepts only JSON with a score"),
)
#: Reason of a failure (``judge/failures/<reason>``) -> changes of the judge's section: (key, its new value as text or
#: the factor of its value, why).
_REMEDIES: dict[str, tuple[tuple[str, float | str, str], ...]] = {
    "connection": (("base_url", "...", "where the server listens"),),
    "timed_out": (("timeout_s", 2, "seconds per call"), ("concurrency", 0.5, "fewer calls at once")),
    "over_budget": (("budget_s", 2, "seconds per group"), ("concurrency", 2, "more calls at once")),
    "rate_limited": (("concurrency", 0.5, "fewer calls at once"),),
    "server_error": (
        ("concurrency", 0.5, "fewer calls at once"),
        ("retries", 2, "repeated calls after a failure"),
    ),
    "refused": (("model", "...", "as the server names it; also set api_key_env if the server needs a key"),),
    "unreadable": _ONLY_SCORES,
    "off_scale": _ONLY_SCORES,
}

DEMONSTRATION_FINDERS: tuple[Finder, ...] = (missing_demonstrations,)
JUDGE_FINDERS: tuple[Finder, ...] = (
    failed_judgements,
    slow_judge,
    tied_scores,
    contradicted_verifier,
    drifting_judge,
    few_pairs_kept,
)
