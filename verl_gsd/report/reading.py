"""Reads what a report shows of a run: records, metrics and config, without the steps that a resume replaced.

Files that cannot be read are left out and listed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.estimators import ESTIMATOR, has_group_baseline
from verl_gsd.extension import declarations
from verl_gsd.records import RecordReader, listed_steps, missing_steps, with_valid_accuracies
from verl_gsd.report.responses import Distrust, ResponseReader, StoredGroups, unknown_origin
from verl_gsd.rundir import TRAINED, MetricsReader, RunDirectory, merge_metrics
from verl_gsd.scalars import is_number

#: Column name -> values. All columns have the same length.
Columns = dict[str, np.ndarray]
#: Column of the metrics with the maximum length of responses. A resume can change it.
LONGEST = "max_response_length"

#: Columns of the records that a report reads only if an extension declares a figure from them.
_UNREAD = {"attempt"}
#: Number of unreadable files that a report names. If a whole folder is damaged, there can be thousands.
_NAMED = 3


@dataclass(frozen=True)
class RunData:
    """The data of one run.

    Attributes:
        name: the name of its folder, preceded by parent folders if two runs would otherwise have the same name.
        records: one row per group (``records.schema``), without columns that no figure of the report needs, and
            without the accuracies of data sources that have values outside [0, 1] (``records.with_valid_accuracies``).
            With an estimator that has no group baseline, only groups that dynamic sampling evicted are ``silent``.
        metrics: ``step`` (int64), verl's metrics by name (float64), and ``LONGEST``; NaN at steps without a value.
        config: dotted key -> value; empty if there is no config.
        attempts: the number of attempts: the start and each resume.
        skipped: one sentence per file or step that could not be read.
        words: the words of the command line; empty if they are not known.
        stored: groups with the texts of their responses, if the run stored any.
    """

    name: str
    records: pa.Table
    metrics: Columns
    config: Mapping[str, Any]
    attempts: int
    skipped: tuple[str, ...]
    words: tuple[str, ...] = ()
    stored: StoredGroups = field(default_factory=StoredGroups)

    def is_empty(self) -> bool:
        """Whether the run has neither records nor metrics."""
        return not len(self.records) and not len(self.metrics["step"])

    def left_out(self) -> list[str]:
        """The first few sentences of ``skipped``, and how many more there are."""
        first, more = self.skipped[:_NAMED], len(self.skipped) - _NAMED
        return [*first, *([f"and {more} more"] if more > 0 else [])]


def read_run(path: Path, name: str) -> RunData:
    """Read the run in the folder ``path``. Damaged files are left out and named in ``RunData.skipped``.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    return RunReader(path).read(name)


