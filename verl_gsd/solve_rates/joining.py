"""Which row of a training set is which prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verl_gsd.prompts import PromptKey, prompt_hash
from verl_gsd.row_table import RowTable
from verl_gsd.solve_rates.rates import SolveRates


def keys_by_index(sheet: RowTable) -> list[PromptKey] | None:
    """(data_source, extra_info.index) of every row, as verl's data sets have them.

    None where one is missing or two are equal.
    """
    if not {"data_source", "extra_info"} <= set(sheet.names):
        return None
    sources, extra = sheet.column("data_source", lambda cell: cell), sheet.column("extra_info", lambda cell: cell)
    indices = [cell.get("index") if isinstance(cell, dict) else None for cell in extra]
    whole = [index for index in indices if type(index) is int]
    if len(whole) < len(indices):
        return None
    keys = list(zip(map(str, sources), whole, strict=True))
    return keys if len(set(keys)) == len(keys) else None


def join(rates: SolveRates, sheet: RowTable) -> np.ndarray:
    """For every row of a training set, the entry of ``rates`` that is the same prompt's: (n_rows,) int64, -1 for none.

    By (data_source, extra_info.index) where both have them, by a hash of column prompt where a run knew its prompts by
    their text, and row by row where keys find nothing and the rates are a table of as many rows.

    Raises:
        ValueError: none of these can be, or no row of the training set has a rate.
    """
    found = []
    if rates.keys is not None:
        place = {key: entry for entry, key in enumerate(rates.keys)}
        known = (keys for keys in (keys_by_index(sheet), _keys_by_text(sheet)) if keys is not None)
        found = [np.array([place.get(key, -1) for key in keys]) for keys in known]
    found = [entries for entries in found if (entries >= 0).any()] or found
    by_keys = bool(found) and bool((found[0] >= 0).any())
    if not by_keys and rates.row is not None and rates.n_rows == len(sheet):
        row_by_row: np.ndarray = np.full(len(sheet), -1)
        row_by_row[rates.row] = np.arange(len(rates))
        found.append(row_by_row)
    if not found:
        rows = f"{rates.n_rows} rows" if rates.n_rows else "prompts that have neither a row nor an index"
        raise ValueError(
            f"{rates.path}: has {rows}, which cannot be matched with the {len(sheet)} rows of {sheet.path}. Write "
            "rates with a row for each of its rows, or with data_source and extra_info.index, or a run's folder."
        )
    entries = max(found, key=lambda entries: int((entries >= 0).sum()))
    if not (entries >= 0).any():
        raise ValueError(f"{sheet.path}: none of its {len(sheet)} rows is a prompt that {rates.path} has a rate of")
    return entries


def _keys_by_text(sheet: RowTable) -> Sequence[PromptKey] | None:
    if "prompt" not in sheet.names:
        return None
    texts = sheet.column("prompt", prompt_hash)
    sources = sheet.column("data_source", str) if "data_source" in sheet.names else ["unknown"] * len(sheet)
    return list(zip(sources, texts, strict=True))
