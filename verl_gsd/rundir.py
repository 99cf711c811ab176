"""The files of a run: where each of them is, and how its metrics are read back.

    RUN/config.yaml              the resolved config of the newest attempt
    RUN/configs/attempt_A.yaml   the resolved config of attempt A
    RUN/overrides.yaml           the command line of the newest attempt
    RUN/signature                shows that this user started the run in this folder (run/trust.py)
    RUN/metrics/attempt_A.jsonl  one line per step with every scalar that verl logs, the first validation included
    RUN/logs/attempt_A.log       everything that verl, Ray and vLLM printed
    RUN/messages/attempt_A.jsonl the trainer's messages to the user: notes, warnings, why it stopped (run/messages.py)
    RUN/records/attempt_A/       one Parquet file per step, one row per prompt group (records.py)
    RUN/global_step_N/           verl's checkpoints; global_step_N/gsd has our state (state.py)

The start of a run is attempt 1, and each resume is a further attempt. Every attempt has its own metrics file, because
verl truncates the file when it opens it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from verl_gsd.checkpoints import step_of, whole_checkpoints
from verl_gsd.plain_data import parse_json, read_yaml
from verl_gsd.regular_files import lines_of, open_regular
from verl_gsd.scalars import is_number, is_whole

#: A metric that verl logs with every training step, but not with the validation before the first step.
TRAINED = "training/global_step"
#: Held-out accuracy by exact solve rates, in validations of the laboratory (lab/training/exact.py).
EXACT = "exact/accuracy"
#: Metric with the policy's entropy in nats per token. verl's ``actor/entropy`` is averaged as the run's loss is
#: (``loss_agg_mode``), so that it can also be a sum over tokens, divided by a constant.
ENTROPY = "policy/entropy"
#: Our trainer's metric of the mean reward of all responses that were generated, in steps in which some were not trained
#: on. verl's ``critic/score/mean`` is that of the batch trained on.
GENERATED_REWARD = "group/reward/generated"
#: Our trainer's metric, 1 in each step, if the data sets the number of rollouts per prompt (``extension.ROLLOUTS``).
#: ``actor_rollout_ref.rollout.n`` then has no effect on the sizes of groups.
SIZES_IN_DATA = "group/sizes_in_data"
#: The start of our trainer's metric names of the number of held-out prompts. The data source follows.
HELD_OUT_PROMPTS = "val/prompts/"
#: The same, of ``prompts.independent_prompts``, in which a repeated prompt counts once. Sources in which no prompt is
#: repeated have no metric.
HELD_OUT_INDEPENDENT = "val/independent/"
#: The start of our trainer's metric names of the number of held-out responses whose ``acc`` lies outside [0, 1]. The
#: data source follows. Sources without such a response have no metric.
HELD_OUT_OUTSIDE = "val/outside/"

#: verl's metric names of held-out accuracies. If a reward function returns no ``acc`` for a data source, they are mean
#: rewards. ``samples`` is the number of responses per prompt.
HELD_OUT = re.compile(r"val-core/(?P<source>.+)/(?P<figure>acc|reward)/mean@(?P<samples>\d+)")

#: Larger numbers are no steps. Programs that read JSON with doubles represent integers exactly up to this one.
LARGEST_STEP = 2**53

#: A file with a step has no more bytes than this.
_LONGEST_MARKER = 64

#: The end of the path of a rehearsal's run.
_REHEARSED = "-rehearsal/run"

T = TypeVar("T")


def rehearsal_folder(run: Path) -> Path:
    """The folder of the rehearsal of ``run``. The rehearsal's own run is the folder ``run`` in it."""
    return Path(f"{run}{_REHEARSED}").parent


def is_rehearsal(default_local_dir: Any) -> bool:
    """Whether a run was a rehearsal: its weights are random and most of its scores are seeded.

    Args:
        default_local_dir: the value of ``trainer.default_local_dir`` in the run's config.
    """
    return isinstance(default_local_dir, str) and default_local_dir.endswith(_REHEARSED)