class RunReader:
    """Reads a run repeatedly while it trains. Records and metrics that it has read before are not read again.

    Args:
        distrust: why somebody else may have made a run, or None (``run.trust.distrust``). Responses of such a run are
            read only in its folder.
    """

    def __init__(self, path: Path, distrust: Distrust = unknown_origin) -> None:
        self._run = RunDirectory(path)
        self._responses = ResponseReader(self._run, distrust)
        figures = [figure for declared in declarations() for figure in declared.step_figures]
        unread = _UNREAD - {name for figure in figures for name in (figure.column, figure.over)}
        self._records = RecordReader(path, leave_out=unread)
        self._metrics: dict[int, _MetricsLines] = {}  # by attempt

    def read(self, name: str) -> RunData:
        """The run as it is now; see ``read_run``."""
        skipped: list[str] = []
        records = with_valid_accuracies(self._records.read(on_damaged=skipped.append))
        if missing := missing_steps(self._run.path):
            skipped.append(f"{self._run.path / 'records'}: no file for step {listed_steps(missing)}")
        attempts = self._run.attempts()
        for attempt in attempts:
            self._metrics.setdefault(attempt, _MetricsLines(self._run.metrics(attempt)))
        lines = [self._metrics[attempt].read(skipped) for attempt in attempts]
        config = _read_config(self._run, self._run.config, skipped)
        metrics = _metrics_columns(lines, [self._longest(attempt, config, skipped) for attempt in attempts])
        if not has_group_baseline(config.get(ESTIMATOR)):
            records = _without_silent_groups(records)
        words = _read_words(self._run, skipped)
        steps = {*metrics["step"].tolist(), *pc.unique(records["step"]).to_pylist()}
        stored = self._responses.read(config, steps, skipped)
        return RunData(name, records, metrics, config, len(attempts), tuple(skipped), words, stored)

    def _longest(self, attempt: int, config: Mapping[str, Any], skipped: list[str]) -> float:
        """The maximum length of responses in an attempt; NaN if it is not known.

        Args:
            config: that of the newest attempt.
        """
        own = _read_config(self._run, self._run.attempt_config(attempt), skipped)
        value = (own or (config if attempt == max(self._run.attempts()) else {})).get("data.max_response_length")
        return float(value) if is_number(value) else math.nan


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each folder: the shortest end of its path that no other folder's path ends with.

    Raises:
        ValueError: a folder is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    names = []
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise ValueError(f"{path}: this run is given twice. Use each run once")
        depth = 1
        while sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _without_silent_groups(records: pa.Table) -> pa.Table:
    """The records with ``silent`` as it is if equal rewards give a gradient, too: true for evicted groups alone."""
    is_filtered = pc.fill_null(pc.equal(records["fate"], "filtered"), False)
    silent = pc.if_else(pc.equal(records["size"], 0), pa.scalar(None, pa.bool_()), is_filtered)
    place = records.schema.get_field_index("silent")
    return records.set_column(place, records.schema.field(place), silent)


class _MetricsLines:
    """The lines of a metrics file that have been read so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self._reader, self._size = MetricsReader(self._path), 0
        self._lines: list[tuple[int, dict[str, float]]] = []
        self._damaged = 0

    def read(self, skipped: list[str]) -> list[tuple[int, dict[str, float]]]:
        """All lines of the file. Only lines that were added since the last call are read."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        if size < self._size:  # another file is in its place
            self._begin()
        self._size = size
        while True:
            try:
                for step, data in self._reader.new():
                    numbers = {name: float(value) for name, value in data.items() if isinstance(value, int | float)}
                    self._lines.append((step, numbers))
                break
            except ValueError:
                self._damaged += 1  # the reader continues after the line that it could not read
            except OSError as error:
                skipped.append(f"{self._path}: cannot be read: {error.strerror}")
                break
        if self._damaged:
            skipped.append(f"{self._path}: {self._damaged} lines cannot be read as metrics")
        return self._lines


def _metrics_columns(attempts: Sequence[Sequence[tuple[int, dict[str, float]]]], longest: Sequence[float]) -> Columns:
    """Merge the metrics of all attempts. A resume replaces later steps of earlier attempts, as in ``records``.

    Args:
        longest: of each attempt, for the column ``LONGEST``.
    """
    steps = merge_metrics(
        # The validation before the first step of a resume has the number of a step of the attempt before.
        [(step, scalars | ({LONGEST: most} if TRAINED in scalars else {})) for step, scalars in lines]
        for lines, most in zip(attempts, longest, strict=True)
    )
    order = list(steps)
    names = dict.fromkeys(name for step in order for name in steps[step])
    columns = {name: np.array([steps[step].get(name, math.nan) for step in order], dtype=float) for name in names}
    return {"step": np.array(order, dtype=np.int64)} | columns


def _read_config(run: RunDirectory, path: Path, skipped: list[str]) -> dict[str, Any]:
    try:
        content = run.read_yaml(path)
    except ValueError as error:
        skipped.append(str(error))
        return {}
    return dict(dotted_leaves(content)) if isinstance(content, dict) else {}


def _read_words(run: RunDirectory, skipped: list[str]) -> tuple[str, ...]:
    try:
        content = run.read_yaml(run.overrides)
    except ValueError as error:
        skipped.append(str(error))
        return ()
    return tuple(map(str, content)) if isinstance(content, list) else ()
