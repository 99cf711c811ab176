"""Findings about the updates: the gradient norm spikes, or the loss oscillates while the reward does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.extensions import remedies
from verl_gsd.report.findings.finding import THRESHOLDS, Finder, Finding, count_values, known_values, scaled
from verl_gsd.report.findings.trends import growth, spread
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

_GRADIENT_NORM = "actor/grad_norm"
_LOSS = "actor/pg_loss"
_LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
_CLIPPING = "actor_rollout_ref.actor.optim.clip_grad"


def gradient_spikes(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The gradient norm of some steps is far above the median norm, or is not finite.

    Norms are compared on a logarithmic scale, because their distribution has a heavy tail. Steps without a gradient,
    whose norm is 0, do not count.
    """
    norms = column(table, _GRADIENT_NORM)
    if count_values(table, _GRADIENT_NORM) < THRESHOLDS.trend:
        return
    has_gradient = norms > 0
    # The log writes a number that is not finite as null. Every update has both a loss and a norm.
    lost = int((np.isnan(norms) & ~np.isnan(column(table, _LOSS))).sum())
    logarithms = np.log(norms[has_gradient])
    median = float(np.median(logarithms)) if len(logarithms) else float("nan")
    limit = max(np.log(THRESHOLDS.gradient_spike), THRESHOLDS.gradient_spreads * spread(logarithms))
    spikes = table["step"][has_gradient][logarithms - median > limit]
    if not len(spikes) and not lost:
        return
    sentences = []
    if len(spikes):
        largest = int(np.nanargmax(norms))
        sentences.append(
            f"The median of {_GRADIENT_NORM} is {np.exp(median):.3g}. It was above {np.exp(median + limit):.3g} at "
            f"{_count(len(spikes), 'step')}, first at step {spikes[0]}, and {norms[largest]:.3g} at step "
            f"{table['step'][largest]}."
        )
    if lost:
        sentences.append(f"It was not finite at {_count(lost, 'step')}, and those steps did not change the policy.")
    sentences.append("Clipping bounds such a step, but its direction is that of the few tokens that caused the spike.")
    yield Finding(
        "The gradient norm spikes",
        " ".join(sentences),
        (
            *scaled(config, _CLIPPING, 0.5, "maximum norm of an update's gradient"),
            *scaled(config, _LEARNING_RATE, 0.5, "smaller steps"),
            *remedies("unstable", config),
        ),
    )


def oscillating_loss(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The reward does not grow, and the loss oscillates more and more.

    A policy loss is near 0 in a healthy run, too, and its size depends on the algorithm. Only the growth of its
    spread is a sign of trouble.
    """
    losses = known_values(table, _LOSS)
    reward = reward_column(table)
    if min(len(losses), count_values(table, reward)) < THRESHOLDS.oscillation_steps or growth(table, reward) > 0:
        return
    third = len(losses) // 3
    first, last = spread(losses[:third]), spread(losses[-third:])
    if last > THRESHOLDS.loss_spread and last > THRESHOLDS.oscillation * first:
        yield Finding(
            "The loss oscillates, and the reward does not grow",
            f"From the first to the last third of the run, the standard deviation of {_LOSS} rose from {first:.3g} to "
            f"{last:.3g}. Updates cancel each other.",
            (*scaled(config, _LEARNING_RATE, 0.5, "smaller steps"), *remedies("unstable", config)),
        )


def reward_column(table: Columns) -> str:
    """Name of the column with the reward: the accuracy of all rollouts if it is known, else the score of the batch."""
    return "accuracy" if count_values(table, "accuracy") else "critic/score/mean"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


FINDERS: tuple[Finder, ...] = (gradient_spikes, oscillating_loss)
