"""From rows to a Parquet file of verl's columns, in chunks: what was interrupted goes on with the chunk it was in.

    DATA/NAME/.building_SPLIT/settings.json     what the chunks are made from; others are thrown away
    DATA/NAME/.building_SPLIT/chunk_00000.parquet   of CHUNK rows those kept, and in its metadata what was left out
    DATA/NAME/SPLIT.parquet                     all of them, made when the last chunk is there

A chunk is whole or not there, and so is the file. Memory holds one chunk, and two short hashes a distinct problem.
Of a test split nothing is left out but what is unusable: published figures are means over all of it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.preparation.chats import Template
from verl_gsd.preparation.item import Item, schema, verl_row
from verl_gsd.preparation.overlap import Overlap
from verl_gsd.preparation.sources import Row, Source
from verl_gsd.tasks.plain import canonical
from verl_gsd.writing import atomic_write

#: Rows read between two chunks.
CHUNK = 5000

#: Why a row is left out, in the order in which it is asked: it has no problem or no answer; the same problem with the
#: same answer came before; it came with another one, wherever it stands; an evaluation set has it; its prompt has too
#: many tokens.
Reason = Literal["duplicate", "conflicting", "contaminated", "too_long", "unusable"]

_KEY, _ANSWER, _ROW = "_key", "_answer", "_row"
_META = b"verl_gsd.preparation"


@dataclass(frozen=True)
class Rules:
    """What is kept.

    Attributes:
        data_source: the name that rows bear.
        overlap: evaluation sets whose problems are left out; None where nothing is.
        template: the model's, whose prompts may have ``longest`` tokens; None leaves both unchecked.
        skip_unusable: leave a row without a problem or an answer out, rather than raise.
        taken: indices of the data set's other split, where the source gives them.
    """

    data_source: str
    overlap: Overlap | None = None
    template: Template | None = None
    longest: int | None = None
    skip_unusable: bool = False
    taken: Collection[int] = ()


@dataclass
class Counts:
    """Of one split: rows read, rows kept, and those left out by reason; contaminated ones by evaluation set, too."""

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    by_set: Counter[str] = field(default_factory=Counter)


@dataclass
class _Chunk:
    """Of ``read`` rows those kept, and the others: [row number, reason, detail], duplicates only counted.

    Attributes:
        known: [key, answer] of problems that are left out, as hexadecimal digits: they may come again.
        conflicting: keys of problems with two answers.
        indices: [index, row] of the source's own.
        boxes: the first row whose answer is in a box, and the first whose is not, of a table where that is asked.
    """

    read: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    others: list[tuple[int, str, str]] = field(default_factory=list)
    duplicates: int = 0
    known: list[tuple[str, str]] = field(default_factory=list)
    conflicting: list[str] = field(default_factory=list)
    indices: list[tuple[int, int]] = field(default_factory=list)
    boxes: dict[str, int] = field(default_factory=dict)


class SplitBuilder:
    """Makes one split's file.

    Args:
        folder: DATA/NAME.
        settings: what the rows depend on, as JSON can have it; chunks of other settings are thrown away.
        name_of: names a row in a message, by its number.
        first_index: the index of row 0, where the source gives none; a row keeps its number's whatever is left out
            before it.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        rules: Rules,
        folder: Path,
        settings: Mapping[str, Any],
        name_of: Callable[[int], str],
        first_index: int = 0,
    ) -> None:
        self._source, self._split, self._rules = source, split, rules
        self._name_of, self._first = name_of, first_index
        self._schema = schema(source.has_demonstrations, source.further)
        self._settings = json.dumps({"chunk": CHUNK, "first_index": first_index, **settings}, sort_keys=True)
        self._building = folder / f".building_{split}"
        self._file = folder / f"{split}.parquet"
        self._answers: dict[bytes, bytes] = {}  # by problem
        self._indices: dict[int, int] = {}  # the source's own -> row

    def build(self, rows: Callable[[int], Iterator[Row]], on_chunk: Callable[[int, int], None]) -> Path:
        """Read what is not read yet; the file, not yet in its place.

        Args:
            rows: the source's rows from a number on.
            on_chunk: told rows read and rows kept so far.

        Raises:
            ValueError: a row cannot be used; the message names it.
            OSError: there is no room, or no right to write.
        """
        done = self._resumed()
        read, kept = sum(chunk["read"] for chunk in done), sum(chunk["kept"] for chunk in done)
        on_chunk(read, kept)
        numbered = enumerate(rows(read), start=read) if not done or done[-1]["read"] == CHUNK else iter(())
        for number in itertools.count(len(done)):
            chunk = self._chunk(itertools.islice(numbered, CHUNK))
            if chunk.read == 0:
                break
            self._write(number, chunk)
            read, kept = read + chunk.read, kept + len(chunk.rows)
            on_chunk(read, kept)
            if chunk.read < CHUNK:
                break
        self._require_boxes_alike()
        return self._assemble()

    def counts(self) -> Counts:
        """Of the chunks that are there."""
        counts, metas = Counts(), [_meta(path) for path in self._chunks()]
        conflicting = {key for meta in metas for key in meta["conflicting"]}
        for path, meta in zip(self._chunks(), metas, strict=True):
            keys = pq.read_table(path, columns=[_KEY]).column(0).to_pylist()
            dropped = sum(key.hex() in conflicting for key in keys)
            counts.read += meta["read"]
            counts.kept += len(keys) - dropped
            counts.left_out["duplicate"] += meta["duplicates"]
            counts.left_out["conflicting"] += dropped
            counts.left_out.update(reason for _, reason, _ in meta["others"])
            counts.by_set.update(detail for _, reason, detail in meta["others"] if reason == "contaminated")
        return counts

    def others(self) -> Iterator[dict[str, Any]]:
        """Every row left out but duplicates: its number, reason, and detail."""
        conflicting = {key for path in self._chunks() for key in _meta(path)["conflicting"]}
        for path in self._chunks():
            table = pq.read_table(path, columns=[_KEY, _ROW])
            kept = zip(*(table.column(name).to_pylist() for name in (_KEY, _ROW)), strict=True)
            first = [(row, "conflicting", "") for key, row in kept if key.hex() in conflicting]
            for row, reason, detail in sorted([*first, *map(tuple, _meta(path)["others"])]):
                yield {"row": row, "reason": reason, "detail": detail}

    def discard(self) -> None:
        """Throw the chunks away."""
        shutil.rmtree(self._building, ignore_errors=True)

    def _resumed(self) -> list[dict[str, Any]]:
        made = self._building / "settings.json"
        if not made.is_file() or made.read_text(encoding="utf-8") != self._settings:
            self.discard()
            self._building.mkdir(parents=True)
            made.write_text(self._settings, encoding="utf-8")
        metas = []
        for path in self._chunks():
            meta, table = _meta(path), pq.read_table(path, columns=[_KEY, _ANSWER])
            self._answers.update(zip(table.column(_KEY).to_pylist(), table.column(_ANSWER).to_pylist(), strict=True))
            self._answers.update((bytes.fromhex(key), bytes.fromhex(answer)) for key, answer in meta["known"])
            self._indices.update(meta["indices"])
            metas.append(meta | {"kept": len(table)})
        return metas

    def _chunks(self) -> list[Path]:
        found = sorted(self._building.glob("chunk_*.parquet"))
        if [path.name for path in found] != [f"chunk_{number:05d}.parquet" for number in range(len(found))]:
            raise ValueError(f"{self._building}: a chunk is missing. Remove that folder and run the same line")
        return found

    def _chunk(self, numbered: Iterator[tuple[int, Row]]) -> _Chunk:
        chunk = _Chunk()
        for number, row in numbered:
            chunk.read += 1
            try:
                item = self._source.read(row)
                item.require_writable()
            except ValueError as error:
                if not self._rules.skip_unusable:
                    raise ValueError(f"{self._name_of(number)}, {error}") from error
                chunk.others.append((number, "unusable", str(error)))
                continue
            self._sort(number, item, chunk)
        return chunk

    def _sort(self, number: int, item: Item, chunk: _Chunk) -> None:
        """Put one item where it belongs."""
        index = self._first + number
        if item.index is not None:
            index = item.index
            self._take(index, number)
            chunk.indices.append((index, number))
        if item.boxed is not None:
            chunk.boxes.setdefault("boxed" if item.boxed else "bare", number)
        key, answer = item.key(), _digest(canonical(item.answer))
        if self._split != "test":
            before = self._answers.get(key)
            # Two summaries of a post are no contradiction: only where answers are verified there is one right answer.
            if before == answer or (before is not None and self._source.verifier is None):
                chunk.duplicates += 1
                return
            if before is not None:
                chunk.conflicting.append(key.hex())
                chunk.others.append((number, "conflicting", ""))
                return
            self._answers[key] = answer
            if self._rules.overlap and (found := self._rules.overlap.find(item.problem)):
                chunk.others.append((number, "contaminated", found))
                chunk.known.append((key.hex(), answer.hex()))
                return
        style = "rule" if self._source.verifier else "model"
        made = verl_row(
            item,
            data_source=self._rules.data_source,
            index=index,
            split=self._split,
            suffix=self._source.suffix,
            style=style,
        )
        if self._rules.template is not None:
            tokens = len(self._rules.template.tokens(made["prompt"]))
            if self._rules.longest is not None and tokens > self._rules.longest and self._split != "test":
                chunk.others.append((number, "too_long", f"{tokens} tokens"))
                chunk.known.append((key.hex(), answer.hex()))
                return
        chunk.rows.append(made | {_KEY: key, _ANSWER: answer, _ROW: number})

    def _take(self, index: int, number: int) -> None:
        """An index of the source's own, which no other row may have."""
        if self._indices.setdefault(index, number) != number:
            raise ValueError(
                f"{self._name_of(number)}: index {index} is row {self._indices[index]}'s, too. Give each row its own"
            )
        if index in self._rules.taken:
            raise ValueError(
                f"{self._name_of(number)}: index {index} is in the other split, too. Give each row of both its own"
            )

    def _require_boxes_alike(self) -> None:
        """Of a column of solutions one without a box would become an answer that no response equals."""
        first: dict[str, int] = {}
        for path in self._chunks():
            for kind, row in _meta(path)["boxes"].items():
                first.setdefault(kind, row)
        if len(first) == 2:
            raise ValueError(
                f"{self._name_of(first['bare'])}: its answer is in no \\boxed{{}}, and row {first['boxed']}'s is. "
                "Write all answers alone, or all within one"
            )

    def _write(self, number: int, chunk: _Chunk) -> None:
        described = {
            "read": chunk.read,
            "duplicates": chunk.duplicates,
            "conflicting": chunk.conflicting,
            "others": chunk.others,
            "known": chunk.known,
            "indices": chunk.indices,
            "boxes": chunk.boxes,
        }
        helping = [pa.field(_KEY, pa.binary(16)), pa.field(_ANSWER, pa.binary(8)), pa.field(_ROW, pa.int64())]
        columns = pa.schema([*self._schema, *helping], metadata={_META: json.dumps(described)})
        path = self._building / f"chunk_{number:05d}.parquet"
        with atomic_write(path) as building:
            pq.write_table(pa.Table.from_pylist(chunk.rows, columns), building, compression="zstd")

    def _assemble(self) -> Path:
        conflicting = {key for path in self._chunks() for key in _meta(path)["conflicting"]}
        made = self._building / self._file.name
        with pq.ParquetWriter(made, self._schema, compression="zstd") as writer:
            for path in self._chunks():
                table = pq.read_table(path)
                keep = [key.hex() not in conflicting for key in table.column(_KEY).to_pylist()]
                writer.write_table(
                    table.filter(pa.array(keep, pa.bool_())).select(self._schema.names).cast(self._schema)
                )
        return made


def _meta(path: Path) -> dict[str, Any]:
    try:
        return json.loads((pq.read_schema(path).metadata or {})[_META])
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error!r:.200}). Remove {path.parent} and run the same line") from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b("".join(text.split()).encode(), digest_size=8).digest()
