"""What a run writes down: one Parquet file a step, a row a prompt group, with its fate.

    RUN/records/attempt_A/step_NNNNNN.parquet

A file is whole or not there. An attempt that resumed at step S goes on with step S + 1: what an earlier attempt wrote
from there on was undone with its weights, and ``read_records`` leaves it out. Groups still waiting when training ends
are in no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from verl_gsd.base_names import RECORD_COLUMNS
from verl_gsd.declaration import RecordColumn
from verl_gsd.extension import RecordValue, declarations
from verl_gsd.groups import Group, group_stats
from verl_gsd.rundir import RunDirectory, merge_attempts
from verl_gsd.writing import atomic_write

#: How a group left the replay buffer: into an update; evicted because its rewards agreed; left over when the batch was
#: full; too old; or with sessions that failed and none that could be used.
Fate = Literal["trained", "filtered", "surplus", "stale", "failed"]
FATES: tuple[Fate, ...] = ("trained", "filtered", "surplus", "stale", "failed")

#: Solve rates up to which a prompt counts as hard, and from which as easy.
HARD, EASY = 0.25, 0.75

VERSION = 5
_VERSION_KEY = "verl_gsd.records"

_ATTEMPT = re.compile(r"attempt_(\d+)")
_STEP = re.compile(r"step_(\d+)\.parquet")


def columns() -> list[RecordColumn]:
    """All columns of a record: those of every run, then those that extensions declare, in the extensions' order."""
    return [*RECORD_COLUMNS, *(column for declared in declarations() for column in declared.record_columns)]


def schema() -> pa.Schema:
    """The Arrow schema of ``columns``."""
    fields = [(column.name, pa.type_for_alias(column.type)) for column in columns()]
    return pa.schema(fields, metadata={_VERSION_KEY: str(VERSION)})


@dataclass(frozen=True)
class Left:
    """A group that left the buffer.

    Attributes:
        further: record columns of extensions, by name.
    """

    group: Group
    fate: Fate
    further: Mapping[str, RecordValue] = field(default_factory=dict)


def describe(left: Sequence[Left], *, step: int, attempt: int, alpha: float | None) -> pa.Table:
    """The records of one step, one row per group, in the order in which the groups left.

    The table has the columns of ``schema``, and a float64 column for every further name that an extension returned.
    ``silent_predicted`` is null: ``trainer.metrics.with_prediction`` fills it.

    Args:
        alpha: the dial's exponent, for the gain sigma^(2 - alpha) of arXiv 2607.00152; None where the estimator is no
            operation on sigma, and the gain is null.

    Raises:
        ValueError: a value does not fit its column (naming column and extension), or an extension returned a column
            that every run has.
    """
    groups = [entry.group for entry in left]
    sizes = np.array([len(group.rewards) for group in groups], dtype=np.int64)
    mean, std = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    unanimous: np.ndarray = np.zeros(len(groups), dtype=bool)
    if sizes.sum():
        rewards = torch.from_numpy(np.concatenate([group.rewards for group in groups]))
        stats = group_stats(rewards, np.repeat(np.arange(len(groups)), sizes))
        for figure, found in ((mean, stats.mean), (std, stats.std), (unanimous, stats.unanimous)):
            figure[sizes > 0] = found.numpy()
    accuracies = [_accuracies(group) for group in groups]
    correct = np.array([values.sum() for values in accuracies])
    total = np.array([len(values) for values in accuracies])
    # Unanimous without an accuracy: a reward above zero is what a verifier gives a right answer.
    right = np.where(total > 0, 2 * correct > total, mean > 0)
    kind = np.where(unanimous, np.where(right, "all_right", "all_wrong"), "mixed")
    empty = sizes == 0
    gain = np.zeros(len(groups))
    mixed = ~empty & ~unanimous
    if alpha is not None:
        gain[mixed] = std[mixed] ** (2 - alpha)
    of_groups = {
        "step": np.full(len(groups), step),
        "attempt": np.full(len(groups), attempt),
        "fate": [entry.fate for entry in left],
        "data_source": [group.data_source for group in groups],
        "index": [group.index for group in groups],
        "size": sizes,
        "correct": correct,
        "total": total,
        "mean": pa.array(mean, mask=empty),
        "std": pa.array(std, mask=empty),
        "kind": pa.array(kind.astype(object), pa.string(), mask=empty),
        "gain": pa.array(gain, mask=empty | (alpha is None)),
        "tokens": np.array([group.tokens.sum() for group in groups], dtype=np.int64),
        "demonstrations": [group.demonstrations for group in groups],
        "silent_predicted": pa.nulls(len(groups)),
        "unverified": [group.unverified for group in groups],
        "failed_rewards": [group.failed_rewards for group in groups],
    }
    arrays = {of.name: pa.array(of_groups[of.name]).cast(pa.type_for_alias(of.type)) for of in RECORD_COLUMNS}
    table = pa.table(arrays | _of_extensions([entry.further for entry in left]))
    return table.replace_schema_metadata(schema().metadata)


