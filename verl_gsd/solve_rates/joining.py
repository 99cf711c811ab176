"""Matching of the rows of a training set with prompts whose solve rates are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verl_gsd.prompts import PromptKey, prompt_hash
from verl_gsd.row_table import RowTable
from verl_gsd.solve_rates.rates import SolveRates


def keys_by_index(table: RowTable) -> list[PromptKey] | None:
    """(data_source, extra_info.index) of every row of a training set in verl's format.

    None if a key is missing or not unique.
    """
    if not {"data_source", "extra_info"} <= set(table.names):
        return None
    sources, extra = table.column("data_source", lambda cell: cell), table.column("extra_info", lambda cell: cell)
    cells = [cell.get("index") if isinstance(cell, dict) else None for cell in extra]
    indices = [index for index in cells if type(index) is int]
    if len(indices) < len(cells):
        return None
    keys = list(zip(map(str, sources), indices, strict=True))
    return keys if len(set(keys)) == len(keys) else None


def join(rates: SolveRates, table: RowTable) -> np.ndarray:
    """(n_rows,) int64: for every row of a training set, the entry of ``rates`` for the same prompt, or -1.

    Rows are matched in one of three ways:

    - by (data_source, extra_info.index), if both sides have them;
    - by a hash of column prompt, if the run identified its prompts by their text;
    - by position, if one of the two has no keys and the rates are a table with the same number of rows.

    Raises:
        ValueError: the rows cannot be matched in any of these ways, no row has a solve rate, or both sides have keys
            and none of them match.
    """
    candidates = []
    index_keys = None
    if rates.keys is not None:
        index_keys = keys_by_index(table)
        entry_of_key = {key: entry for entry, key in enumerate(rates.keys)}
        keys_of_rows = (keys for keys in (index_keys, _keys_by_text(table)) if keys is not None)
        candidates = [np.array([entry_of_key.get(key, -1) for key in keys]) for keys in keys_of_rows]
    candidates = [entries for entries in candidates if (entries >= 0).any()] or candidates
    by_keys = bool(candidates) and bool((candidates[0] >= 0).any())
    if not by_keys and rates.row is not None and rates.keys and index_keys:
        raise ValueError(
            f"{table.path}: none of its {len(table)} rows has a solve rate in {rates.path}. Its first row has "
            f"data_source and extra_info.index {index_keys[0]}, and the first rate is of {rates.keys[0]}. Use the "
            "solve rates of these prompts. To match rows by their order, remove these columns from the solve rates."
        )
    if not by_keys and rates.row is not None and rates.n_rows == len(table):
        by_position: np.ndarray = np.full(len(table), -1)
        by_position[rates.row] = np.arange(len(rates))
        candidates.append(by_position)
    if not candidates:
        rows = f"{rates.n_rows} rows" if rates.n_rows else "prompts that have neither a row nor an index"
        raise ValueError(
            f"{rates.path}: {rows} cannot be matched with the {len(table)} rows of {table.path}. Use solve rates "
            "with one row for each of these rows, or with data_source and extra_info.index, or a run's folder."
        )
    entries = max(candidates, key=lambda entries: int((entries >= 0).sum()))
    if not (entries >= 0).any():
        raise ValueError(
            f"{table.path}: none of its {len(table)} rows has a solve rate in {rates.path}. Use the solve rates of "
            "these prompts."
        )
    return entries


def _keys_by_text(table: RowTable) -> Sequence[PromptKey] | None:
    if "prompt" not in table.names:
        return None
    texts = table.column("prompt", prompt_hash)
    sources = table.column("data_source", str) if "data_source" in table.names else ["unknown"] * len(table)
    return list(zip(sources, texts, strict=True))
