"""Identifies training sets and their prompts: fingerprints of files, numbers of rows, and a key for each prompt."""

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

#: Bytes at the start and at the end of a file that its fingerprint covers.
_HASHED_BYTES = 1 << 20

#: The source of a prompt without data_source.
UNKNOWN_SOURCE = "unknown"


def fingerprints(files: str | Sequence[str]) -> list[str]:
    """One fingerprint per file: its size and a hash of its first and last MiB, which contain Parquet's statistics.

    The fingerprint does not depend on the path. For a file that is not on this machine it is the path.
    """
    result = []
    for name in [files] if isinstance(files, str) else files:
        path = Path(name).expanduser()
        if not path.is_file():
            result.append(str(name))
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(file.read(_HASHED_BYTES))
            file.seek(max(0, size - _HASHED_BYTES))
            digest.update(file.read())
        result.append(f"{size} bytes, {digest.hexdigest()[:16]}")
    return result


def files_with(column: str, files: str | Sequence[str] | None) -> list[str]:
    """Those of ``files`` that are Parquet files on this machine and have the column. Other checks report bad files."""
    return [
        str(file)
        for file in ([files] if isinstance(files, str) else files or [])
        if not scheme_of(str(file)) and column in _column_names(Path(str(file)).expanduser())
    ]


def count_rows(files: str | Sequence[str] | None) -> int | None:
    """The total number of rows of ``files``; None unless all are Parquet files on this machine."""
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
    """Whether (data_source, extra_info.index) identifies every prompt of verl's ``dataset``, with integer indices.

    verl uses 0 for rows without an index, and several files can contain the same indices. If the pairs are not unique,
    this logs the reason, and prompts are identified by a hash of their text.
    """
    reason = _why_not_unique(dataset)
    if reason:
        logger.warning("prompts are identified by a hash of their text: %s", reason)
    return not reason


@dataclass(frozen=True)
class PromptKeys:
    """The key of each row of a data set.

    Attributes:
        sources: the names of all sources.
        source: (n_rows,) position of the row's source in ``sources``.
        index: (n_rows,) the row's index within its source, or a hash of its text.
    """

    sources: tuple[str, ...]
    source: np.ndarray
    index: np.ndarray


def prompt_keys(dataset: Any, unique: bool) -> PromptKeys:
    """The key of every row of verl's ``dataset``.

    If the indices are ``unique``, they are the keys, which takes half a second for a million rows. Otherwise the keys
    are hashes of the texts, which takes minutes for a million rows. This is computed once per run.
    """
    if unique:
        table: pa.Table = dataset.dataframe.select_columns(["data_source", "extra_info"]).with_format("arrow")[:]
        sources = table.column("data_source").combine_chunks().cast(pa.string()).fill_null("None")
        index = pc.struct_field(table.column("extra_info"), "index").to_numpy()
    else:
        pairs = []  # one row at a time, because prompts may contain images
        for number in range(len(dataset)):
            row = dataset[number]
            pairs.append((str(row.get("data_source", UNKNOWN_SOURCE)), prompt_hash(row["raw_prompt"])))
        sources = pa.array([source for source, _ in pairs])
        index = np.array([text for _, text in pairs])
    encoded = sources.dictionary_encode()
    return PromptKeys(
        tuple(map(str, encoded.dictionary.to_pylist())), encoded.indices.to_numpy(), index.astype(np.int64)
    )


def _why_not_unique(dataset: Any) -> str:
    frame = getattr(dataset, "dataframe", None)
    if frame is None or not hasattr(frame, "with_format"):
        return f"{type(dataset).__name__} has no table (attribute dataframe)"
    if not {"data_source", "extra_info"} <= set(frame.column_names):
        return "the data has no column data_source or extra_info"
    table: pa.Table = frame.select_columns(["data_source", "extra_info"]).with_format("arrow")[:]
    extra = table.column("extra_info")
    if not pa.types.is_struct(extra.type) or extra.type.get_field_index("index") < 0:
        return "extra_info has no index"
    index = pc.struct_field(extra, "index")
    if not pa.types.is_integer(index.type) or index.null_count:
        return f"extra_info.index is {index.type} with {index.null_count} missing values, but must be an integer"
    keys = pa.table({"data_source": table.column("data_source"), "index": index})
    counts = keys.group_by(["data_source", "index"]).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts.column("count_all"), 1))
    if len(repeated):
        row = repeated.slice(0, 1).to_pylist()[0]
        return f"extra_info.index={row['index']} of {row['data_source']} appears {row['count_all']} times"
    return ""
