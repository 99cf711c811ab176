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
from verl_gsd.rundir import GENERATED_REWARD

_GRADIENT_NORM = "actor/grad_norm"
_LOSS = "actor/pg_loss"
#: verl logs it with every update, and it is always finite.
_RATE = "actor/lr"
_LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
#: docs/studies.md has the figures.
_SMALLER_STEPS = "smaller steps; at twice its best rate, GRPO lost 0.04 of its accuracy (study stability)"
_CLIPPING = "actor_rollout_ref.actor.optim.clip_grad"


def gradient_spikes(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The gradient norm of some steps is far above the median norm, or is not finite.

    Norms are compared on a logarithmic scale, because their distribution has a heavy tail. Steps without a gradient,
    whose norm is 0, do not count.
    """
    if _GRADIENT_NORM not in table:
        return
    norms, losses = column(table, _GRADIENT_NORM), column(table, _LOSS)
    # The log writes a number that is not finite as null. Every update has a norm, a loss and a learning rate.
    has_update = ~np.isnan(losses) | ~np.isnan(column(table, _RATE))
    is_lost = np.isnan(norms) & has_update
    lost, lost_losses = int(is_lost.sum()), int((is_lost & np.isnan(losses)).sum()) if _LOSS in table else 0
    is_comparable = count_values(table, _GRADIENT_NORM) >= THRESHOLDS.trend
    has_gradient = norms > 0 if is_comparable else np.zeros(len(norms), bool)
    logarithms = np.log(norms[has_gradient])
    median = limit = float("nan")
    if len(logarithms):
        median = float(np.median(logarithms))
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
        first = table["step"][is_lost][0]
        sentences.append(
            f"{_GRADIENT_NORM} was not finite at {_count(lost, 'step')}, first at step {first}. verl "
            "skipped at least one update in each of them; a step's other updates changed the policy."
        )
    if lost_losses:
        sentences.append(
            f"At {lost_losses} of them, the loss was not finite either. Then a weight, a log-probability or a reward "
            "is not finite. Resume from a checkpoint before the first of them."
        )
    if len(spikes):
        sentences.append(
            "Clipping bounds such a step, but its direction is that of the few tokens that caused the spike."
        )
    yield Finding(
        "The gradient norm spikes" if len(spikes) or not lost_losses else "The loss is not finite",
        " ".join(sentences),
        (
            *scaled(config, _CLIPPING, 0.5, "maximum norm of an update's gradient", is_count=False),
            *scaled(config, _LEARNING_RATE, 0.5, _SMALLER_STEPS, is_count=False),
            *remedies("unstable", config),
        ),
    )


def oscillating_loss(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The reward does not grow, and the loss oscillates more and more.

    A policy loss is near 0 in a healthy run, too, and its size depends on the algorithm. Only the growth of its
    spread is a sign of trouble.
    """
    losses = known_values(table, _LOSS)
    rewards = reward_columns(table)
    known = min(len(losses), max(count_values(table, name) for name in rewards))
    if known < THRESHOLDS.oscillation_steps or any(growth(table, name) > 0 for name in rewards):
        return
    third = len(losses) // 3
    first, last = spread(losses[:third]), spread(losses[-third:])
    if last > THRESHOLDS.loss_spread and last > THRESHOLDS.oscillation * first:
        yield Finding(
            "The loss oscillates, and the reward does not grow",
            f"From the first to the last third of the run, the standard deviation of {_LOSS} rose from {first:.3g} to "
            f"{last:.3g}. Updates cancel each other.",
            (*scaled(config, _LEARNING_RATE, 0.5, _SMALLER_STEPS, is_count=False), *remedies("unstable", config)),
        )


def reward_columns(table: Columns) -> tuple[str, ...]:
    """Names of the columns with the accuracy and the reward of all rollouts, as far as they are known.

    If neither is known, it is the score of the batch. Dynamic sampling keeps that constant while the policy learns.
    """
    known = tuple(name for name in ("accuracy", "reward", GENERATED_REWARD) if count_values(table, name))
    return known or ("critic/score/mean",)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


FINDERS: tuple[Finder, ...] = (gradient_spikes, oscillating_loss)
