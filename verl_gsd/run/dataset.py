"""What a training set's own indices are worth: whether they tell its prompts apart, and whether it is the same set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from verl_gsd.prompts import prompt_hash
from verl_gsd.run.remote_paths import scheme_of

logger = logging.getLogger(__name__)

_LOOKED_AT = 1 << 20

#: Where the data names no source.
UNKNOWN_SOURCE = "unknown"


def fingerprints(files: str | Sequence[str]) -> list[str]:
    """One a file, the same wherever it lies: its size and a hash of its first and last MiB (Parquet's statistics).

    A file that is not on this machine is known by its path.
    """
    found = []
    for name in [files] if isinstance(files, str) else files:
        path = Path(name).expanduser()
        if not path.is_file():
            found.append(str(name))
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(file.read(_LOOKED_AT))
            file.seek(max(0, size - _LOOKED_AT))
            digest.update(file.read())
        found.append(f"{size} bytes, {digest.hexdigest()[:16]}")
    return found


def files_with(column: str, files: str | Sequence[str] | None) -> list[str]:
    """Those of ``files`` that have a column of that name: Parquet files on this machine, what is wrong with any other
    is said elsewhere."""
    return [
        str(file)
        for file in ([files] if isinstance(files, str) else files or [])
        if not scheme_of(str(file)) and column in _column_names(Path(str(file)).expanduser())
    ]


def rows_of(files: str | Sequence[str] | None) -> int | None:
    """Rows of ``files`` together; None where one is no Parquet file on this machine."""
    names = [str(file) for file in ([files] if isinstance(files, str) else files or [])]
    if any(map(scheme_of, names)):
        return None  # pyarrow would connect to the storage
    try:
        return sum(pq.read_metadata(Path(name).expanduser()).num_rows for name in names)
    except (OSError, pa.ArrowInvalid):
        return None


def _column_names(file: Path) -> list[str]:
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowInvalid):
        return []


def indices_are_unique(dataset: Any) -> bool:
    """Whether (data_source, extra_info.index) names every prompt of verl's ``dataset`` once, by a whole number.

    verl takes 0 where a row has no index, and files read together repeat each other's. Where the answer is no, a line
    of the log says why, and prompts are known by a hash of their text.
    """
    reason = _not_unique(dataset)
    if reason:
        logger.warning("prompts are known by a hash of their text: %s", reason)
    return not reason


@dataclass(frozen=True)
class PromptKeys:
    """The keys of a data set's rows: names of sources, and (n_rows,) each the number of the source and the index."""

    sources: tuple[str, ...]
    source: np.ndarray
    index: np.ndarray


def prompt_keys(dataset: Any, unique: bool) -> PromptKeys:
    """The key of every row of verl's ``dataset``, by index where they are ``unique``, else by a hash of each text.

    A million indices take half a second, and a million texts some minutes, once.
    """
    if unique:
        table: pa.Table = dataset.dataframe.select_columns(["data_source", "extra_info"]).with_format("arrow")[:]
        sources = table.column("data_source").combine_chunks().cast(pa.string()).fill_null("None")
        index = pc.struct_field(table.column("extra_info"), "index").to_numpy()
    else:
        known = []  # one row at a time: a prompt may hold images
        for number in range(len(dataset)):
            row = dataset[number]
            known.append((str(row.get("data_source", UNKNOWN_SOURCE)), prompt_hash(row["raw_prompt"])))
        sources = pa.array([source for source, _ in known])
        index = np.array([text for _, text in known])
    named = sources.dictionary_encode()
    return PromptKeys(tuple(map(str, named.dictionary.to_pylist())), named.indices.to_numpy(), index.astype(np.int64))


def _not_unique(dataset: Any) -> str:
    frame = getattr(dataset, "dataframe", None)
    if frame is None or not hasattr(frame, "with_format"):
        return f"{type(dataset).__name__} has no table to look into"
    if not {"data_source", "extra_info"} <= set(frame.column_names):
        return "the data has no column data_source or extra_info"
    table: pa.Table = frame.select_columns(["data_source", "extra_info"]).with_format("arrow")[:]
    extra = table.column("extra_info")
    if not pa.types.is_struct(extra.type) or extra.type.get_field_index("index") < 0:
        return "extra_info has no index"
    index = pc.struct_field(extra, "index")
    if not pa.types.is_integer(index.type) or index.null_count:
        return f"extra_info.index is {index.type} with {index.null_count} missing, not whole numbers"
    keys = pa.table({"data_source": table.column("data_source"), "index": index})
    counts = keys.group_by(["data_source", "index"]).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts.column("count_all"), 1))
    if len(repeated):
        row = repeated.slice(0, 1).to_pylist()[0]
        return f"extra_info.index={row['index']} of {row['data_source']} appears {row['count_all']} times"
    return ""
