"""Records of prompt groups: one Parquet file per step, one row per group that left the replay buffer in the step.

    RUN/records/attempt_A/step_NNNNNN.parquet

Files are written atomically: a file is complete or absent. An attempt that resumed from step S continues with step
S + 1. Files of earlier attempts from that step on no longer count, because their weights were discarded, and
``read_records`` leaves them out. Groups that still wait when training ends are in no file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from verl_gsd import dial
from verl_gsd.base_names import RECORD_COLUMNS
from verl_gsd.declaration import RecordColumn
from verl_gsd.extension import RecordValue, declarations
from verl_gsd.groups import Group, group_numbers, group_stats
from verl_gsd.regular_files import open_regular
from verl_gsd.rundir import RunDirectory, merge_attempts
from verl_gsd.writing import atomic_write

#: How a group left the replay buffer:
#: trained: an update used it; filtered: dynamic sampling evicted it; surplus: the batch was full;
#: stale: it was too old; failed: none of its sessions returned a usable response, or in verl's asynchronous modes at
#: least one session failed.
Fate = Literal["trained", "filtered", "surplus", "stale", "failed"]
FATES: tuple[Fate, ...] = ("trained", "filtered", "surplus", "stale", "failed")

#: Prompts with a solve rate up to HARD count as hard, those with a rate of at least EASY as easy.
HARD, EASY = 0.25, 0.75

VERSION = 8
_VERSION_KEY = "verl_gsd.records"

#: Number of missing steps that a message lists.
_LISTED = 3

_ATTEMPT = re.compile(r"attempt_(\d+)")
_STEP = re.compile(r"step_(\d+)\.parquet")


def columns() -> list[RecordColumn]:
    """All columns of the records: those of every run, then those that extensions declare, in the extensions' order."""
    return [*RECORD_COLUMNS, *(column for declared in declarations() for column in declared.record_columns)]


def schema() -> pa.Schema:
    """The Arrow schema of ``columns``."""
    fields = [(column.name, pa.type_for_alias(column.type)) for column in columns()]
    return pa.schema(fields, metadata={_VERSION_KEY: str(VERSION)})


@dataclass(frozen=True)
class LeftGroup:
    """A group that left the replay buffer.

    Attributes:
        extension_values: column -> value, for record columns of extensions.
        mass: half the sum of the absolute advantages of the group's responses; None if they are not known.
    """

    group: Group
    fate: Fate
    extension_values: Mapping[str, RecordValue] = field(default_factory=dict)
    mass: float | None = None


