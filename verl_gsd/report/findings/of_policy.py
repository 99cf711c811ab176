"""A policy that collapses, is cut short, or unlearns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.findings.finding import (
    LIMITS,
    Finder,
    Finding,
    at_first,
    now,
    number_of,
    percent,
    scaled,
    steps_with,
)
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

ENTROPY = "actor/entropy"
_LONGEST = "data.max_response_length"
_RATE = "actor_rollout_ref.actor.optim.lr"


def entropy(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The policy's entropy is a fraction of what it was."""
    first, last = at_first(table, ENTROPY), now(table, ENTROPY)
    if steps_with(table, ENTROPY) >= LIMITS.trend and last < LIMITS.entropy * first:
        yield Finding(
            "Entropy collapses",
            f"It fell from {first:.3g} to {last:.3g} nats a token: responses to one prompt grow alike, groups silent.",
            (
                "actor_rollout_ref.actor.clip_ratio_high=0.28  # DAPO's: unlikely tokens may grow",
                "actor_rollout_ref.actor.entropy_coeff=0.001  # rewards entropy",
                *scaled(config, _RATE, 0.5, "smaller steps"),
            ),
        )


def length(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Responses are much shorter than they were."""
    name = length_column(table)
    first, last = at_first(table, name), now(table, name)
    if steps_with(table, name) >= LIMITS.trend and last < LIMITS.length * first:
        yield Finding(
            "Responses collapse",
            f"They fell from {first:.3g} to {last:.3g} tokens. A loss averaged over each response's tokens favours "
            "short right ones, and so does a verifier that accepts a bare answer.",
            (
                "actor_rollout_ref.actor.loss_agg_mode=token-mean  # or algo=dr_grpo: length rescales no gradient",
                *scaled(config, _RATE, 0.5, "smaller steps"),
            ),
        )


def cut(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Many responses end because they may not go on."""
    share = now({"step": table["step"], "cut": cut_off(table, config)}, "cut")
    if share > LIMITS.clipped:
        yield Finding(
            f"{percent(share)} of the responses are cut off",
            "They reach the longest length allowed, mostly without an answer, and count as wrong.",
            scaled(config, _LONGEST, 2, "tokens a response may have"),
        )


def unlearning(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Held-out accuracy was better, and not only at one validation."""
    for name in held_out(table):
        known = ~np.isnan(table[name])
        steps, values = table["step"][known], table[name][known]
        if len(values) >= 3 and (values[-2:] < values[:-2].max() - LIMITS.accuracy).all():
            best = int(values[:-2].argmax())
            yield Finding(
                f"Held-out accuracy fell: {source_of(name)}",
                f"It was {values[best]:.3f} at step {steps[best]} and is {values[-1]:.3f} at step {steps[-1]}.",
                (*scaled(config, _RATE, 0.5, "smaller steps"), "trainer.test_freq=...  # validates more often"),
            )


def held_out(table: Columns) -> list[str]:
    """Columns of held-out accuracies."""
    return [name for name in table if name.startswith("val-core/") and "/acc/mean@" in name]


def source_of(name: str) -> str:
    """The data source of such a column."""
    return name.removeprefix("val-core/").rsplit("/acc/", 1)[0]


def length_column(table: Columns) -> str:
    """Tokens a response, of all that were generated where there are records."""
    return "tokens_per_response" if "tokens_per_response" in table else "response_length/mean"


def cut_off(table: Columns, config: Mapping[str, Any]) -> np.ndarray:
    """(T,) share of the responses that are as long as is allowed; NaN where that cannot be known.

    verl's ``response_length/clip_ratio`` is the share that is as long as the longest of the batch, whatever is allowed.
    """
    allowed = number_of(config, _LONGEST)
    if allowed is None:
        return np.full(len(table["step"]), np.nan)
    longest, share = column(table, "response_length/max"), column(table, "response_length/clip_ratio")
    return np.where(np.isnan(longest), np.nan, np.where(longest >= allowed, share, 0.0))


FINDERS: tuple[Finder, ...] = (entropy, length, cut, unlearning)
