"""What a training set's own indices are worth: whether they tell its prompts apart, and whether it is the same set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

logger = logging.getLogger(__name__)

_LOOKED_AT = 1 << 20


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


def indices_are_unique(dataset: Any) -> bool:
    """Whether (data_source, extra_info.index) names every prompt of verl's ``dataset`` once, by a whole number.

    verl takes 0 where a row has no index, and files read together repeat each other's. Where the answer is no, a line
    of the log says why, and prompts are known by a hash of their text.
    """
    reason = _not_unique(dataset)
    if reason:
        logger.warning("prompts are known by a hash of their text: %s", reason)
    return not reason


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