def step_records(
    left: Sequence[LeftGroup],
    *,
    step: int,
    attempt: int,
    alpha: float | None,
    kl_in_reward: bool = False,
    rated: Collection[str] = (),
    unrated: Collection[str] = (),
) -> pa.Table:
    """Return the records of one step, one row per group, in the order in which the groups left.

    The table has the columns of ``schema``, and a float64 column for each undeclared column that an extension returned.
    ``silent_predicted`` is null; ``trainer.metrics.with_prediction`` fills it.

    Args:
        alpha: the dial's exponent, for the gain sigma^(2 - alpha) of arXiv 2607.00152, with the floor of ``dial`` for
            alpha > 1, by the recorded rewards. None if the estimator has no such exponent; the gain is then null.
        kl_in_reward: whether verl subtracts a KL penalty from the rewards after they were recorded. Recorded rewards
            then tell neither the gain, which is null, nor whether a group is silent, which its mass tells.
        rated, unrated: data sources that have accuracies, and that have none, because of earlier steps
            (``rated_sources``).

    Raises:
        ValueError: a value does not fit its column (the message names the column and the extension), or an extension
            returned a column that every run has.
    """
    groups = [entry.group for entry in left]
    sizes = np.array([len(group.rewards) for group in groups], dtype=np.int64)
    mean, std = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    unanimous: np.ndarray = np.zeros(len(groups), dtype=bool)
    gain = np.zeros(len(groups))
    if sizes.sum():
        rewards = torch.from_numpy(np.concatenate([group.rewards for group in groups]))
        stats = group_stats(rewards, np.repeat(np.arange(len(groups)), sizes))
        for values, values_of_nonempty in ((mean, stats.mean), (std, stats.std), (unanimous, stats.unanimous)):
            values[sizes > 0] = values_of_nonempty.numpy()
        if alpha is not None and not kl_in_reward:
            trained = np.array([entry.fate == "trained" for entry in left], dtype=bool)
            scale = _reward_scale(groups, rewards, trained)
            gain[sizes > 0] = dial.gain_of_sigma(stats, alpha=alpha, scale=scale).numpy()
    rated = rated_sources(groups, rated=rated, unrated=unrated)
    accuracies = [valid_accuracies(group, rated) for group in groups]
    without_acc = [missing_accuracies(group) for group in groups]
    # A group whose verifier returned no accuracy has no partial credit. ``outside_sources`` goes by this null.
    has_none = [
        group.data_source not in rated and 0 < missing == len(group.rewards) - group.earlier
        for group, missing in zip(groups, without_acc, strict=True)
    ]
    correct = np.array([values.sum() for values in accuracies])
    total = np.array([len(values) for values in accuracies])
    empty = sizes == 0
    # Dynamic sampling may compare another value than the rewards, so the rewards of an evicted group can differ.
    has_no_gradient = np.array([entry.mass == 0 for entry in left], dtype=bool) if kl_in_reward else unanimous
    silent = has_no_gradient | np.array([entry.fate == "filtered" for entry in left], dtype=bool)
    gain[silent] = 0
    values_by_name = {
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
        "kind": [_kind(group, rated) for group in groups],
        "silent": pa.array(silent, mask=empty),
        "gain": pa.array(gain, mask=empty | (alpha is None or kl_in_reward)),
        "tokens": np.array([group.tokens.sum() for group in groups], dtype=np.int64),
        "demonstrations": [group.demonstrations for group in groups],
        "silent_predicted": pa.nulls(len(groups)),
        "unverified": [group.unverified for group in groups],
        "failed_rewards": [group.failed_rewards for group in groups],
        "distinct_answers": [group.distinct_answers for group in groups],
        "partial": pa.array(
            np.array([(values * (1 - values)).sum() for values in accuracies]), mask=np.array(has_none, dtype=bool)
        ),
        "answers": pa.array([group.answers for group in groups], pa.binary()),
        "earlier": [group.earlier for group in groups],
        "mass": [entry.mass for entry in left],
        "without_acc": without_acc,
    }
    arrays = {
        column.name: pa.array(values_by_name[column.name]).cast(pa.type_for_alias(column.type))
        for column in RECORD_COLUMNS
    }
    table = pa.table(arrays | _extension_arrays([entry.extension_values for entry in left]))
    return table.replace_schema_metadata(schema().metadata)


def _reward_scale(groups: Sequence[Group], rewards: torch.Tensor, trained: np.ndarray) -> torch.Tensor:
    """``dial.reward_scale`` of all groups' rewards (N,): (N,) float64.

    The update's scale is that of the groups that were trained on. The other groups have their own.

    Args:
        trained: (n_groups,) bool.
    """
    number: np.ndarray = np.repeat(np.arange(len(groups)), [len(group.rewards) for group in groups])
    source = group_numbers([group.data_source for group in groups], len(groups))[number]
    scale = torch.zeros(len(rewards), dtype=torch.float64)
    for of_fate in (trained[number], ~trained[number]):
        if of_fate.any():
            rows = torch.from_numpy(of_fate)
            stats = group_stats(rewards[rows], number[of_fate])
            scale[rows] = dial.reward_scale(rewards[rows], stats, source[rows])
    return scale


def _extension_arrays(values_of_groups: Sequence[Mapping[str, RecordValue]]) -> dict[str, pa.Array]:
    """Column -> array: the columns that extensions declare, then undeclared ones that they returned, sorted."""
    declared = {
        column.name: (declaration.name, column.type)
        for declaration in declarations()
        for column in declaration.record_columns
    }
    returned = sorted({name for values in values_of_groups for name in values})
    if clashes := [column.name for column in RECORD_COLUMNS if column.name in returned]:
        raise ValueError(
            f"record column {clashes[0]}: an extension returned it, but every run has a column of this name. Rename "
            "the extension's column."
        )
    arrays = {}
    for name in dict.fromkeys([*declared, *returned]):
        extension, type_name = declared.get(name, (None, "float64"))
        try:
            arrays[name] = _typed_array([values.get(name) for values in values_of_groups], pa.type_for_alias(type_name))
        except (pa.ArrowException, OverflowError) as error:
            if extension is None:
                raise ValueError(
                    f"record column {name} is not declared and therefore takes numbers: {error}. Declare it with its "
                    "type."
                ) from error
            raise ValueError(
                f"extension {extension!r}: record column {name} is declared as {type_name}: {error}. Return values of "
                "this type, or declare another type."
            ) from error
    return arrays


