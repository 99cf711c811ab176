"""A run on disk: where each thing lies, and how to read back what was measured.

    RUN/config.yaml             the resolved config of the newest attempt
    RUN/overrides.yaml          the command line it was composed from
    RUN/metrics/attempt_A.jsonl one line a step, every scalar verl logs, the first validation included
    RUN/logs/attempt_A.log      everything verl, Ray and vLLM printed
    RUN/messages/attempt_A.jsonl what the trainer tells the user: notes, warnings, why it stopped (run/messages.py)
    RUN/records/attempt_A/      one Parquet file a step, a row a prompt group (records.py)
    RUN/global_step_N/          verl's checkpoints; global_step_N/gsd what remembers beside the weights

Starting a run and resuming it are attempts 1, 2, ...: verl truncates its metrics file on opening, so each has its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_gsd.checkpoints import step_of, whole_checkpoints

#: A metric that verl logs with every training step, and not with a validation before the first.
TRAINED = "training/global_step"


@dataclass(frozen=True)
class RunDirectory:
    """The layout below one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.path / "overrides.yaml"

    def metrics(self, attempt: int) -> Path:
        return self.path / "metrics" / f"attempt_{attempt}.jsonl"

    def log(self, attempt: int) -> Path:
        return self.path / "logs" / f"attempt_{attempt}.log"

    def messages(self, attempt: int) -> Path:
        return self.path / "messages" / f"attempt_{attempt}.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / ".lock"

    def is_used(self) -> bool:
        """Whether anything but the lock is there."""
        return self.path.is_dir() and any(path != self.lock for path in self.path.iterdir())

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def attempts(self) -> list[int]:
        """Numbers of the attempts made so far, ascending; those under verl's own command have no log."""
        made = (path for folder in ("logs", "metrics", "records") for path in (self.path / folder).glob("attempt_*"))
        return sorted({int(match[1]) for path in made if (match := re.fullmatch(r"attempt_(\d+)", path.stem))})

    def records(self, attempt: int) -> Path:
        return self.path / "records" / f"attempt_{attempt}"

    def checkpoint(self, step: int) -> Path:
        return self.path / f"global_step_{step}"

    @property
    def marker(self) -> Path:
        """verl writes the step of the newest checkpoint here when the checkpoint is whole."""
        return self.path / "latest_checkpointed_iteration.txt"

    def latest_checkpoint(self) -> int | None:
        """The step to resume from: verl's own, or the newest whole checkpoint's if verl's marker cannot be read."""
        if not self.marker.is_file():
            return None
        step = self._announced()
        return step if step is not None else next(map(step_of, whole_checkpoints(self.path)), None)

    def marker_is_damaged(self) -> bool:
        """Whether verl's marker is there without a step in it: the disk was full while verl wrote it."""
        return self.marker.is_file() and self._announced() is None

    def _announced(self) -> int | None:
        try:
            return int(self.marker.read_bytes())
        except ValueError:
            return None


class MetricsReader:
    """Reads a metrics file that is being written, each line once.

    Args:
        skip_damaged: leave out lines that cannot be read. A full disk can cut a line in two, and the run may continue.
    """

    def __init__(self, path: Path, skip_damaged: bool = False) -> None:
        self._path = path
        self._skip_damaged = skip_damaged
        self._offset = 0

    def new(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, scalars) of every line completed since the last call; NaN where verl logged no number."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    entry = json.loads(line)
                    step, data = entry["step"], entry["data"].items()
                except (ValueError, KeyError, TypeError, AttributeError):
                    if self._skip_damaged:
                        continue
                    raise
                yield step, {name: math.nan if value is None else value for name, value in data}


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, scalars) of every complete line; a last line cut off by a crash is left out."""
    return MetricsReader(path).new()
