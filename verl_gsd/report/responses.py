"""Reads prompts and responses that a run stored, to show some of them.

A run's records have no texts. verl stores texts only in dumps (``solve_rates.dumps``), which can have gigabytes. The
newest ones are read up to a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.rundir import RunDirectory
from verl_gsd.solve_rates.dumps import (
    DUMP_KEYS,
    dump_rows,
    dumps_in,
    group_of_row,
    is_of_policy,
    rows_with_acc,
    session_of_uid,
)
from verl_gsd.solve_rates.tables import as_number

#: Number of bytes of dumps after which no more is read.
MOST_BYTES = 32 << 20
#: Number of the newest dumps that are read.
MOST_STEPS = 4

#: Why somebody else may have made the run, so that its config can name private files of the reader; None if not.
Distrust = Callable[[RunDirectory], str | None]


def unknown_origin(run: RunDirectory) -> str:
    """The reason if nobody has checked who made the run: texts are then read only in its folder."""
    return "it was not checked who made the run"


@dataclass(frozen=True)
class StoredGroup:
    """The responses of one visit to a prompt.

    Attributes:
        step: trainer step.
        prompt: text of the prompt, with the chat template.
        reference: reference answer; empty if there is none.
        responses: (value, text) of each response. The value is the ``acc`` of the verifier, or else the score; NaN if
            there is none.
    """

    step: int
    prompt: str
    reference: str
    responses: tuple[tuple[float, str], ...]

    @property
    def values(self) -> np.ndarray:
        """(n,) float64, of the responses that have a value."""
        return np.array([value for value, _ in self.responses if not math.isnan(value)])

    @property
    def disagreement(self) -> float:
        """Population standard deviation of the values; 0 if there are none."""
        return float(np.std(self.values)) if len(self.values) else 0.0


@dataclass(frozen=True)
class StoredGroups:
    """Groups from the newest dumps of a run.

    Attributes:
        groups: the newest step first.
        is_cut: whether there is more in the dumps of these steps than was read.
    """

    groups: tuple[StoredGroup, ...] = ()
    is_cut: bool = False


class ResponseReader:
    """Reads the stored groups of a run repeatedly while it trains. Dumps that have not changed are not read again."""

    def __init__(self, run: RunDirectory, distrust: Distrust) -> None:
        self._run, self._distrust = run, distrust
        self._states: list[tuple[Path, int, int]] | None = None
        self._stored = StoredGroups()
        self._skipped: list[str] = []

    def read(self, config: Mapping[str, Any], steps: Collection[int], skipped: list[str]) -> StoredGroups:
        """The groups of the newest of ``steps`` that have a dump.

        Args:
            config: dotted key -> value.
            steps: steps of the run. Dumps of other steps are of weights that a resume discarded.
            skipped: gets a sentence for each dump that cannot be read.
        """
        try:
            folder, within = self._folder(config, skipped)
            files = [file for file in dumps_in(folder) if int(file.stem) in steps] if folder else []
            files = files[: -MOST_STEPS - 1 : -1]  # the newest first
            states = [(file, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
        except OSError as error:
            skipped.append(f"the stored responses: {error.filename}: cannot be read: {error.strerror}")
            return StoredGroups()
        if states != self._states:
            self._skipped = []
            self._stored = _read(files, within, self._skipped)
            self._states = states
        skipped.extend(self._skipped)
        return self._stored

    def _folder(self, config: Mapping[str, Any], skipped: list[str]) -> tuple[Path | None, Path]:
        """The first folder with dumps that the config names and that may be read, and the folder that must have them.

        The first is None if there is none.
        """
        for key in DUMP_KEYS:
            value = config.get(key)
            if not isinstance(value, str) or not value:
                continue
            for folder in self._places(Path(value), config):
                if not folder.is_dir() or not dumps_in(folder):
                    continue
                if folder.resolve().is_relative_to(self._run.path.resolve()):
                    return folder, self._run.path
                if reason := self._distrust(self._run):
                    skipped.append(
                        f"the responses in {folder}: this folder is outside the run, and {reason}. It could have "
                        "private files of yours"
                    )
                    continue
                return folder, folder
        return None, self._run.path

    def _places(self, folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
        """Where the folder is: in the run, if it was there before the run was moved, or where the config says."""
        own = config.get("trainer.default_local_dir")
        if isinstance(own, str) and own and folder.is_relative_to(own):
            yield self._run.path / folder.relative_to(own)
        yield folder


def _read(files: Sequence[Path], within: Path, skipped: list[str]) -> StoredGroups:
    groups: list[StoredGroup] = []
    unread: list[str] = []
    left = MOST_BYTES
    for file in files:
        try:
            groups += _groups_of(file, within, unread, left)
        except ValueError as error:
            skipped.append(str(error))
        left -= file.stat().st_size
        if left <= 0:
            break
    return StoredGroups(tuple(groups), bool(unread))


def _groups_of(file: Path, within: Path, unread: list[str], limit: int) -> list[StoredGroup]:
    responses: dict[str | int, dict[str, tuple[float, str]]] = {}  # by group and session: its last output
    texts: dict[str | int, tuple[str, str]] = {}
    unread_here: list[str] = []
    group: str | int | None = None
    for where, row in rows_with_acc(dump_rows(file, within, unread_here.append, limit=limit)):
        uid = row.get("uid")
        session = session_of_uid(uid) if isinstance(uid, str) else where
        if session is None:
            continue
        group = group_of_row(row)
        if not is_of_policy(row):
            continue
        texts.setdefault(group, (_text(row.get("input")), _text(row.get("gts"))))
        responses.setdefault(group, {})[session] = _value(row), _text(row.get("output"))
    if unread_here and group is not None:
        responses.pop(group, None)  # more of its responses can be in what was not read
    unread += unread_here
    return [
        StoredGroup(int(file.stem), *texts[group], tuple(of_group.values())) for group, of_group in responses.items()
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _value(row: Mapping[str, Any]) -> float:
    try:
        value = as_number(row.get("acc" if "acc" in row else "score"))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