def _typed_array(values: Sequence[RecordValue], data_type: pa.DataType) -> pa.Array:
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    if pa.types.is_floating(data_type):
        plain = [float(value) if isinstance(value, bool) else value for value in plain]
    array = pa.array(plain, data_type)  # rejects values of other kinds, but truncates 1.5 to 1
    return pa.array(plain).cast(data_type) if pa.types.is_integer(data_type) else array


def unrated_sources(groups: Iterable[Group]) -> set[str]:
    """Return the data sources of which a response has an ``acc`` outside [0, 1]. They have no accuracies at all.

    verl sets ``acc`` to the reward if the verifier returns nothing else. With rewards 1 and -1, only the groups without
    a -1 would have accuracies, and every solve rate would be 1. The rule is therefore for a source, not for a group.
    """
    return {group.data_source for group in groups if ((group.accuracies < 0) | (group.accuracies > 1)).any()}


def rated_sources(
    groups: Iterable[Group], *, rated: Collection[str] = (), unrated: Collection[str] = ()
) -> frozenset[str]:
    """Return the data sources that have accuracies: an ``acc`` of a response is known, and none is outside [0, 1].

    A source of which no response has an ``acc``, for example with a reward model, has no accuracies.

    Args:
        groups: all groups of a step.
        rated: sources of which a response had an ``acc`` in an earlier step.
        unrated: sources of which an ``acc`` lay outside [0, 1] in an earlier step.
    """
    groups = list(groups)
    returned = {group.data_source for group in groups if not np.isnan(group.accuracies).all()}
    return frozenset({*rated, *returned} - {*unrated, *unrated_sources(groups)})


def missing_accuracies(group: Group) -> int:
    """Return the number of responses of the visit without an ``acc`` that is a number."""
    return int(np.isnan(group.accuracies).sum()) - group.earlier


def valid_accuracies(group: Group, rated: Collection[str]) -> np.ndarray:
    """Return one accuracy per response of the visit; none if the group's source is not one of ``rated``.

    A response without an ``acc`` has the accuracy 0, as in verl's validations. Reward functions often return no ``acc``
    if they find no answer. Without this rule, such responses would not count, and solve rates would be too high.

    Args:
        rated: the sources that have accuracies up to now (``rated_sources``).
    """
    if group.data_source not in rated:
        return group.accuracies[:0]
    return np.concatenate([group.accuracies[~np.isnan(group.accuracies)], np.zeros(missing_accuracies(group))])


def outside_sources(table: pa.Table) -> list[str]:
    """Return the data sources of which records show that an ``acc`` lay outside [0, 1], sorted.

    A group then has responses of its own, but ``total`` is 0. If the verifier returned no ``acc`` for any of them,
    ``total`` is 0, too, and ``partial`` is null. In files that lack ``partial`` the two look the same. They then count
    as outside, because no accuracy is better than a wrong one.

    Args:
        table: records with the columns ``data_source``, ``size``, ``earlier``, ``total`` and ``partial``.
    """
    total, partial = float_column(table, "total"), float_column(table, "partial")
    of_older_file = _is_of(table, _sources(table, np.isnan(partial) & (total > 0)))
    is_outside = (generated(table) > 0) & (total == 0) & (~np.isnan(partial) | of_older_file)
    return _sources(table, is_outside)


