"""From the words of one line to the jobs that run it: one, or one for each seed and value of a swept key.

A job's entrypoint is ``verl-gsd train`` itself, on the cluster: there the line is composed again, so that a home
directory, a cache or a file means the cluster's; there the run directory is made, locked and counted in attempts; and
a resume reads there what the run was started with. Nothing is sent but words: no config resolved on this machine, no
environment variable, no secret.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from verl_gsd.errors import ConfigError

#: Metadata of a job that is ours; the value is the folder of its run.
RUN = "verl_gsd_run"
#: What a seed sets: the order of prompts, what vLLM samples, the order of mini-batches.
SEED_KEYS = ("data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.data_loader_seed")
_PLACE = "trainer.default_local_dir"


@dataclass(frozen=True)
class Submission:
    """One job: its identifier on the cluster, the folder of its run there, and the words of its line."""

    identifier: str
    run: str
    words: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The shell command that the cluster runs; the package it names is the one shipped beside it."""
        return shlex.join(["python", "-m", "verl_gsd.cli", "train", *self.words])

    @property
    def metadata(self) -> dict[str, str]:
        return {RUN: self.run}


def new_runs(
    words: Sequence[str], runs: str, now: datetime, seeds: str | None = None, sweeps: Sequence[str] = ()
) -> list[Submission]:
    """One job a combination of ``seeds`` ("1,2,3") and ``sweeps`` ("KEY=A,B", Hydra's grammar), each with its own run.

    Args:
        words: the line, as ``verl-gsd train`` takes it.
        runs: a folder on the cluster, absolute or below ``~``; a run is in RUNS/IDENTIFIER.

    Raises:
        ConfigError: a sweep cannot be read or contradicts the line, or a folder is relative to nothing.
    """
    _require_anchored(runs, "--runs ")
    axes = _axes(seeds, sweeps)
    places = [word for word in words if _key(word) == _PLACE]
    swept = [key for axis in axes for key in axis.keys]
    if repeated := [key for key in swept if swept.count(key) > 1]:
        raise ConfigError(f"{repeated[0]}: swept twice. Write all its values in one --sweep, or leave --seeds out.")
    for key, word in itertools.product(swept, words):
        if _key(word) == key:
            raise ConfigError(f"{word}: a sweep sets {key}. Leave one of the two out.")
    if places and axes:
        raise ConfigError(f"{places[-1]}: every job of a sweep needs its own folder. Write --runs FOLDER instead.")
    for place in places:
        _require_anchored(_value(place), f"{_PLACE}=")
    name = f"{_name(words)}-{now:%Y%m%d-%H%M%S}"
    combinations = list(itertools.product(*(axis.points for axis in axes)))
    if len(set(combinations)) < len(combinations):
        raise ConfigError("--seeds, --sweep: a value is there twice. Leave one out.")
    named: Counter[str] = Counter()
    submissions = []
    for combination in combinations:
        identifier = "-".join([name, *(_plain(point.label) for point in combination)])
        named[identifier] += 1  # what is left of [a] and (a) in an identifier is the same
        identifier += f"-{named[identifier]}" if named[identifier] > 1 else ""
        run = _value(places[-1]) if places else f"{runs.rstrip('/')}/{identifier}"
        placed = () if places else (f"{_PLACE}={_quoted(run)}",)
        chosen = [word for point in combination for word in point.words]
        submissions.append(Submission(identifier, run, (*words, *chosen, *placed)))
    return submissions


def resumed_run(run: str, words: Sequence[str], now: datetime) -> Submission:
    """A job that resumes ``run``, a folder on the cluster, with ``words`` over its line.

    Args:
        run: the run's folder, for its last checkpoint, or RUN/global_step_N for that one.

    Raises:
        ConfigError: the folder is relative to nothing, or the words would move the run.
    """
    run = run.rstrip("/")
    _require_anchored(run, "--resume ")
    for word in words:
        if _key(word) in (_PLACE, "resume"):
            raise ConfigError(f"{word}: --resume goes on where the run is. Leave it out.")
    folder = re.sub(r"/global_step_\d+$", "", run)
    name = folder.rpartition("/")[2]
    return Submission(_plain(f"{name}-resumed-{now:%Y%m%d-%H%M%S}"), folder, (*words, f"resume={run}"))


@dataclass(frozen=True)
class _Point:
    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class _Axis:
    keys: tuple[str, ...]
    points: tuple[_Point, ...]


def _axes(seeds: str | None, sweeps: Sequence[str]) -> list[_Axis]:
    axes = []
    for sweep in sweeps:
        key, values = _swept(sweep, f"--sweep {sweep}")
        written, short = sweep.partition("=")[0], key.rpartition(".")[2]
        points = (_Point(f"{short}_{value}", (f"{written}={value}",)) for value in values)
        axes.append(_Axis((key,), tuple(points)))
    if seeds is not None:
        values = seeds.split(",")
        if not all(re.fullmatch(r"0|[1-9]\d*", value) for value in values):
            raise ConfigError(f"--seeds {seeds}: write whole numbers, e.g. --seeds 1,2,3.")
        points = (_Point(f"seed_{seed}", tuple(f"{key}={seed}" for key in SEED_KEYS)) for seed in values)
        axes.append(_Axis(SEED_KEYS, tuple(points)))
    return axes


def _swept(word: str, given: str) -> tuple[str, list[str]]:
    override = _parsed(word)
    if override is None or override.value_type is None:
        raise ConfigError(f"{given}: write KEY=VALUE,VALUE,..., e.g. --sweep algorithm.gsd.alpha=0,0.5,1.")
    if not override.is_sweep_override():
        return override.key_or_group, [word.partition("=")[2]]
    return override.key_or_group, list(override.sweep_string_iterator())


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _key(word: str) -> str:
    override = None if word.startswith("resume=") else _parsed(word)  # its value is a path, whatever its characters
    return word.partition("=")[0] if override is None else override.key_or_group


def _value(word: str) -> str:
    override = _parsed(word)
    return word.partition("=")[2] if override is None else str(override.value())


def _name(words: Sequence[str]) -> str:
    chosen = dict(_pairs(words))
    return _plain(chosen.get("recipe") or "-".join(chosen[group] for group in ("task", "algo") if group in chosen))


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        key, _, value = word.partition("=")
        yield key, value


def _plain(text: str) -> str:
    """``text`` as part of an identifier, a folder's name and a URL."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "run"


def _quoted(path: str) -> str:
    """``path`` as a value of Hydra's grammar, which gives ``~`` and much else a meaning of its own."""
    return path if re.fullmatch(r"[A-Za-z0-9/._-]+", path) else f'"{path}"'


def _require_anchored(path: str, option: str) -> None:
    if not path.startswith(("/", "~/")):
        raise ConfigError(f"{option}{path}: a folder on the cluster. Write an absolute path, or one that begins ~/.")
    if found := re.search(r"[\x00-\x1f\"\\$]", path):
        raise ConfigError(f"{option}{path}: {found[0]!r} means something to Hydra. Write a folder without it.")
