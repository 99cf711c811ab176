"""Findings about rewards: some fail, steps wait for them, or the verifier's verdicts drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.findings.finding import (
    THRESHOLDS,
    Finder,
    Finding,
    about_sources,
    assigned,
    columns_of_parts,
    is_rated,
    on_reward_scale,
    percent,
    recent_mean,
    scaled,
)
from verl_gsd.report.findings.lengths import MAX_PROMPT, doubled
from verl_gsd.report.findings.trends import Shift, rise, sudden_shift
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column, source_column, sources_of

_REWARD_FUNCTION = "reward.custom_reward_function.path=...  # a function that"
_WORKERS = "reward.num_workers"
_FAILURES = "reward/failures/"
_UNVERIFIED = "verifier/unverified"
_SHUFFLE = "data.shuffle"


def failing(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Responses without a reward. One in the whole run is enough for a finding."""
    lost, kept = (float(np.nansum(column(table, name))) for name in ("lost_rewards", "rollouts"))
    if not lost:
        return
    counts: dict[str, float] = {
        name.removeprefix(_FAILURES): float(np.nansum(table[name])) for name in table if name.startswith(_FAILURES)
    }
    kinds = sorted(((count, kind) for kind, count in counts.items() if count), reverse=True)
    by_kind = f" By kind: {', '.join(f'{kind} {count:.0f}' for count, kind in kinds)}." if kinds else ""
    overrides: list[str] = []
    if counts.get("too_slow"):
        overrides += scaled(config, "algorithm.gsd.limits.reward_seconds", 2, "seconds that one call may take")
        overrides += scaled(config, _WORKERS, 2, "workers that compute rewards")
    if counts.get("prompt_too_long"):
        overrides += doubled(config, MAX_PROMPT, "maximum tokens per prompt")
    if not kinds or {kind for _, kind in kinds} - {"too_slow", "prompt_too_long"}:
        overrides.append(f"{_REWARD_FUNCTION} returns a finite number, or a dict with score, for every response")
    yield Finding(
        f"{lost:.0f} of {lost + kept:.0f} responses ({percent(lost / (lost + kept))}) lost their reward",
        "Their groups were trained without them. The policy therefore does not learn from responses that the reward "
        f"function cannot handle, or from prompts that are too long.{by_kind} RUN/messages has the first case of each "
        "kind.",
        tuple(overrides),
    )


def slow(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Steps mostly wait for a reward. Steps of the asynchronous modes do not wait for rewards."""
    share = recent_mean(table, "reward/share_of_step")
    if share > THRESHOLDS.reward_of_step and not str(config.get("trainer.v1.trainer_mode")).endswith("async"):
        yield Finding(
            f"The slowest reward takes {percent(share)} of a step",
            "A step waits for the rewards of all its responses.",
            (
                *scaled(config, _WORKERS, 2, "workers that compute rewards"),
                f"{_REWARD_FUNCTION} is faster, or async if it waits for a server",
            ),
        )


def shifted_verdicts(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The accuracy of the rollouts changed suddenly and stayed there. A policy changes over several steps.

    If some rollouts have no accuracy, their mean reward tells. Each data source is looked at, too: the verifier of one
    of many hardly changes the accuracy of all.
    """
    sources = sources_of(table)
    of_sources = [(f" of {source}", _shift_of_source(table, source, len(sources))) for source in sources]
    shifts = [(of, figure, shift) for of, (figure, shift) in [("", _shift(table)), *of_sources] if shift is not None]
    if shifts:
        sentences = [
            f"At step {shift.step}, the {figure} of the rollouts{of} changed at once from {shift.before:.3f} to "
            f"{shift.after:.3f}."
            for of, figure, shift in shifts
        ]
        yield Finding(
            "The verdicts of the verifier shift",
            f"{about_sources(sentences)} "
            "Possible causes: the verifier or its server changed, for example at a resume; the prompts from this step "
            "on are of another kind; a single update damaged the policy; or the policy learned the format of an answer "
            "within a few steps.",
            (
                f"{_REWARD_FUNCTION} gives the same verdict at every step",
                *assigned(config, _SHUFFLE, True, "mixes prompts of different kinds"),
            ),
        )


def _shift(table: Columns) -> tuple[str, Shift | None]:
    """The figure that shifts, and its shift, over all data sources."""
    shift = sudden_shift(table, "accuracy", THRESHOLDS.shift)
    if shift is not None or is_rated(table):
        return "accuracy", shift
    return "mean reward", sudden_shift(table, "reward", on_reward_scale(table, THRESHOLDS.shift))


def _shift_of_source(table: Columns, source: str, n_sources: int) -> tuple[str, Shift | None]:
    """As ``_shift``, of one data source."""
    accuracy, reward, spreads, unrated = (
        source_column(name, source) for name in ("accuracy", "reward", "reward_spread", "unrated")
    )
    shift = sudden_shift(table, accuracy, THRESHOLDS.shift, n_parts=n_sources)
    if shift is not None or not np.nansum(column(table, unrated)):
        return "accuracy", shift
    least = on_reward_scale(table, THRESHOLDS.shift, spreads)
    return "mean reward", sudden_shift(table, reward, least, n_parts=n_sources)


def rising_unverified(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The verifier can verify fewer and fewer responses, which then count as wrong."""
    parts = columns_of_parts(table, _UNVERIFIED, "unverified")
    rises = [(of, rise(table, name, THRESHOLDS.unverified, n_parts=len(parts))) for of, name in parts]
    sentences = [
        f"It could not verify {percent(of_part.first)} of the responses{of} initially, and {percent(of_part.last)} "
        "recently."
        for of, of_part in rises
        if of_part is not None
    ]
    if sentences:
        yield Finding(
            "The verifier can verify fewer and fewer responses",
            f"{about_sources(sentences)} They count as wrong. The policy's answers changed their form, or comparisons "
            "take too long.",
            (f"{_REWARD_FUNCTION} can read the answers that the policy writes now",),
        )


FINDERS: tuple[Finder, ...] = (failing, slow, shifted_verdicts, rising_unverified)