def _of_extensions(further: Sequence[Mapping[str, RecordValue]]) -> dict[str, pa.Array]:
    """The columns that extensions declare, then others that they returned, by name."""
    declared = {column.name: (of.name, column.type) for of in declarations() for column in of.record_columns}
    returned = sorted({name for values in further for name in values})
    if own := [column.name for column in RECORD_COLUMNS if column.name in returned]:
        raise ValueError(f"record column {own[0]}: every run has it, and an extension returned it. Rename its column.")
    arrays = {}
    for name in dict.fromkeys([*declared, *returned]):
        extension, kind = declared.get(name, (None, "float64"))
        try:
            arrays[name] = _typed([values.get(name) for values in further], pa.type_for_alias(kind))
        except (pa.ArrowException, OverflowError) as error:
            if extension is None:
                raise ValueError(f"record column {name} takes numbers: {error}. Declare it with its type.") from error
            raise ValueError(
                f"extension {extension!r}: record column {name} is declared as {kind}: {error}. Return such values, or "
                "declare another type."
            ) from error
    return arrays


def _typed(values: Sequence[RecordValue], kind: pa.DataType) -> pa.Array:
    array = pa.array(values, kind)  # rejects values of other kinds, but cuts 1.5 to 1
    return pa.array(values).cast(kind) if pa.types.is_integer(kind) else array


def _accuracies(group: Group) -> np.ndarray:
    """Those of a group's responses that have one. None has where one lies outside [0, 1]: verl fills ``acc`` with the
    reward where a verifier returns nothing else, and of rewards 1 and -1 the ones alone would look like all right."""
    known = group.accuracies[~np.isnan(group.accuracies)]
    return known if ((known >= 0) & (known <= 1)).all() else known[:0]


def write_step(run: Path, table: pa.Table, *, step: int, attempt: int) -> Path:
    """Write one step's records below the run directory ``run``, whole or not at all; returns the file.

    Raises:
        OSError: there is no room, or no right to write.
    """
    path = RunDirectory(run).records(attempt) / f"step_{step:06d}.parquet"
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_records(
    run: Path | str,
    columns: Sequence[str] | None = None,
    *,
    leave_out: Collection[str] = (),
    on_damaged: Callable[[str], None] | None = None,
) -> pa.Table:
    """All records that count of a run, in order of step, crashed and resumed runs included; none before its first step.

    Args:
        columns: which to read; the fewer, the faster. By default all of ``schema`` and all others in the files.
        leave_out: columns that are not read.
        on_damaged: called with a sentence about each file that cannot be read. The file is then left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is damaged or was written by a newer version, and there is no ``on_damaged``; the message
            names it.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run directory")
    full = schema()
    types = dict(zip(full.names, full.types, strict=True))
    tables = []
    for path in _current_files(run).values():
        try:
            table = _read(path, columns, leave_out, types)
        except ValueError as error:
            if on_damaged is None:
                raise
            on_damaged(str(error))
        else:
            tables.append(table)
            types = dict(zip(table.schema.names, table.schema.types, strict=True)) | types
    # Columns that an older version or a run without the extension did not write are null.
    table = pa.concat_tables([full.empty_table(), *tables], promote_options="default")
    return table.select([name for name in columns or table.schema.names if name not in leave_out])


def steps_missing(run: Path | str) -> list[int]:
    """Steps between the first and the last recorded that have no file; every step trains, and writes one."""
    steps = _current_files(Path(run))
    return sorted(set(range(min(steps, default=0), max(steps, default=0))) - set(steps))


def _current_files(run: Path) -> dict[int, Path]:
    """The files that count, by step, in order."""
    attempts = {int(match[1]): path for path in (run / "records").glob("*") if (match := _ATTEMPT.fullmatch(path.name))}
    return merge_attempts(
        [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
        for _, folder in sorted(attempts.items())
    )


def _read(
    path: Path, columns: Sequence[str] | None, leave_out: Collection[str], types: Mapping[str, pa.DataType]
) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read([name for name in columns or file.schema_arrow.names if name not in leave_out])
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not readable as records: {error}") from error
    version = int((table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"0"))
    if not 1 <= version <= VERSION:
        raise ValueError(f"{path}: records of version {version}, this package reads up to {VERSION}; update it")
    for place, (name, kind) in enumerate(zip(table.schema.names, table.schema.types, strict=True)):
        if kind != (expected := types.get(name, kind)):  # its extension declared another type when it was written
            try:
                table = table.set_column(place, name, table[name].cast(expected))
            except pa.ArrowException as error:
                raise ValueError(f"{path}: column {name} is {kind} and not {expected}: {error}") from error
    return table
