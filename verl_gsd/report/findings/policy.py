"""Findings about the policy: it collapses, its responses are cut off, or its accuracy falls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from verl_gsd.report.advice import accepted_overrides
from verl_gsd.report.findings.finding import (
    THRESHOLDS,
    Finder,
    Finding,
    about_sources,
    columns_of_parts,
    errors_in_parts,
    initial_mean,
    known_values,
    largest_mean,
    numeric_value,
    on_reward_scale,
    percent,
    recent_mean,
    scaled,
    window_size,
)
from verl_gsd.report.findings.lengths import MAX_RESPONSE, doubled
from verl_gsd.report.findings.trends import (
    FALL_VALUES,
    FALL_VALUES_WITHOUT_ERROR,
    LevelEstimate,
    lasting_fall,
    noise_of_step,
    start_levels,
)
from verl_gsd.report.reading import LONGEST, Columns
from verl_gsd.report.steps import column, source_column, sources_of
from verl_gsd.rundir import HELD_OUT, HELD_OUT_OUTSIDE, HELD_OUT_PROMPTS

ENTROPY = "entropy"
_UPPER_CLIPPING = "actor_rollout_ref.actor.clip_ratio_high"
_ENTROPY_BONUS = "actor_rollout_ref.actor.entropy_coeff"
_AVERAGE = "actor_rollout_ref.actor.loss_agg_mode"
_LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"
#: verl's average over the tokens of each response.
_PER_RESPONSE = "seq-mean-token-mean"
_LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
_TRAIN_BATCH, _MINI_BATCH = "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"
_EPOCHS = "actor_rollout_ref.actor.ppo_epochs"
_BYPASS = "algorithm.rollout_correction.bypass_mode"


def entropy(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """The policy's entropy is a small fraction of its value at the start."""
    values = known_values(table, ENTROPY)
    if len(values) < THRESHOLDS.trend:
        return
    first = max(initial_mean(table, ENTROPY), *(level.value for level in start_levels(values)))
    last = recent_mean(table, ENTROPY)
    if last < THRESHOLDS.entropy * first:
        yield Finding(
            "The policy's entropy collapses",
            f"It fell from {first:.3g} to {last:.3g} nats per token. Responses to one prompt become alike, and groups "
            "become silent.",
            (
                *_higher_clipping(config),
                *_higher_entropy_bonus(config),
                *scaled(config, _LEARNING_RATE, 0.5, "smaller steps", is_count=False),
            ),
        )


def _higher_clipping(config: Mapping[str, Any]) -> tuple[str, ...]:
    """DAPO's upper clipping bound, if the run's is lower. Other losses have no such bound, or another scale of it."""
    bound = numeric_value(config, _UPPER_CLIPPING)
    if config.get(_LOSS, "vanilla") != "vanilla" or (bound is not None and bound >= 0.28) or _never_clips(config):
        return ()
    return (f"{_UPPER_CLIPPING}=0.28  # DAPO's value: unlikely tokens can become likelier",)


def _never_clips(config: Mapping[str, Any]) -> bool:
    """Whether the policy ratio is exactly 1 in every update.

    verl computes the old log-probabilities of a step, or of each of its parts, with the policy that it then updates,
    unless it takes those of the inference engine. A part with one update has no other ratio than 1.
    """
    names = (_TRAIN_BATCH, _MINI_BATCH, _EPOCHS)
    batch, mini_batch, epochs = (numeric_value(config, name) for name in names)
    if batch is None or mini_batch is None or epochs is None or config.get(_BYPASS) is True:
        return False
    mode = str(config.get("trainer.v1.trainer_mode")).removeprefix("gsd_")
    parts = numeric_value(config, f"trainer.v1.{mode}.parameter_sync_step") or 1
    if mode == "separate_async" and parts > 1:  # all parts of a step have the old log-probabilities of its start
        return False
    return epochs == 1 and mini_batch * parts >= batch


def _higher_entropy_bonus(config: Mapping[str, Any]) -> tuple[str, ...]:
    coefficient = numeric_value(config, _ENTROPY_BONUS)
    if coefficient is not None and coefficient >= 0.001:
        return ()
    return (f"{_ENTROPY_BONUS}=0.001  # rewards entropy",)