def with_valid_accuracies(table: pa.Table) -> pa.Table:
    """Return the records of a whole run with what only the whole run tells of its accuracies.

    A run learns what a verifier returns for a data source response by response, and earlier steps have been written by
    then. Older versions had other rules. The rules of ``rated_sources`` and ``valid_accuracies`` are applied to all
    rows:

    - If the source is one of ``outside_sources``, it has no accuracies. ``correct``, ``total`` and ``partial`` become
      0, and ``silent_predicted`` becomes null.
    - If the source has accuracies, responses without an ``acc`` count as wrong, in ``total``, ``partial`` and ``kind``.
      Files of version 6 and older do not tell them from responses of an earlier visit, and stay as they are.
    - Without accuracies, and with equal accuracies between 0 and 1 (``is_graded``), ``kind`` is ``equal`` instead of
      ``all_right`` or ``all_wrong``.
    - ``without_acc`` is filled where it is null, because an older version wrote the file.

    Args:
        table: records with ``kind`` and the columns that ``outside_sources`` needs, of all steps of the run.
    """
    own, total, partial = generated(table), float_column(table, "total"), float_column(table, "partial")
    is_outside = _is_of(table, outside_sources(table))
    is_rated = _is_of(table, _sources(table, total > 0)) & ~is_outside
    missing = np.where((total == 0) & ~np.isnan(partial), 0, own - total)
    if "without_acc" in table.column_names:
        table = _with_values(table, "without_acc", missing, np.isnan(float_column(table, "without_acc")))
    for name, value in (("correct", 0.0), ("total", 0), ("partial", 0.0), ("silent_predicted", None)):
        table = _with_values(table, name, value, is_outside)
    is_incomplete = is_rated & (total < own) & ~np.isnan(float_column(table, "earlier"))
    kind = np.where(float_column(table, "correct") > 0, "mixed", "all_wrong")
    table = _with_values(table, "kind", kind, is_incomplete)
    table = _with_values(table, "total", own, is_incomplete)
    table = _with_values(table, "partial", 0.0, is_incomplete & np.isnan(partial) & (total == 0))
    claims = pc.is_in(table["kind"], value_set=pa.array(["all_right", "all_wrong"])).to_numpy()
    return _with_values(table, "kind", "equal", claims & ((float_column(table, "total") == 0) | is_graded(table)))


def _sources(table: pa.Table, where: np.ndarray) -> list[str]:
    """The data sources of the rows ``where``, (N,) bool, sorted."""
    return sorted(pc.unique(table["data_source"].filter(pa.array(where))).drop_null().to_pylist())


def _is_of(table: pa.Table, sources: Sequence[str]) -> np.ndarray:
    """(N,) bool: whether a row is of one of ``sources``."""
    is_of: np.ndarray = pc.is_in(table["data_source"], value_set=pa.array(sources, pa.string())).to_numpy()
    return is_of


def _with_values(table: pa.Table, name: str, values: np.ndarray | float | str | None, where: np.ndarray) -> pa.Table:
    """The table with ``values``, one or (N,), in the column ``name`` of the rows ``where``, (N,) bool.

    The table stays the same if it lacks the column.
    """
    if name not in table.column_names or not where.any():
        return table
    field = table.schema.field(name)
    if values is None:
        new = pa.scalar(None, field.type)
    else:
        new = pa.array(np.broadcast_to(np.asarray(values), len(table))).cast(field.type)
    column = pc.if_else(pa.array(where), new, table[name])
    return table.set_column(table.schema.get_field_index(name), field, column)


def float_column(table: pa.Table, name: str) -> np.ndarray:
    """(N,) a column of the records as float64, null as NaN."""
    values: np.ndarray = table[name].to_numpy().astype(float)
    return values


def generated(table: pa.Table) -> np.ndarray:
    """(N,) number of responses that each group's visit generated: all but those of earlier visits."""
    return float_column(table, "size") - np.nan_to_num(float_column(table, "earlier"))


def is_graded(table: pa.Table) -> np.ndarray:
    """(N,) bool: whether a group has accuracies between 0 and 1, so that ``correct`` is no number of right responses.

    The sum alone does not tell: eight accuracies of 0.5 sum to 4. Older files lack the column ``partial``. There, a
    group counts as graded if its sum is not whole, or if all verdicts agree and the sum is neither 0 nor ``total``.

    Args:
        table: records with the columns ``partial``, ``correct``, ``total`` and ``kind``.
    """
    partial, correct = (table[name].to_numpy().astype(float) for name in ("partial", "correct"))
    agree = pc.fill_null(pc.not_equal(table["kind"], "mixed"), False).to_numpy()
    looks_graded = (correct != np.rint(correct)) | (agree & (correct > 0) & (correct < table["total"].to_numpy()))
    return np.where(np.isnan(partial), looks_graded, partial > 0)


