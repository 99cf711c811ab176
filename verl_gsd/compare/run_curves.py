"""Reads the learning curve of a run on disk from its records, metrics and config."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.compare.curves import Curve
from verl_gsd.compare.run_names import label_and_seed
from verl_gsd.dotted_keys import value_at
from verl_gsd.evaluation.summary import ACCURACY
from verl_gsd.history import config_of, parts_of_run
from verl_gsd.records import gaps, listed_steps, read_records
from verl_gsd.run.messages import read_messages
from verl_gsd.rundir import (
    EXACT,
    HELD_OUT,
    HELD_OUT_OUTSIDE,
    HELD_OUT_PROMPTS,
    TRAINED,
    RunDirectory,
    is_rehearsal,
    merge_metrics,
    read_metrics,
)
from verl_gsd.scalars import is_whole

#: If this is above 0, verl validates on that many held-out prompts: the first ones, or with ``SHUFFLE`` a sample that
#: depends on data.seed.
VALIDATED, SHUFFLE = "data.val_max_samples", "data.shuffle"
#: Settings that affect the accuracy but are not part of the training method.
VALIDATION = (
    "data.val_files",
    VALIDATED,
    "data.filter_overlong_prompts",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.apply_chat_template_kwargs",
    "actor_rollout_ref.model.path",  # methods that start from different models cannot be compared
    *(f"actor_rollout_ref.rollout.val_kwargs.{name}" for name in ("n", "do_sample", "temperature", "top_k", "top_p")),
    "reward.custom_reward_function.path",
    "reward.custom_reward_function.name",
)
_TOTAL = "trainer.total_training_steps"
#: A run that is trained longer than first planned has other values. With a constant learning rate, it keeps its method.
_LENGTHS = (_TOTAL, "trainer.total_epochs")
_SCHEDULE = "actor_rollout_ref.actor.optim.lr_scheduler_type"
_CONSTANT = "constant"
#: Sections and keys of the config that affect training.
_TRAINING = (
    *("algorithm.", "actor_rollout_ref.", "critic.", "data.", "reward.", "trainer.v1."),
    *("trainer.total_epochs", _TOTAL, "trainer.critic_warmup", "trainer.balance_batch", "trainer.nnodes"),
    "trainer.n_gpus_per_node",
)
#: Keys that may differ between the seeds of a method: seeds, paths, and names of runs. What a validation uses is in
#: ``VALIDATION``.
_MAY_DIFFER = re.compile(
    r"(^|[._])(seed|path|paths|file|files|dir|directory|folder|url|served_model_name|experiment_name|project_name)$"
)
#: Prepared data sets are DATA_SET/SPLIT.parquet, so the last two parts identify a training file on any machine.
_TRAIN_FILES = "data.train_files"


class NoValidationYetError(ValueError):
    """The run is unfinished and has no validation yet.

    Attributes:
        label: the run's label.
    """

    def __init__(self, message: str, label: str) -> None:
        super().__init__(message)
        self.label = label


def read_curve(run: Path, label: str | None = None, source: str | None = None, *, exact: bool = False) -> Curve:
    """Return the learning curve of the run in the folder ``run``.

    Its label and seed are those of ``label_and_seed``.

    Args:
        label: overrides the run's label.
        source: data source of the held-out prompts. It may be None if the run has only one.
        exact: read accuracies by exact solve rates, which runs of the laboratory have.

    Raises:
        FileNotFoundError: the folder does not exist.
        NoValidationYetError: the run is before its first validation.
        ValueError: validations or records are missing, or a file is damaged; the message names it.
    """
    layout = RunDirectory(run)
    tokens = _tokens(run)
    attempts = _attempts(layout)
    metrics = _validations(layout, attempts)
    config = _config(layout, attempts)
    if is_rehearsal(value_at(config, "trainer.default_local_dir")):
        raise ValueError(
            f"{run}: this is a rehearsal, which --rehearse made. Its weights are random and its scores are seeded. Use "
            "the folder of a run"
        )
    total = _last_step(layout, attempts, config)
    if not metrics and _validates_rewards(layout):
        raise ValueError(
            f"{run}: its validations have mean rewards (val-core/*/reward/mean@N) and no accuracies, because its "
            "reward function returns no acc. Return acc, 1 for a right and 0 for a wrong response, beside score"
        )
    if not metrics:
        last_step = max(tokens, default=0)
        if total is not None and last_step < total:
            message = f"{run}: at step {last_step} of {total}, without a validation so far"
            raise NoValidationYetError(message, label_and_seed(run, config, label)[0])
        if not layout.attempts():
            raise ValueError(
                f"{run}: contains neither records nor metrics. Use a run's folder (trainer.default_local_dir)"
            )
        raise ValueError(
            f"{run}: its metrics contain no val-core/*/acc/mean@N. Train with validation, for example "
            "trainer.test_freq=10"
        )
    if not tokens:
        raise ValueError(
            f"{run}: no records, so the number of generated tokens is unknown. Train with a trainer mode that writes "
            "records, such as trainer.v1.trainer_mode=gsd_sync"
        )
    metric, source = _metric(run, metrics, source, exact)
    if not exact and any(data.get(HELD_OUT_OUTSIDE + source, 0.0) > 0 for data in metrics.values()):
        raise ValueError(
            f"{run}: the held-out acc of {source} is no accuracy, because its verifier returned values outside [0, 1]. "
            "Return acc, 1 for a right and 0 for a wrong response, beside score from the reward function"
        )
    steps = [step for step, data in metrics.items() if metric in data]
    if missing := gaps({0, *(step for step in tokens if 0 < step <= steps[-1]), steps[-1] + 1}):
        raise ValueError(
            f"{run}: no records of step {listed_steps(missing)}, so the number of generated tokens is unknown"
        )
    generated = np.cumsum([tokens.get(step, 0) for step in range(steps[-1] + 1)]).tolist()
    label, seed = label_and_seed(run, config, label)
    validation = _validation_settings(config)
    earlier = _earlier_configs(layout)
    _check_one_validation(run, earlier, validation)
    try:
        return Curve(
            label,
            seed,
            source,
            tuple(steps),
            tuple(generated[step] for step in steps),
            tuple(metrics[step][metric] for step in steps),
            str(run),
            total,
            {"metric": metric} | validation,
            "in the laboratory" if layout.sources.is_file() else "on the stack",
            _responses(metric, source, [metrics[step] for step in steps]),
            _training_settings(config),
            tuple(_changes(earlier, config)),
        )
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error


def _validation_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``VALIDATION``; empty without a config."""
    if not config:
        return {}
    validation = {key: _without_home(value_at(config, key)) for key in VALIDATION}
    if is_whole(validation[VALIDATED], 1):
        validation[SHUFFLE] = value_at(config, SHUFFLE)
    return validation


