"""What a run writes down: one Parquet file a step, a row a prompt group, with its fate.

    RUN/records/attempt_A/step_NNNNNN.parquet

A file is whole or not there. An attempt that resumed at step S goes on with step S + 1: what an earlier attempt wrote
from there on was undone with its weights, and ``read_records`` leaves it out. Groups still waiting when training ends
are in no file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

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
SCHEMA = pa.schema(
    [
        ("step", pa.int32()),  # the trainer step in which the group left
        ("attempt", pa.int32()),
        ("fate", pa.string()),
        ("data_source", pa.string()),
        ("index", pa.int64()),  # the prompt's dataset index, or its hash where indices are not unique
        ("size", pa.int32()),  # responses
        ("correct", pa.float64()),  # sum of the responses' accuracies
        ("total", pa.int32()),  # responses that have an accuracy, a number in [0, 1]
        ("mean", pa.float64()),  # of the rewards; null, as the next three, for a group without responses
        ("std", pa.float64()),  # population standard deviation sigma of the rewards
        ("kind", pa.string()),  # mixed | all_right | all_wrong
        ("gain", pa.float64()),  # sigma^(2 - alpha), 0 where unanimous; null where the estimator has no such gain
        ("tokens", pa.int64()),  # of all responses
        # Of HA-DW, null without it: the anchor the group met, and its factors for right and for wrong responses.
        ("hadw_anchor", pa.float64()),
        ("hadw_factor_right", pa.float64()),
        ("hadw_factor_wrong", pa.float64()),
        # Demonstrations in the group: in the place of a response, which is described here all the same, or beside them.
        ("demonstrations", pa.int32()),
        # Of DaGRPO, null where nobody judged: pairs of a better and a worse response, those the mask kept, those on
        # which the judge contradicts the verifier; judgements that failed, and the mean of the others.
        ("dagrpo_pairs", pa.int32()),
        ("dagrpo_pairs_kept", pa.int32()),
        ("dagrpo_pairs_contradicted", pa.int32()),
        ("judge_failed", pa.int32()),
        ("judge_score", pa.float64()),
        # Rollouts that a budget asked for, which is the size but for sessions that failed; null without one.
        ("asked", pa.int32()),
        # The probability that earlier visits alone gave of a unanimous group of this size; null at the first one, and
        # where the responses' accuracies are not all known.
        ("silent_predicted", pa.float64()),
        # Responses that the verifier could not verify, and took for wrong; null where it says no such thing.
        ("unverified", pa.int32()),
        # Responses that left the group because their reward failed; they count in no other column.
        ("failed_rewards", pa.int32()),
    ],
    metadata={"verl_gsd.records": str(VERSION)},
)

_ATTEMPT = re.compile(r"attempt_(\d+)")
_STEP = re.compile(r"step_(\d+)\.parquet")


@dataclass(frozen=True)
class Left:
    """A group that left the buffer, how, and what an algorithm has to say of it by the names of columns."""

    group: Group
    fate: Fate
    further: Mapping[str, float | None] = field(default_factory=dict)


def describe(left: Sequence[Left], *, step: int, attempt: int, alpha: float | None) -> pa.Table:
    """The records of one step, a row a group, in the order they left: ``SCHEMA``, and a float64 column for every other
    name that an extension gave.

    Args:
        alpha: the dial's exponent, for the gain sigma^(2 - alpha) of arXiv 2607.00152; None where the estimator is no
            operation on sigma, and the gain is null.
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
    columns = {
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
    }
    columns["demonstrations"] = [group.demonstrations for group in groups]
    columns["unverified"] = [group.unverified for group in groups]
    columns["failed_rewards"] = [group.failed_rewards for group in groups]
    schema = SCHEMA
    for name in sorted({name for entry in left for name in entry.further} - set(SCHEMA.names)):
        schema = schema.append(pa.field(name, pa.float64()))  # of an extension that this version does not know
    for name in set(schema.names) - set(columns):
        columns[name] = [entry.further.get(name) for entry in left]
    return pa.table({name: pa.array(columns[name]).cast(schema.field(name).type) for name in schema.names}, schema)


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
    run: Path | str, columns: Sequence[str] | None = None, *, on_damaged: Callable[[str], None] | None = None
) -> pa.Table:
    """All records that count of a run, in order of step, crashed and resumed runs included; none before its first step.

    Args:
        columns: names of ``SCHEMA``, all by default; the fewer, the faster.
        on_damaged: told of each file that cannot be read, which is then left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is damaged or was written by a newer version, and there is no ``on_damaged``; the message
            names it.
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such run directory")
    tables = []
    for path in _current_files(run).values():
        try:
            tables.append(_read(path, columns))
        except ValueError as error:
            if on_damaged is None:
                raise
            on_damaged(str(error))
    # Columns that an older version did not write are null.
    table = pa.concat_tables([SCHEMA.empty_table(), *tables], promote_options="default")
    return table if columns is None else table.select(columns)


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


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not readable as records: {error}") from error
    version = int((table.schema.metadata or {}).get(b"verl_gsd.records", b"0"))
    if not 1 <= version <= VERSION:
        raise ValueError(f"{path}: records of version {version}, this package reads up to {VERSION}; update it")
    return table