def length(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Responses are much shorter than they were, and shorter than initially.

    Lengths that rose and returned to their initial mean are no collapse.
    """
    parts = columns_of_parts(table, length_column(table), "tokens_per_response")
    of_parts = [(of, name, _length_before_collapse(table, name, len(parts))) for of, name in parts]
    sentences = [
        f"The mean length of the responses{of} fell from {before:.3g} to {recent_mean(table, name):.3g} tokens."
        for of, name, before in of_parts
        if before is not None
    ]
    if sentences:
        other_average = _average_over_all_tokens(config)
        of_loss = "A loss that is averaged over the tokens of each response favours short right responses. So does a"
        yield Finding(
            "Responses become very short",
            f"{about_sources(sentences)} "
            f"{of_loss if other_average else 'A possible cause is a'} verifier that accepts an answer without "
            "reasoning.",
            (*other_average, *scaled(config, _LEARNING_RATE, 0.5, "smaller steps", is_count=False)),
        )


def _length_before_collapse(table: Columns, name: str, n_parts: int) -> float | None:
    """The mean length from which the lengths of a column collapsed; None if they did not.

    It is the largest mean of a window, or a level at the start of the run (``start_levels``). A data source with few
    groups per step is noisy, because some prompts have much longer responses than others. The noise of a window is
    estimated from the differences between consecutive steps.
    """
    lengths = known_values(table, name)
    last = recent_mean(table, name)
    if len(lengths) < THRESHOLDS.trend or last >= initial_mean(table, name):
        return None
    of_window = noise_of_step(lengths) / np.sqrt(window_size(lengths))
    # Of several parts, one falls below the limit by chance: its level is the highest of many. One part alone needs no
    # margin, because it has the groups of all.
    errors, margin = (errors_in_parts(errors, n_parts) for errors in (THRESHOLDS.growth_errors, 0.0))

    def has_collapsed(earlier: LevelEstimate) -> bool:
        limit, of_limit = THRESHOLDS.length * earlier.value, THRESHOLDS.length * earlier.error
        is_noise = earlier.value - last <= errors * np.hypot(earlier.error, of_window)
        return not is_noise and limit - last > margin * float(np.hypot(of_limit, of_window))

    levels = (LevelEstimate(largest_mean(table, name), of_window), *start_levels(lengths))
    return max((earlier.value for earlier in levels if has_collapsed(earlier)), default=None)


def _average_over_all_tokens(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Another average of the loss, unless the run's does not divide by a response's length, or has no effect."""
    if config.get(_AVERAGE, _PER_RESPONSE) != _PER_RESPONSE:
        return ()
    override = f"{_AVERAGE}=token-mean  # or algo=dr_grpo: length does not scale gradients"
    return accepted_overrides((override,), config, ())


def cut(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Many responses reach the maximum length."""
    share = recent_mean({"step": table["step"], "cut": cut_off(table, config)}, "cut")
    if share > THRESHOLDS.clipped:
        yield Finding(
            f"{percent(share)} of the responses are cut off",
            "They reach the maximum length, most of them without an answer, and count as wrong.",
            doubled(config, MAX_RESPONSE, "maximum tokens per response"),
        )


def unlearning(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Held-out accuracy is lower than it was, by more than chance explains. Without accuracies, it is the mean reward.

    All validations have the same n prompts. With m responses per prompt, the variance of an accuracy is
    sum_i p_i (1 - p_i) / (n^2 m), which is at most p (1 - p) / (n m) for the mean solve rate p. Means of rewards, and
    of values outside [0, 1], are no accuracies, and their variance is that between validations. Their fall is compared
    with the spread of the source's rewards in training (``_least_fall``). If that is not known, it must only exceed
    chance.
    """
    for name in held_out(table):
        known = ~np.isnan(table[name])
        responses = _held_out_responses(table, name)
        figure = figure_of(table, name)
        least = THRESHOLDS.accuracy if figure == "accuracy" else _least_fall(table, source_of(name))
        fall = lasting_fall(
            table["step"][known],
            table[name][known],
            0.0 if np.isnan(least) else least,
            None if responses is None else partial(_accuracy_error, responses=responses),
        )
        if fall is not None:
            yield Finding(
                f"Held-out {figure} fell: {source_of(name)}",
                f"It was {fall.best:.3f}{_of_validations(fall.size)} up to step {fall.step} and is {fall.last:.3f}"
                f"{_of_validations(fall.last_size)}.",
                (
                    *scaled(config, _LEARNING_RATE, 0.5, "smaller steps", is_count=False),
                    "trainer.test_freq=...  # validate more often",
                ),
            )


def needed_validations(table: Columns, name: str) -> int:
    """Number of validations from which on ``unlearning`` checks the column ``name`` of ``held_out``."""
    return FALL_VALUES_WITHOUT_ERROR if _held_out_responses(table, name) is None else FALL_VALUES


def _of_validations(count: int) -> str:
    return "" if count == 1 else f" (mean of {count} validations)"


def _least_fall(table: Columns, source: str) -> float:
    """The fall of a held-out mean reward that matters; NaN if it is not known.

    The scales of data sources can differ. If the run was not trained on ``source``, or hardly, the source with the
    smallest spread is decisive: a limit on the scale of another one could hide any fall.
    """
    sources = sources_of(table)
    of_sources = {of: on_reward_scale(table, THRESHOLDS.accuracy, source_column("reward_spread", of)) for of in sources}
    if not of_sources:
        return on_reward_scale(table, THRESHOLDS.accuracy)
    return of_sources[source] if source in of_sources else min(of_sources.values())


def _held_out_responses(table: Columns, name: str) -> float | None:
    """The number of responses of which ``name`` is the mean accuracy.

    None if it is not known, as in runs of older versions, or if the mean is no accuracy.
    """
    if figure_of(table, name) != "accuracy":
        return None
    prompts = known_values(table, f"{HELD_OUT_PROMPTS}{source_of(name)}")
    per_prompt = name.rsplit("@", 1)[1]
    return float(prompts[-1]) * int(per_prompt) if len(prompts) and per_prompt.isdecimal() else None


def _accuracy_error(level: float, responses: float) -> float:
    """Standard error of an accuracy of ``responses`` responses. One more right and one more wrong keep it above 0."""
    rate = (level * responses + 1) / (responses + 2)
    return float(np.sqrt(rate * (1 - rate) / responses))


def held_out(table: Columns) -> list[str]:
    """Names of the columns with held-out accuracies, or with mean rewards where the verifier returns no ``acc``."""
    return [name for name in table if HELD_OUT.fullmatch(name)]


def figure_of(table: Columns, name: str) -> str:
    """What the column ``name`` of ``held_out`` is the mean of: ``accuracy``, ``acc`` or ``reward``.

    It is ``acc`` if a held-out response of the data source has an ``acc`` outside [0, 1]. Runs of older versions do not
    count such responses. There, only a mean outside [0, 1] tells.
    """
    matched = HELD_OUT.fullmatch(name)
    assert matched is not None, name
    if matched["figure"] == "reward":
        return "reward"
    means = [
        known_values(table, other)
        for other in table
        if (of := HELD_OUT.fullmatch(other)) and of["source"] == matched["source"] and of["figure"] == "acc"
    ]
    is_counted = bool((known_values(table, f"{HELD_OUT_OUTSIDE}{matched['source']}") > 0).any())
    is_outside = is_counted or any(bool(((values < 0) | (values > 1)).any()) for values in means)
    return "acc" if is_outside else "accuracy"


def source_of(name: str) -> str:
    """The data source of a column of ``held_out``."""
    matched = HELD_OUT.fullmatch(name)
    assert matched is not None, name
    return matched["source"]


def length_column(table: Columns) -> str:
    """Name of the column with tokens per response: of all rollouts if there are records, else of the batch."""
    return "tokens_per_response" if "tokens_per_response" in table else "response_length/mean"


def cut_off(table: Columns, config: Mapping[str, Any]) -> np.ndarray:
    """(T,) share of the responses that have the maximum length; NaN where it is not known.

    verl's ``response_length/clip_ratio`` is the share of responses that are as long as the longest of the batch. It is
    the share of cut responses only if the longest has the maximum length.
    """
    max_length = column(table, LONGEST)
    if LONGEST not in table and (value := numeric_value(config, MAX_RESPONSE)) is not None:
        max_length = np.full(len(max_length), value)
    longest, share = column(table, "response_length/max"), column(table, "response_length/clip_ratio")
    return np.where(np.isnan(longest + max_length), np.nan, np.where(longest >= max_length, share, 0.0))


FINDERS: tuple[Finder, ...] = (entropy, length, cut, unlearning)
