"""Turns one command line into jobs: a single one, or one per seed and value of a swept key.

A job's entrypoint is ``verl-gsd train`` on the cluster. The cluster composes the config again, so home directories,
caches and files are those of the cluster. It also creates and locks the run directory, counts attempts, and on a resume
reads the overrides that the run was started with. Only the words of the command line are sent: no config resolved on
this machine, no environment variables and no secrets.
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

#: The metadata key that marks a job as ours; its value is the run's folder.
RUN_KEY = "verl_gsd_run"
#: The keys that ``--seeds`` sets: the order of prompts, vLLM's sampling and the order of mini-batches.
SEED_KEYS = ("data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.data_loader_seed")
_RUN_DIRECTORY = "trainer.default_local_dir"


@dataclass(frozen=True)
class Submission:
    """One job: its identifier on the cluster, its run's folder there, and the words of its command line."""

    identifier: str
    run: str
    words: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The shell command that the cluster runs. It uses the package that is shipped with the job."""
        return shlex.join(["python", "-m", "verl_gsd.cli", "train", *self.words])

    @property
    def metadata(self) -> dict[str, str]:
        return {RUN_KEY: self.run}


def new_runs(
    words: Sequence[str], runs: str, now: datetime, seeds: str | None = None, sweeps: Sequence[str] = ()
) -> list[Submission]:
    """Return one job per combination of ``seeds`` ("1,2,3") and ``sweeps`` ("KEY=A,B" in Hydra's grammar).

    Args:
        words: the command line, as for ``verl-gsd train``.
        runs: a folder on the cluster, absolute or starting with ``~/``. Each job gets its own run, in RUNS/IDENTIFIER.

    Raises:
        ConfigError: a sweep is invalid or contradicts the command line, or a folder is relative.
    """
    _check_absolute(runs, "--runs ")
    axes = _axes(seeds, sweeps)
    directories = [word for word in words if _key(word) == _RUN_DIRECTORY]
    swept = [key for axis in axes for key in axis.keys]
    if repeated := [key for key in swept if swept.count(key) > 1]:
        raise ConfigError(f"{repeated[0]}: swept twice. Use one --sweep with all its values, or remove --seeds.")
    for key, word in itertools.product(swept, words):
        if _key(word) == key:
            raise ConfigError(f"{word}: a sweep also sets {key}. Remove one of the two.")
    if directories and axes:
        raise ConfigError(f"{directories[-1]}: every job of a sweep needs its own folder. Use --runs FOLDER instead.")
    for word in directories:
        _check_absolute(_value(word), f"{_RUN_DIRECTORY}=")
    name = f"{_name(words)}-{now:%Y%m%d-%H%M%S}"
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(set(combinations)) < len(combinations):
        raise ConfigError("--seeds, --sweep: a value is repeated. Remove the repetition.")
    uses: Counter[str] = Counter()
    submissions = []
    for combination in combinations:
        identifier = "-".join([name, *(_safe_name(value.label) for value in combination)])
        uses[identifier] += 1  # different values such as [a] and (a) can give the same identifier
        identifier += f"-{uses[identifier]}" if uses[identifier] > 1 else ""
        run = _value(directories[-1]) if directories else f"{runs.rstrip('/')}/{identifier}"
        run_directory = () if directories else (f"{_RUN_DIRECTORY}={_quote(run)}",)
        swept_words = [word for value in combination for word in value.words]
        submissions.append(Submission(identifier, run, (*words, *swept_words, *run_directory)))
    return submissions


def resumed_run(run: str, words: Sequence[str], now: datetime) -> Submission:
    """Return a job that resumes ``run``, a folder on the cluster, with ``words`` as further overrides.

    Args:
        run: the run's folder, to resume from its last checkpoint, or RUN/global_step_N, to resume from that one.

    Raises:
        ConfigError: the folder is relative, or ``words`` set another run directory.
    """
    run = run.rstrip("/")
    _check_absolute(run, "--resume ")
    for word in words:
        if _key(word) in (_RUN_DIRECTORY, "resume"):
            raise ConfigError(f"{word}: --resume already determines the run directory. Remove this override.")
    folder = re.sub(r"/global_step_\d+$", "", run)
    name = folder.rpartition("/")[2]
    return Submission(_safe_name(f"{name}-resumed-{now:%Y%m%d-%H%M%S}"), folder, (*words, f"resume={run}"))


@dataclass(frozen=True)
class _SweepValue:
    label: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class _SweepAxis:
    keys: tuple[str, ...]
    values: tuple[_SweepValue, ...]


def _axes(seeds: str | None, sweeps: Sequence[str]) -> list[_SweepAxis]:
    axes = []
    for sweep in sweeps:
        key, values = _swept(sweep, f"--sweep {sweep}")
        override_key, short_key = sweep.partition("=")[0], key.rpartition(".")[2]
        sweep_values = (_SweepValue(f"{short_key}_{value}", (f"{override_key}={value}",)) for value in values)
        axes.append(_SweepAxis((key,), tuple(sweep_values)))
    if seeds is not None:
        values = seeds.split(",")
        if not all(re.fullmatch(r"0|[1-9]\d*", value) for value in values):
            raise ConfigError(f"--seeds {seeds}: not a list of integers. Use, for example, --seeds 1,2,3.")
        sweep_values = (_SweepValue(f"seed_{seed}", tuple(f"{key}={seed}" for key in SEED_KEYS)) for seed in values)
        axes.append(_SweepAxis(SEED_KEYS, tuple(sweep_values)))
    return axes


def _swept(word: str, option: str) -> tuple[str, list[str]]:
    """Return the key and the values of a ``--sweep`` option."""
    override = _parse_override(word)
    if override is None or override.value_type is None:
        raise ConfigError(
            f"{option}: not of the form KEY=VALUE,VALUE,... Use, for example, --sweep algorithm.gsd.alpha=0,0.5,1."
        )
    if not override.is_sweep_override():
        return override.key_or_group, [word.partition("=")[2]]
    return override.key_or_group, list(override.sweep_string_iterator())


def _parse_override(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _key(word: str) -> str:
    is_path = word.startswith(("resume=", "trust=", "data=", "model="))  # plain paths, not in Hydra's grammar
    override = None if is_path else _parse_override(word)
    return word.partition("=")[0] if override is None else override.key_or_group


def _value(word: str) -> str:
    override = _parse_override(word)
    return word.partition("=")[2] if override is None else str(override.value())


def _name(words: Sequence[str]) -> str:
    """Return the first part of a job's identifier: its recipe, or its task or data and its algorithm."""
    choices = dict(_pairs(words))
    if "data" in choices:
        choices["data"] = choices["data"].rstrip("/").rpartition("/")[2]
    return _safe_name(
        choices.get("recipe") or "-".join(choices[word] for word in ("data", "task", "algo") if word in choices)
    )


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        key, _, value = word.partition("=")
        yield key, value


def _safe_name(text: str) -> str:
    """Return ``text`` with only characters that are safe in an identifier, a folder name and a URL."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "run"


def _quote(path: str) -> str:
    """Quote ``path`` as a value in Hydra's grammar, in which ``~`` and other characters have a special meaning."""
    return path if re.fullmatch(r"[A-Za-z0-9/._-]+", path) else f'"{path}"'


def _check_absolute(path: str, option: str) -> None:
    if not path.startswith(("/", "~/")):
        raise ConfigError(
            f"{option}{path}: this folder on the cluster is relative. Use an absolute path, or one that starts with ~/."
        )
    if special := re.search(r"[\x00-\x1f\"\\$]", path):
        raise ConfigError(
            f"{option}{path}: {special[0]!r} has a special meaning in Hydra's grammar. Use a folder name without it."
        )
