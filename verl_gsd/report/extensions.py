"""What extensions declare for a report: the order of their parts, and remedies for findings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.declaration import Problem, Remedy
from verl_gsd.extension import Declaration, declarations

_TRAIN_FILES = "data.train_files"


def in_report_order() -> list[Declaration]:
    """All registered extensions, in the order of their sections and findings."""
    return sorted(declarations(), key=lambda declaration: declaration.report_order)


def remedies(problem: Problem, config: Mapping[str, Any]) -> list[str]:
    """Config overrides against ``problem``, from extensions that take no part in the run.

    Args:
        config: dotted key -> value; empty if it is not known.
    """
    return [
        _suited(declaration.remedies[problem], config)
        for declaration in in_report_order()
        if problem in declaration.remedies and not takes_part(declaration, config)
    ]


def _suited(remedy: str | Remedy, config: Mapping[str, Any]) -> str:
    if isinstance(remedy, str):
        return remedy
    present = {declaration.name for declaration in declarations() if takes_part(declaration, config)}
    if beside := [text for name, text in remedy.beside.items() if name in present]:
        return beside[0]
    files = config.get(_TRAIN_FILES)
    names = [files] if isinstance(files, str) else files if isinstance(files, list) else []
    has_column = bool(names) and all(_has_column(str(name), remedy.column) for name in names)
    return remedy.override if has_column else remedy.otherwise


def _has_column(file: str, column: str) -> bool:
    """Whether ``file`` is a Parquet file on this machine that has the column."""
    path = Path(file).expanduser()
    try:
        return path.is_file() and column in pq.read_schema(path).names
    except (OSError, RuntimeError, pa.ArrowException):  # RuntimeError: ~ names an unknown user
        return False


def takes_part(declaration: Declaration, config: Mapping[str, Any]) -> bool:
    """Whether the run of a config (dotted key -> value) has the extension."""
    section = f"algorithm.gsd.{declaration.name}"
    return any(value is not None and (key == section or key.startswith(f"{section}.")) for key, value in config.items())