def is_silent(records: pa.Table) -> np.ndarray:
    """(N,) bool: whether the rewards of a group give no gradient. True for a group without responses.

    This is the record column ``silent``, which describes a group's own responses, except for groups with a
    demonstration. Of these, a group has no gradient if dynamic sampling evicted it, if its ``mass`` is 0, or, where the
    mass is not known, if its responses are all right, as the demonstration is. Files of version 5 and older lack the
    column. Their ``kind`` says whether the rewards are equal.
    """
    known = records["silent"]
    if known.null_count:
        known = pc.fill_null(pc.coalesce(known, pc.not_equal(records["kind"], "mixed")), True)
    silent = known.to_numpy()
    has_demonstration = (float_column(records, "demonstrations") > 0) & (float_column(records, "size") > 0)
    differs = pc.coalesce(pc.not_equal(records["mass"], 0), pc.not_equal(records["kind"], "all_right"))
    evicted = pc.equal(records["fate"], "filtered")
    teaches = has_demonstration & pc.fill_null(differs, True).to_numpy() & ~pc.fill_null(evicted, False).to_numpy()
    return silent & ~teaches


def gradient_mass(records: pa.Table) -> np.ndarray:
    """(N,) each group's part in the gradient, up to a factor; NaN if it was not trained on, or if it is not known.

    It is the column ``mass``. Where that is null, because an older version wrote the records or the estimator is not
    the dial, it is the number of responses times the gain.

    Args:
        records: N rows of ``schema``.
    """
    mass, size, gain = (records[name].to_numpy().astype(float) for name in ("mass", "size", "gain"))  # null is NaN
    trained = pc.fill_null(pc.equal(records["fate"], "trained"), False).to_numpy()
    return np.where(trained, np.where(np.isnan(mass), size * gain, mass), np.nan)


def _kind(group: Group, rated: Collection[str]) -> str | None:
    """``mixed``, ``all_right``, ``all_wrong`` or ``equal``, by the verdicts; None for a group without responses.

    Verdicts are the accuracies of the visit (``valid_accuracies``). If the group's source has none, they are the
    verifier's values of ``acc``, whatever their range. If a response lacks one, or all are of an earlier visit, the
    verdicts are the rewards. A group is ``all_right`` if all accuracies are 1, and ``all_wrong`` if all are 0. Other
    equal verdicts are ``equal``: nothing tells whether the responses are right. A reward of 0.1 can be a bonus for the
    format of a wrong response, 0.6 can be the share of tests that each response passed, and no threshold is right for
    all reward functions and for a step in which no response is right.
    """
    if not len(group.rewards):
        return None
    accuracies = valid_accuracies(group, rated)
    own = group.accuracies[~np.isnan(group.accuracies)]
    verdicts = accuracies if len(accuracies) else own if len(own) and not missing_accuracies(group) else group.rewards
    if verdicts.min() != verdicts.max():
        return "mixed"
    if not len(accuracies):
        return "equal"
    return {1.0: "all_right", 0.0: "all_wrong"}.get(float(accuracies[0]), "equal")