@dataclass(frozen=True)
class RunDirectory:
    """The paths in the folder of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def attempt_config(self, attempt: int) -> Path:
        """Runs of older versions and of the laboratory do not have it."""
        return self.path / "configs" / f"attempt_{attempt}.yaml"

    @property
    def overrides(self) -> Path:
        return self.path / "overrides.yaml"

    @property
    def signature(self) -> Path:
        """The signature of ``overrides`` (``run/trust.py``)."""
        return self.path / "signature"

    @property
    def sources(self) -> Path:
        """Only in runs of the laboratory: hashes of what the run was made from."""
        return self.path / "sources.yaml"

    def read_yaml(self, path: Path) -> Any:
        """The content of ``config``, ``overrides`` or ``sources``; None if the file does not exist.

        Raises:
            ValueError: the file cannot be read, a link leads to a file outside the run, or ``parse_yaml`` rejects the
                content. The message names the file.
        """
        return read_yaml(path, within=self.path)

    def metrics(self, attempt: int) -> Path:
        return self.path / "metrics" / f"attempt_{attempt}.jsonl"

    def log(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt_{attempt}.log"

    def messages(self, attempt: int) -> Path:
        return self.path / "messages" / f"attempt_{attempt}.jsonl"

    @property
    def lock(self) -> Path:
        """The lock file, held by the process that trains in this folder."""
        return self.path / ".lock"

    def is_used(self) -> bool:
        """Whether the folder contains anything other than the lock file."""
        return self.path.is_dir() and any(path != self.lock for path in self.path.iterdir())

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def attempts(self) -> list[int]:
        """The numbers of all attempts so far, ascending. Attempts started with verl's own command have no log."""
        paths = (path for folder in ("logs", "metrics", "records") for path in (self.path / folder).glob("attempt_*"))
        return sorted({int(match[1]) for path in paths if (match := re.fullmatch(r"attempt_(\d+)", path.stem))})

    def records(self, attempt: int) -> Path:
        return self.path / "records" / f"attempt_{attempt}"

    def checkpoint(self, step: int) -> Path:
        return self.path / f"global_step_{step}"

    @property
    def marker(self) -> Path:
        """The file in which verl stores the step of the newest checkpoint, once that checkpoint is complete."""
        return self.path / "latest_checkpointed_iteration.txt"

    def latest_checkpoint(self) -> int | None:
        """The step to resume from, or None if there is none.

        This is the step in verl's marker. If the marker is unreadable, it is the step of the newest checkpoint whose
        files are complete.
        """
        if not self.marker.is_file():
            return None
        step = self._marked_step()
        return step if step is not None else next(map(step_of, whole_checkpoints(self.path)), None)

    def marker_is_damaged(self) -> bool:
        """Whether verl's marker exists but contains no step. This happens if the disk is full when verl writes it."""
        return self.marker.is_file() and self._marked_step() is None

    def _marked_step(self) -> int | None:
        with open_regular(self.marker) as file:
            content = file.read(_LONGEST_MARKER + 1)
        try:
            step = int(content)
        except ValueError:
            return None
        return step if is_step(step) and len(content) <= _LONGEST_MARKER else None


def is_step(value: Any) -> TypeGuard[int]:
    """Whether a value from a file can be the number of a step."""
    return is_whole(value, 0) and value <= LARGEST_STEP


class MetricsReader:
    """Reads a metrics file while it is being written, and yields each line once.

    Args:
        path: RUN/metrics/attempt_A.jsonl.
        skip_damaged: whether lines that cannot be parsed are skipped instead of raising. A full disk can cut off a
            line, and the run may continue after it.
    """

    def __init__(self, path: Path, skip_damaged: bool = False) -> None:
        self._path = path
        self._skip_damaged = skip_damaged
        self._offset = 0

    def new(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, scalars) of every line completed since the last call; NaN where verl logged null.

        Raises:
            ValueError: a line cannot be parsed, and damaged ones are not skipped. The next call continues after it.
            OSError: the file cannot be read, a line is too long, or a link leads to a file outside RUN.
        """
        if not self._path.is_file():
            return
        with open_regular(self._path, within=self._path.parents[1]) as file:
            file.seek(self._offset)
            for line in lines_of(file):
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    step, data = _step_and_scalars(line)
                except ValueError:
                    if self._skip_damaged:
                        continue
                    raise
                yield step, data


def _step_and_scalars(line: bytes) -> tuple[int, dict[str, float]]:
    """Parse a line of a metrics file: the step, and its scalars; NaN for null.

    Raises:
        ValueError: the line has no step or no metrics, or a number that is too large for a float.
    """
    entry = parse_json(line)
    step, data = (entry.get(name) if isinstance(entry, dict) else None for name in ("step", "data"))
    if not is_step(step):
        raise ValueError(f"step={str(step)[:30]}: not a step")
    if not isinstance(data, dict):
        raise ValueError("data is not an object with the metrics")
    for name, value in data.items():
        if isinstance(value, int) and not isinstance(value, bool) and not is_number(value):
            raise ValueError(f"{name}: the number is too large")
    return step, {name: math.nan if value is None else value for name, value in data.items()}


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, scalars) of every complete line. A last line that a crash cut off is skipped."""
    return MetricsReader(path).new()


def merge_attempts(
    attempts: Iterable[Iterable[tuple[int, T]]],
    *,
    trains: Callable[[T], bool] = lambda entry: True,
    combine: Callable[[T, T], T] = lambda earlier, later: later,
) -> dict[int, T]:
    """What counts of everything that the attempts of a run wrote: one entry per step, in the order of steps.

    An attempt that resumes at step S undoes what earlier attempts wrote after S. The first step that an attempt
    trains is S + 1, so its first training step replaces all earlier entries from that step on.

    Args:
        attempts: (step, entry) pairs of each attempt, oldest attempt first.
        trains: whether an entry belongs to a training step. A validation before the first step does not.
        combine: merges two entries of the same step, the earlier one first. The default keeps the later one.
    """
    merged: dict[int, T] = {}
    for attempt in attempts:
        entries = list(attempt)
        if trained := [step for step, entry in entries if trains(entry)]:
            merged = {step: entry for step, entry in merged.items() if step < min(trained)}
        for step, entry in entries:
            merged[step] = combine(merged[step], entry) if step in merged else entry
    return dict(sorted(merged.items()))


def merge_metrics(attempts: Iterable[Iterable[tuple[int, Mapping[str, float]]]]) -> dict[int, dict[str, float]]:
    """``merge_attempts`` of (step, scalars) pairs. Lines of the same step are merged; a later value wins."""
    merged = merge_attempts(
        attempts, trains=lambda scalars: TRAINED in scalars, combine=lambda earlier, later: {**earlier, **later}
    )
    return {step: dict(scalars) for step, scalars in merged.items()}