def _attempts(layout: RunDirectory) -> list[int]:
    """Return the attempts whose steps count; all of them before the first step.

    An attempt that trained nothing, such as one that only validated, changes no curve.
    """
    return [part.attempt for part in parts_of_run(layout)] or layout.attempts()


def _last_step(layout: RunDirectory, attempts: Sequence[int], config: Mapping[str, Any]) -> int | None:
    """Return the last step of the newest of ``attempts``; None if it is unknown.

    The trainer says it in a message, because the number of prompts decides it, too. In the laboratory, the config does.
    """
    messages = read_messages(layout.messages(attempts[-1])) if attempts else []
    last = [message.text for message in messages if message.kind == "steps" and message.text.isdecimal()][-1:]
    if last:
        return int(last[0])
    total = value_at(config, _TOTAL)
    return total if isinstance(total, int) else None


def _config(layout: RunDirectory, attempts: Sequence[int]) -> Mapping[str, Any]:
    """Return the config of the newest of ``attempts``, or else that of the run; empty if there is none."""
    return (config_of(layout, attempts[-1]) if attempts else None) or layout.read_yaml(layout.config) or {}


def _earlier_configs(layout: RunDirectory) -> list[tuple[int, Mapping[str, Any]]]:
    """Return (last step, config) of each attempt whose steps count, but for the newest.

    Attempts whose config is unknown are left out.
    """
    configs = [(part.last, config_of(layout, part.attempt)) for part in parts_of_run(layout)[:-1]]
    return [(last, config) for last, config in configs if isinstance(config, dict)]


def _check_one_validation(
    run: Path, earlier: Sequence[tuple[int, Mapping[str, Any]]], validation: Mapping[str, Any]
) -> None:
    """Raise a ValueError if an earlier attempt measured another accuracy."""
    for last, config in earlier:
        for key, value in _validation_settings(config).items():
            if validation and value != (now := validation.get(key)):
                raise ValueError(
                    f"{run}: its accuracies up to step {last} and after it cannot be compared, because it was resumed "
                    f"with another {key} ({value!r:.60}, then {now!r:.60}). Leave this run out"
                )


