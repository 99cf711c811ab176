"""Learning curves from runs on disk: their records, metrics and config."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.compare.curves import Curve
from verl_gsd.compare.run_names import label_and_seed, read_yaml
from verl_gsd.dotted_keys import value_at
from verl_gsd.evaluation.summary import ACCURACY
from verl_gsd.records import read_records
from verl_gsd.rundir import TRAINED, RunDirectory, merge_metrics, read_metrics
from verl_gsd.sections import is_whole

#: Of so many held-out prompts, if it is above 0, verl takes the first ones, or with ``SHUFFLE`` a choice by data.seed.
VALIDATED, SHUFFLE = "data.val_max_samples", "data.shuffle"
#: What an accuracy depends on beside the policy, and the policy's training has no part in.
VALIDATION = (
    "data.val_files",
    VALIDATED,
    "data.filter_overlong_prompts",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.apply_chat_template_kwargs",
    "actor_rollout_ref.model.path",  # where training began; of methods that began elsewhere nothing can be said
    *(f"actor_rollout_ref.rollout.val_kwargs.{name}" for name in ("n", "do_sample", "temperature", "top_k", "top_p")),
    "reward.custom_reward_function.path",
    "reward.custom_reward_function.name",
)
_TOTAL = "trainer.total_training_steps"


class NothingYetError(ValueError):
    """A run that goes on, and has no validation so far.

    Attributes:
        label: what it is called.
    """

    def __init__(self, message: str, label: str) -> None:
        super().__init__(message)
        self.label = label


def read_curve(run: Path, label: str | None = None, source: str | None = None) -> Curve:
    """The learning curve of the run in that folder.

    Its label and seed are those of its folder: ``grpo/seed_3``, or ``arithmetic-grpo-...-seed_3`` as ``verl-gsd
    submit`` names it. Another folder's are its ``algo=`` word and ``data.seed``.

    Args:
        label: instead of the folder's.
        source: of the held-out prompts; only where the run has several may it not be None.

    Raises:
        FileNotFoundError: there is no such folder.
        NothingYetError: it is before its first validation.
        ValueError: it has no validations or no records, or lacks some, or a file is damaged; the message names it.
    """
    layout = RunDirectory(run)
    tokens = _tokens(run)
    metrics = _validations(layout)
    config = read_yaml(layout.config) or {}
    total = value_at(config, _TOTAL)
    total = total if isinstance(total, int) else None
    if not metrics:
        made = max(tokens, default=0)
        if total is not None and made < total:
            said = f"{run}: at step {made} of {total}, and no validation so far"
            raise NothingYetError(said, label_and_seed(run, config, label)[0])
        if not layout.attempts():
            raise ValueError(
                f"{run}: neither records nor metrics there. Write a run's folder (trainer.default_local_dir)"
            )
        raise ValueError(f"{run}: no val-core/*/acc/mean@N in its metrics. Train with trainer.test_freq=10, say")
    if not tokens:
        raise ValueError(f"{run}: no records, so that nobody knows its tokens. Trainer mode gsd_sync writes them")
    metric, source = _metric(run, metrics, source)
    steps = [step for step, data in metrics.items() if metric in data]
    if missing := sorted(set(range(1, steps[-1] + 1)) - set(tokens)):
        raise ValueError(f"{run}: no records of step {_listed(missing)}, so that nobody knows what they generated")
    so_far = np.cumsum([tokens.get(step, 0) for step in range(steps[-1] + 1)]).tolist()
    label, seed = label_and_seed(run, config, label)
    known = {key: _anywhere(value_at(config, key)) for key in VALIDATION} if config else {}
    if is_whole(known.get(VALIDATED), 1):
        known[SHUFFLE] = value_at(config, SHUFFLE)
    try:
        return Curve(
            label,
            seed,
            source,
            tuple(steps),
            tuple(so_far[step] for step in steps),
            tuple(metrics[step][metric] for step in steps),
            str(run),
            total,
            {"metric": metric} | known,
        )
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error


def _anywhere(value: Any) -> Any:
    """A file below the home folder by ``~``: results are compared over machines, and say nothing of one."""
    home = str(Path.home())
    return f"~{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(f"{home}/") else value


def _tokens(run: Path) -> dict[int, int]:
    """Generated in each step, by all groups that left in it."""
    table = read_records(run, ["step", "tokens"])
    found: dict[int, int] = {}
    for step, tokens in zip(*(table[name].to_pylist() for name in ("step", "tokens")), strict=True):
        found[step] = found.get(step, 0) + tokens
    return found


def _validations(layout: RunDirectory) -> dict[int, dict[str, float]]:
    """Accuracies by step and verl's name. An attempt that resumed at step S undid what there was from S + 1 on."""
    steps = merge_metrics(_lines(layout.metrics(attempt)) for attempt in layout.attempts())
    accuracies = {step: {name: data[name] for name in data if name != TRAINED} for step, data in steps.items()}
    return {step: data for step, data in accuracies.items() if data}


def _lines(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Of each line of metrics the step, its accuracies, and whether it trained."""
    lines: list[tuple[int, dict[str, float]]] = []
    try:
        for step, data in read_metrics(path):
            wanted = {name: value for name, value in data.items() if name == TRAINED or ACCURACY.match(name)}
            numbers = {name: float(value) for name, value in wanted.items()}
            kept = {name: value for name, value in numbers.items() if name == TRAINED or not math.isnan(value)}
            lines.append((operator.index(step), kept))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: line {len(lines) + 1} is no line of metrics ({error}). Mend or remove it") from error
    return lines


def _metric(run: Path, metrics: Mapping[int, Mapping[str, float]], source: str | None) -> tuple[str, str]:
    """verl's name of the accuracy on ``source``, and the source where only one is there."""
    names = {name: match["source"] for data in metrics.values() for name in data if (match := ACCURACY.match(name))}
    sources = sorted(set(names.values()))
    if source is None and len(sources) > 1:
        raise ValueError(f"{run}: held-out prompts of {', '.join(sources)}. Write one, as in --source {sources[0]}")
    source = source or sources[0]
    if source not in sources:
        raise ValueError(f"--source {source}: {run} has {', '.join(sources)}. Write one of these")
    found = sorted(name for name in names if names[name] == source)
    if len(found) > 1:
        raise ValueError(
            f"{run}: {' and '.join(found)}, of different numbers of samples. Compare runs that kept theirs"
        )
    return found[0], source


def _listed(steps: Sequence[int]) -> str:
    few = ", ".join(map(str, steps[:3]))
    return few if len(steps) <= 3 else f"{few} and {len(steps) - 3} more"
