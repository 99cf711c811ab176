"""The laboratory's row store: a dict in place of verl's queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DictRows:
    """Rows of training groups; see ``extension.RowStore``."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, Any]] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def read(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        if columns is None:
            return [dict(self._rows[key]) for key in keys]
        return [{name: self._rows[key][name] for name in columns} for key in keys]

    def put(self, rows: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        for key, row in rows.items():
            self._rows[key] = self._rows.get(key, {}) | dict(row)
            if tags is not None:
                self.tags[key] = dict(tags[key])

    def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._rows[key], self.tags[key]