def _changes(earlier: Sequence[tuple[int, Mapping[str, Any]]], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the training settings that differ in an earlier attempt."""
    now = _training_settings(config)
    seen: dict[str, str] = {}
    for last, before in earlier:
        then = _training_settings(before)
        for key in sorted({*then, *now}):
            is_length = key in _LENGTHS and then.get(_SCHEDULE, _CONSTANT) == now.get(_SCHEDULE, _CONSTANT) == _CONSTANT
            if not is_length and then.get(key) != now.get(key):
                seen[key] = f"{key} ({then.get(key)!r:.60} up to step {last}, {now.get(key)!r:.60} at the end)"
    yield from seen.values()


def _without_home(value: Any) -> Any:
    """Replace the home folder in a path by ``~``, because results of different machines are compared."""
    home = str(Path.home())
    return f"~{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(f"{home}/") else value


def _responses(metric: str, source: str, validations: Sequence[Mapping[str, float]]) -> int | None:
    """Return the fewest responses behind an accuracy; None if a validation does not have its number of prompts."""
    prompts = [data.get(HELD_OUT_PROMPTS + source) for data in validations]
    match = ACCURACY.match(metric)  # an exact accuracy has no responses
    known = [int(count) for count in prompts if count]
    return min(known) * int(match["samples"]) if match and len(known) == len(prompts) else None


def _training_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings by dotted key that the seeds of one method must share."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            settings |= _training_settings(value, f"{key}.")
        elif key == _TRAIN_FILES:
            files = value if isinstance(value, list) else [value]
            settings[key] = ["/".join(Path(str(file)).parts[-2:]) for file in files]
        elif key.startswith(_TRAINING) and not _MAY_DIFFER.search(key):
            settings[key] = value
    return settings


def _tokens(run: Path) -> dict[int, int]:
    """Return the tokens of all groups that left in each step."""
    table = read_records(run, ["step", "tokens"])
    by_step: dict[int, int] = {}
    for step, tokens in zip(*(table[name].to_pylist() for name in ("step", "tokens")), strict=True):
        by_step[step] = by_step.get(step, 0) + tokens
    return by_step


def _validations(layout: RunDirectory, attempts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Return accuracies by step and metric name.

    An attempt that resumed from step S discards the results of earlier attempts from step S + 1 on.
    """
    steps = merge_metrics(_lines(layout.metrics(attempt)) for attempt in attempts)
    accuracies = {step: {name: data[name] for name in data if name != TRAINED} for step, data in steps.items()}
    return {step: data for step, data in accuracies.items() if any(map(ACCURACY.match, data))}


def _validates_rewards(layout: RunDirectory) -> bool:
    """Whether a validation of the run has a mean reward in place of an accuracy."""
    names = (
        name for attempt in layout.attempts() for _, data in read_metrics(layout.metrics(attempt)) for name in data
    )
    return any(HELD_OUT.fullmatch(name) for name in names)


def _lines(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the step, the accuracies and the other metrics that are needed of each line of a metrics file."""
    lines: list[tuple[int, dict[str, float]]] = []
    try:
        for step, data in read_metrics(path):
            selected = {name: value for name, value in data.items() if _is_needed(name)}
            numbers = {name: float(value) for name, value in selected.items()}
            known = {name: value for name, value in numbers.items() if name == TRAINED or not math.isnan(value)}
            lines.append((step, known))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: line {len(lines) + 1} is not a valid line of metrics ({error}). Repair or remove it"
        ) from error
    return lines


def _is_needed(name: str) -> bool:
    is_count = name.startswith((HELD_OUT_PROMPTS, HELD_OUT_OUTSIDE))
    return name in (TRAINED, EXACT) or is_count or ACCURACY.match(name) is not None


def _metric(run: Path, metrics: Mapping[int, Mapping[str, float]], source: str | None, exact: bool) -> tuple[str, str]:
    """Return the name of the accuracy on ``source``, and the source; if ``source`` is None, the only one."""
    names = {name: match["source"] for data in metrics.values() for name in data if (match := ACCURACY.match(name))}
    sources = sorted(set(names.values()))
    if source is None and len(sources) > 1:
        raise ValueError(
            f"{run}: has held-out prompts of {', '.join(sources)}. Choose one, for example --source {sources[0]}"
        )
    source = source or sources[0]
    if source not in sources:
        raise ValueError(f"--source {source}: {run} has {', '.join(sources)}. Use one of these")
    if exact:
        if any(EXACT not in data for data in metrics.values()):
            raise ValueError(
                f"{run}: its validations have no exact accuracy. Use runs of verl-gsd lab train on an embedded task, "
                "or leave out --exact"
            )
        if len(sources) > 1:
            raise ValueError(
                f"{run}: its exact accuracy is over the prompts of {', '.join(sources)} together. Leave out --exact"
            )
        return EXACT, source
    candidates = sorted(name for name in names if names[name] == source)
    if len(candidates) > 1:
        raise ValueError(
            f"{run}: has both {' and '.join(candidates)}. Use a run that validates with the same number of samples "
            "throughout"
        )
    return candidates[0], source
