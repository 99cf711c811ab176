"""One run per seed, in RUNS/LABEL/seed_N: the words of each run, and which runs have finished."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd.dotted_keys import value_at
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation.intervals import Estimate, mean_accuracy_over_seeds, student_mean
from verl_gsd.evaluation.summary import Accuracy, summarise
from verl_gsd.jobs.submission import SEED_KEYS
from verl_gsd.run.compose import Line, resolve
from verl_gsd.rundir import EXACT, RunDirectory, read_metrics

_FOLDER = "trainer.default_local_dir"


def parse_seeds(text: str) -> list[int]:
    """The seeds of ``--seeds``: ``1..32``, ``1,2,5``, ``3``, or a list of these.

    Raises:
        ConfigError: the text is none of these, or a seed is repeated.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ConfigError(f"--seeds {text}: not a list of seeds. Use, for example, --seeds 1..32 or --seeds 1,2,5.")
        seeds += range(first, last + 1)
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ConfigError(f"--seeds {text}: seed {repeated[0]} is repeated. Remove the repetition.")
    return seeds


def check_line(line: Line) -> None:
    """Raise a ConfigError if the line sets a key that each seed sets by itself."""
    for key in line.keys:
        if key in (*SEED_KEYS, _FOLDER):
            raise ConfigError(f"{key}: --seeds sets this key for each run. Remove the key, or --seeds.")


def words_of_seed(line: Line, seed: int) -> list[str]:
    """The words of one seed's run, without its folder."""
    return [*line.words, *(f"{key}={seed}" for key in SEED_KEYS)]


def config_of_seed(composed: DictConfig, seed: int, folder: Path) -> DictConfig:
    """The resolved config of one seed's run.

    Args:
        composed: the config of the line, with its interpolations unresolved.
    """
    config = composed.copy()
    with open_dict(config):
        for key in SEED_KEYS:
            OmegaConf.update(config, key, seed)
        config.trainer.default_local_dir, config.trainer.experiment_name = str(folder), folder.name
    return resolve(config)


def is_finished(run: RunDirectory) -> bool:
    """Whether the metrics of a run contain its last step."""
    total = total_steps(run)
    return total is not None and max((step for step, _ in read_lines(run)), default=0) >= total


def total_steps(run: RunDirectory) -> int | None:
    """The number of steps of a run. None before its trainer is built, which fills it in where the line has none."""
    return value_at(run.read_yaml(run.config), "trainer.total_training_steps")


def check_same_line(run: RunDirectory, words: Sequence[str]) -> None:
    """Raise a ConfigError if the folder has anything but a run of the line ``words``, so that runs are never mixed."""
    if not run.is_used():
        return
    stored = run.read_yaml(run.overrides)
    if not isinstance(stored, list):
        raise ConfigError(
            f"{run.path}: this folder is not empty, and it has no run of the laboratory. Use another --label or --runs."
        )
    if only_stored := sorted(set(stored) - set(words)):
        only_stored = [f"the run in this folder has {' '.join(only_stored)}"]
    if only_given := sorted(set(words) - set(stored)):
        only_given = [f"this line has {' '.join(only_given)}"]
    if only_stored or only_given:
        raise ConfigError(
            f"{run.path}: {', and '.join([*only_stored, *only_given])}. Use the same line, another --label, or remove "
            "the folder."
        )


def mean_accuracies(runs: Sequence[RunDirectory]) -> dict[str, tuple[Estimate, Estimate]]:
    """Data source -> held-out accuracy at the first and at the last validation: means over runs, with intervals.

    The source ``exact`` stands for the accuracy by exact solve rates, if the runs have it.
    """
    ends: dict[str, list[tuple[Accuracy, Accuracy]]] = {}
    outside: set[str] = set()
    for run in runs:
        metrics = read_lines(run)
        for held_out in summarise(metrics, {}).held_out:
            ends.setdefault(held_out.source, []).append((held_out.accuracies[0], held_out.accuracies[-1]))
            outside |= {held_out.source} if held_out.not_accuracy else set()
        if exact := [Accuracy(step, data[EXACT], None) for step, data in metrics if EXACT in data]:
            ends.setdefault("exact", []).append((exact[0], exact[-1]))
    return {
        source: (
            _over_seeds([first for first, _ in pairs], is_outside=source in outside),
            _over_seeds([last for _, last in pairs], is_outside=source in outside),
        )
        for source, pairs in ends.items()
    }


def _over_seeds(accuracies: Sequence[Accuracy], *, is_outside: bool) -> Estimate:
    """The mean of one validation per seed. The number of responses counts if it is known of all of them.

    Values that are no accuracies have the interval of any other mean, ``student_mean``.
    """
    if is_outside:
        return student_mean(np.array([accuracy.value for accuracy in accuracies]))
    counts = [accuracy.responses for accuracy in accuracies]
    trials = None if None in counts else sum(count for count in counts if count)
    return mean_accuracy_over_seeds(np.array([accuracy.value for accuracy in accuracies]), trials)


def read_lines(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of the run."""
    return list(read_metrics(run.metrics(1)))