def write_step(run: Path, table: pa.Table, *, step: int, attempt: int) -> Path:
    """Write one step's records below the run directory ``run``, atomically. Returns the path of the file.

    Raises:
        OSError: the disk is full, or the folder is not writable.
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
    """Read the records of a run, in order of step. Steps that a resumed attempt replaced are left out.

    The table is empty if the run has no step yet. Runs that crashed can be read.

    Args:
        columns: columns to read. Fewer columns are faster. Default: all of ``schema``, and all others in the files.
        leave_out: columns that are not read.
        on_damaged: called with a sentence about each file that cannot be read. The file is then left out.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a file is damaged or was written by a newer version, and there is no ``on_damaged``. The message
            names the file.
    """
    return RecordReader(run, columns, leave_out=leave_out).read(on_damaged)


class RecordReader:
    """Reads the records of a run repeatedly while the run writes them. Each file is read again only if it changed.

    Args:
        columns, leave_out: as for ``read_records``.
    """

    def __init__(
        self, run: Path | str, columns: Sequence[str] | None = None, *, leave_out: Collection[str] = ()
    ) -> None:
        self._run, self._columns, self._leave_out = Path(run), columns, leave_out
        # Path -> (size, time of modification) and content, as in the file.
        self._tables: dict[Path, tuple[tuple[int, int], pa.Table]] = {}

    def read(self, on_damaged: Callable[[str], None] | None = None) -> pa.Table:
        """The table of all records, as ``read_records`` returns it.

        Raises:
            FileNotFoundError, ValueError: as for ``read_records``.
        """
        if not self._run.is_dir():
            raise FileNotFoundError(f"{self._run}: no such folder. Use a run's folder (trainer.default_local_dir)")
        current_schema = schema()
        types = dict(zip(current_schema.names, current_schema.types, strict=True))
        tables, files = [], list(_current_files(self._run).values())
        self._tables = {path: self._tables[path] for path in files if path in self._tables}
        for path in files:
            try:
                table = _with_types(path, self._table(path), types)
            except ValueError as error:
                if on_damaged is None:
                    raise
                on_damaged(str(error))
            else:
                tables.append(table)
                types = dict(zip(table.schema.names, table.schema.types, strict=True)) | types
        # A column that a file lacks is null: an older version wrote the file, or the extension took no part.
        table = pa.concat_tables([current_schema.empty_table(), *tables], promote_options="default")
        return table.select([name for name in self._columns or table.schema.names if name not in self._leave_out])

    def _table(self, path: Path) -> pa.Table:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read as records: {error}") from error
        state = (stat.st_size, stat.st_mtime_ns)
        known, table = self._tables.get(path, (None, None))
        if known != state:
            table = _read(path, self._run, self._columns, self._leave_out)
            self._tables[path] = state, table
        return table


def missing_steps(run: Path | str) -> list[range]:
    """Return the steps without a file between the first and the last step that have one. Every step writes a file."""
    return gaps(_current_files(Path(run)))


def gaps(steps: Iterable[int]) -> list[range]:
    """Return the numbers between the smallest and the largest of ``steps`` that are not among them.

    They are ranges, because a file with a wrong name can leave a gap of any size.
    """
    return [range(step + 1, after) for step, after in itertools.pairwise(sorted(steps)) if after - step > 1]


def listed_steps(ranges: Sequence[range]) -> str:
    """The first few steps of ``gaps`` as text, and how many more there are: ``3, 5, 6 and 4 more``."""
    first = ", ".join(map(str, itertools.islice(itertools.chain.from_iterable(ranges), _LISTED)))
    more = sum(steps.stop - steps.start for steps in ranges) - _LISTED  # len() is limited to 2^63
    return f"{first} and {more} more" if more > 0 else first


def _current_files(run: Path) -> dict[int, Path]:
    """The files that count, by step, in order."""
    attempts = {int(match[1]): path for path in (run / "records").glob("*") if (match := _ATTEMPT.fullmatch(path.name))}
    return merge_attempts(
        [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
        for _, folder in sorted(attempts.items())
    )


def _read(path: Path, run: Path, columns: Sequence[str] | None, leave_out: Collection[str]) -> pa.Table:
    try:
        with open_regular(path, within=run) as content, pq.ParquetFile(content) as file:
            names = [name for name in columns or file.schema_arrow.names if name not in leave_out]
            table = file.read(names, use_threads=False)  # files are small, so threads would cost more than they save
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: cannot be read as records: {error}") from error
    version = int((table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"0"))
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"{path}: its records have version {version}, and this package reads versions 1 to {VERSION}. Install the "
            "version of verl-gsd that wrote them, or a newer one"
        )
    return table


def _with_types(path: Path, table: pa.Table, types: Mapping[str, pa.DataType]) -> pa.Table:
    for position, (name, written) in enumerate(zip(table.schema.names, table.schema.types, strict=True)):
        if written != (expected := types.get(name, written)):  # the extension declared another type at that time
            try:
                table = table.set_column(position, name, table[name].cast(expected))
            except pa.ArrowException as error:
                raise ValueError(f"{path}: column {name} is {written} and not {expected}: {error}") from error
    return table
