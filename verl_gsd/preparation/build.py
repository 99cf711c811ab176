"""Builds the Parquet file of one split, in verl's columns and in chunks, so that an interrupted build can resume.

    DATA/NAME/.building_SPLIT/settings.json     what the chunks depend on; chunks of other settings are deleted
    DATA/NAME/.building_SPLIT/chunk_00000.parquet   the kept rows of CHUNK_ROWS source rows; metadata lists the others
    DATA/NAME/SPLIT.parquet                     all chunks together, made after the last chunk

Chunks and the file are written atomically. Memory holds one chunk, and per distinct problem a
short hash and the answer.
Only unusable rows are left out of the test split of a named data set, because published scores are means over all of
its rows. Of a user's table, rows whose reference is not one answer are left out of the test split too.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.preparation.chats import ChatTemplate
from verl_gsd.preparation.item import Item, file_schema, verl_row
from verl_gsd.preparation.overlap import OverlapIndex
from verl_gsd.preparation.references import Fault, reference_fault
from verl_gsd.preparation.sources import MATHS, Row, Source
from verl_gsd.tasks import maths
from verl_gsd.tasks.plain import canonical
from verl_gsd.writing import atomic_write

#: Source rows per chunk.
CHUNK_ROWS = 5000
#: Pairs of answers of one split that the verifier compares. A pair takes some 0.1 s, and 4 s at most.
MAX_COMPARISONS = 2000

#: Why a row is left out. The checks run in this order:
#: unusable (no problem or no answer), the faults of a reference (``references.py``), duplicate (an earlier row has the
#: same problem and an equal answer), conflicting (another row has the same problem with an answer that the verifier
#: finds different), contaminated (an evaluation set has the problem), too_long (the prompt has too many tokens).
Reason = Literal["duplicate", "conflicting", "contaminated", "too_long", "unusable"] | Fault

_KEY, _ANSWER, _ROW, _TOKENS = "_key", "_answer", "_row", "_tokens"
_METADATA = b"verl_gsd.preparation"
#: Characters of a faulty reference that the list of rows left out has.
_SHOWN_CHARACTERS = 80
#: The detail of a conflicting row whose answers were not compared.
_NOT_COMPARED = "not compared by the verifier"


@dataclass(frozen=True)
class FilterRules:
    """Which rows of a split are kept.

    Attributes:
        data_source: the value of the rows' ``data_source`` column.
        overlap: evaluation problems that are left out of training; None if there are none.
        template: the model's chat template; None skips the checks of the template and of prompt lengths.
        max_prompt_tokens: the longest prompt that is kept; None for no limit.
        skip_unusable: leave out a row without a problem or an answer instead of raising an error.
        reserved_indices: indices that the data set's other split uses, if the source has indices.
        check_references: leave out rows whose reference is not one answer (``references.py``).
    """

    data_source: str
    overlap: OverlapIndex | None = None
    template: ChatTemplate | None = None
    max_prompt_tokens: int | None = None
    skip_unusable: bool = False
    reserved_indices: Collection[int] = ()
    check_references: bool = False


@dataclass
class SplitCounts:
    """How many rows of a split were read, kept, and left out per reason; contaminated rows also per evaluation set.

    ``not_compared`` is the number of conflicting rows whose answers the verifier did not compare, because it had
    compared ``MAX_COMPARISONS`` pairs before.
    ``prompt_tokens`` has the median, the 99th percentile (``p99``) and the maximum (``longest``) of the kept prompts'
    lengths in tokens, with the chat template. It is empty without a template.
    """

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    by_set: Counter[str] = field(default_factory=Counter)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    not_compared: int = 0


@dataclass
class _Chunk:
    """The outcome of reading up to ``CHUNK_ROWS`` source rows.

    Attributes:
        read: the number of source rows.
        rows: the kept rows.
        left_out: (row number, reason, detail) of the other rows; duplicates are only counted.
        duplicates: the number of duplicates.
        left_out_keys: (key in hexadecimal, answer) of problems that are left out and may occur again.
        conflicting_keys: keys of problems with two answers.
        comparisons: the number of pairs of answers that the verifier compared.
        indices: (index, row number) if the source has indices of its own.
        first_by_box: the first row whose answer is boxed, and the first whose answer is bare. Only for sources that
            report this.
    """

    read: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[int, str, str]] = field(default_factory=list)
    duplicates: int = 0
    left_out_keys: list[tuple[str, str]] = field(default_factory=list)
    conflicting_keys: list[str] = field(default_factory=list)
    comparisons: int = 0
    indices: list[tuple[int, int]] = field(default_factory=list)
    first_by_box: dict[str, int] = field(default_factory=dict)


class SplitBuilder:
    """Builds the Parquet file of one split.

    Args:
        folder: DATA/NAME.
        settings: everything the rows depend on, as JSON. Chunks made with other settings are deleted.
        row_label: names a row in a message, given its number.
        first_index: the index of row 0, if the source has no indices. A row's index depends on its number alone, so it
            does not change if rows before it are left out.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        rules: FilterRules,
        folder: Path,
        settings: Mapping[str, Any],
        row_label: Callable[[int], str],
        first_index: int = 0,
    ) -> None:
        self._source, self._split, self._rules = source, split, rules
        self._row_label, self._first_index = row_label, first_index
        self._schema = file_schema(source.has_demonstrations, source.extra_columns, source.level_column is not None)
        self._settings = json.dumps({"chunk": CHUNK_ROWS, "first_index": first_index, **settings}, sort_keys=True)
        self._building = folder / f".building_{split}"
        self._file = folder / f"{split}.parquet"
        self._answer_by_problem: dict[bytes, str] = {}
        self._conflicting: set[bytes] = set()
        self._comparisons = 0
        self._row_by_index: dict[int, int] = {}  # the source's own indices

    def build(self, rows: Callable[[int], Iterator[Row]], on_chunk: Callable[[int, int], None]) -> Path:
        """Read the rows that no chunk has yet.

        Args:
            rows: returns the source's rows from a row number on.
            on_chunk: called with the numbers of rows read and kept so far.

        Returns:
            The split's file, still in the folder of chunks.

        Raises:
            ValueError: a row cannot be used; the message names it.
            OSError: the disk is full or not writable.
        """
        finished = self._load_finished_chunks()
        read, kept = sum(chunk["read"] for chunk in finished), sum(chunk["kept"] for chunk in finished)
        on_chunk(read, kept)
        has_more = not finished or finished[-1]["read"] == CHUNK_ROWS
        numbered = enumerate(rows(read), start=read) if has_more else iter(())
        for number in itertools.count(len(finished)):
            chunk = self._read_chunk(itertools.islice(numbered, CHUNK_ROWS))
            if chunk.read == 0:
                break
            self._write_chunk(number, chunk)
            read, kept = read + chunk.read, kept + len(chunk.rows)
            on_chunk(read, kept)
            if chunk.read < CHUNK_ROWS:
                break
        self._check_boxes_consistent()
        return self._assemble()

    def counts(self) -> SplitCounts:
        """The totals over all chunks on disk."""
        counts, metadata_by_chunk = SplitCounts(), [_read_metadata(path) for path in self._chunk_files()]
        conflicting = {key for metadata in metadata_by_chunk for key in metadata["conflicting"]}
        lengths: list[int] = []
        for path, metadata in zip(self._chunk_files(), metadata_by_chunk, strict=True):
            table = pq.read_table(path, columns=[_KEY, _TOKENS])
            keys, tokens = (table.column(name).to_pylist() for name in (_KEY, _TOKENS))
            dropped = sum(key.hex() in conflicting for key in keys)
            lengths += [
                n for key, n in zip(keys, tokens, strict=True) if n is not None and key.hex() not in conflicting
            ]
            counts.read += metadata["read"]
            counts.kept += len(keys) - dropped
            counts.left_out["duplicate"] += metadata["duplicates"]
            counts.left_out["conflicting"] += dropped
            counts.left_out.update(reason for _, reason, _ in metadata["others"])
            counts.by_set.update(detail for _, reason, detail in metadata["others"] if reason == "contaminated")
            counts.not_compared += sum(detail == _NOT_COMPARED for _, _, detail in metadata["others"])
        if lengths:
            median, p99, longest = (math.ceil(np.quantile(lengths, share)) for share in (0.5, 0.99, 1))
            counts.prompt_tokens = {"median": median, "p99": p99, "longest": longest}
        return counts

    def left_out_rows(self) -> Iterator[dict[str, Any]]:
        """The number, reason and detail of every row that is left out, except duplicates."""
        conflicting = {key for path in self._chunk_files() for key in _read_metadata(path)["conflicting"]}
        for path in self._chunk_files():
            table = pq.read_table(path, columns=[_KEY, _ROW])
            kept = zip(*(table.column(name).to_pylist() for name in (_KEY, _ROW)), strict=True)
            first_occurrences = [(row, "conflicting", "") for key, row in kept if key.hex() in conflicting]
            for row, reason, detail in sorted([*first_occurrences, *map(tuple, _read_metadata(path)["others"])]):
                yield {"row": row, "reason": reason, "detail": detail}

    def discard(self) -> None:
        """Delete the chunks."""
        shutil.rmtree(self._building, ignore_errors=True)

    def _load_finished_chunks(self) -> list[dict[str, Any]]:
        """Restore the problems and indices that an interrupted build has seen, and return its chunks' metadata."""
        settings_file = self._building / "settings.json"
        if not settings_file.is_file() or settings_file.read_text(encoding="utf-8") != self._settings:
            self.discard()
            self._building.mkdir(parents=True)
            settings_file.write_text(self._settings, encoding="utf-8")
        metadata_by_chunk = []
        for path in self._chunk_files():
            metadata, table = _read_metadata(path), pq.read_table(path, columns=[_KEY, _ANSWER])
            kept = zip(table.column(_KEY).to_pylist(), table.column(_ANSWER).to_pylist(), strict=True)
            self._answer_by_problem.update(kept)
            self._answer_by_problem.update((bytes.fromhex(key), answer) for key, answer in metadata["known"])
            self._conflicting.update(map(bytes.fromhex, metadata["conflicting"]))
            self._comparisons += metadata["comparisons"]
            self._row_by_index.update(metadata["indices"])
            metadata_by_chunk.append(metadata | {"kept": len(table)})
        return metadata_by_chunk

    def _chunk_files(self) -> list[Path]:
        paths = sorted(self._building.glob("chunk_*.parquet"))
        if [path.name for path in paths] != [f"chunk_{number:05d}.parquet" for number in range(len(paths))]:
            raise ValueError(f"{self._building}: a chunk is missing. Remove this folder and run the same command again")
        return paths

    def _read_chunk(self, numbered: Iterator[tuple[int, Row]]) -> _Chunk:
        chunk = _Chunk()
        for number, row in numbered:
            chunk.read += 1
            try:
                item = self._source.read(row)
                item.check_encodable()
            except ValueError as error:
                if not self._rules.skip_unusable:
                    raise ValueError(f"{self._row_label(number)}, {error}") from error
                chunk.left_out.append((number, "unusable", str(error)))
                continue
            self._add_item(number, item, chunk)
        return chunk

    def _add_item(self, number: int, item: Item, chunk: _Chunk) -> None:
        """Add an item to the chunk's kept rows, or to those left out."""
        if self._rules.check_references and (fault := reference_fault(item.answer)):
            chunk.left_out.append((number, fault, item.answer[:_SHOWN_CHARACTERS]))
            return
        index = self._first_index + number
        if item.index is not None:
            index = item.index
            self._claim_index(index, number)
            chunk.indices.append((index, number))
        if item.boxed is not None:
            chunk.first_by_box.setdefault("boxed" if item.boxed else "bare", number)
        # Two summaries of a post do not conflict: only a verified answer has one right value.
        key, answer = item.key(), item.answer if self._source.verifier else ""
        if self._split != "test":
            if (earlier_answer := self._answer_by_problem.get(key)) is not None:
                self._add_repeated(number, key, earlier_answer, answer, chunk)
                return
            self._answer_by_problem[key] = answer
            if self._rules.overlap and (evaluation_set := self._rules.overlap.find(item.asked())):
                chunk.left_out.append((number, "contaminated", evaluation_set))
                chunk.left_out_keys.append((key.hex(), answer))
                return
        row = verl_row(
            item,
            data_source=self._rules.data_source,
            index=index,
            split=self._split,
            suffix=self._source.suffix,
            style="rule" if self._source.verifier else "model",
        )
        tokens = None
        if self._rules.template is not None:
            tokens, limit = len(self._rules.template.tokens(row["prompt"])), self._rules.max_prompt_tokens
            if limit is not None and tokens > limit and self._split != "test":
                chunk.left_out.append((number, "too_long", f"{tokens} tokens"))
                chunk.left_out_keys.append((key.hex(), answer))
                return
        chunk.rows.append(row | {_KEY: key, _ANSWER: answer, _ROW: number, _TOKENS: tokens})

    def _add_repeated(self, number: int, key: bytes, earlier_answer: str, answer: str, chunk: _Chunk) -> None:
        """Leave out a row whose problem an earlier row has: as a duplicate, or as conflicting if the answers differ."""
        detail = ""
        if _comparable(earlier_answer) == _comparable(answer):
            chunk.duplicates += 1
            return
        if key not in self._conflicting and self._source.verifier == MATHS:
            if self._comparisons < MAX_COMPARISONS:
                self._comparisons += 1
                chunk.comparisons += 1
                if _verifier_accepts(earlier_answer, answer) or _verifier_accepts(answer, earlier_answer):
                    chunk.duplicates += 1
                    return
            else:
                detail = _NOT_COMPARED
        self._conflicting.add(key)
        chunk.conflicting_keys.append(key.hex())
        chunk.left_out.append((number, "conflicting", detail))

    def _claim_index(self, index: int, number: int) -> None:
        """Reserve one of the source's own indices for a row; no other row may have it."""
        if self._row_by_index.setdefault(index, number) != number:
            raise ValueError(
                f"{self._row_label(number)}: index {index} is also used by row {self._row_by_index[index]}. "
                "Give each row an index of its own"
            )
        if index in self._rules.reserved_indices:
            raise ValueError(
                f"{self._row_label(number)}: index {index} is also used in the data set's other split. "
                "Give each row of both splits an index of its own"
            )

    def _check_boxes_consistent(self) -> None:
        """In a column of solutions, one without a box would become an answer that no response can equal."""
        first_by_box: dict[str, int] = {}
        for path in self._chunk_files():
            for kind, row in _read_metadata(path)["boxes"].items():
                first_by_box.setdefault(kind, row)
        if len(first_by_box) == 2:
            raise ValueError(
                f"{self._row_label(first_by_box['bare'])}: the answer is not in a \\boxed{{}}, but that of row "
                f"{first_by_box['boxed']} is. Use \\boxed{{}} in all rows or in none"
            )

    def _write_chunk(self, number: int, chunk: _Chunk) -> None:
        metadata = {
            "read": chunk.read,
            "duplicates": chunk.duplicates,
            "conflicting": chunk.conflicting_keys,
            "comparisons": chunk.comparisons,
            "others": chunk.left_out,
            "known": chunk.left_out_keys,
            "indices": chunk.indices,
            "boxes": chunk.first_by_box,
        }
        kinds = {_KEY: pa.binary(16), _ANSWER: pa.string(), _ROW: pa.int64(), _TOKENS: pa.int64()}
        bookkeeping = [pa.field(name, kind) for name, kind in kinds.items()]
        columns = pa.schema([*self._schema, *bookkeeping], metadata={_METADATA: json.dumps(metadata)})
        path = self._building / f"chunk_{number:05d}.parquet"
        with atomic_write(path) as building:
            pq.write_table(pa.Table.from_pylist(chunk.rows, columns), building, compression="zstd")

    def _assemble(self) -> Path:
        conflicting = {key for path in self._chunk_files() for key in _read_metadata(path)["conflicting"]}
        assembled = self._building / self._file.name
        with pq.ParquetWriter(assembled, self._schema, compression="zstd") as writer:
            for path in self._chunk_files():
                table = pq.read_table(path)
                keep = [key.hex() not in conflicting for key in table.column(_KEY).to_pylist()]
                writer.write_table(
                    table.filter(pa.array(keep, pa.bool_())).select(self._schema.names).cast(self._schema)
                )
        return assembled


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        return json.loads((pq.read_schema(path).metadata or {})[_METADATA])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: the file is damaged ({error!r:.200}). Remove {path.parent} and run the same command again"
        ) from error


def _comparable(answer: str) -> str:
    """Equal texts for answers that are equal without the verifier: numbers in other notation, and other white space."""
    return "".join(canonical(unicodedata.normalize("NFC", answer)).split())


def _verifier_accepts(answer: str, reference: str) -> bool:
    """Whether a response with ``answer`` counts as right if the reference is ``reference``."""
    return maths.compute_score("", rf"\boxed{{{answer}}}", reference)["acc"] == 1.0
