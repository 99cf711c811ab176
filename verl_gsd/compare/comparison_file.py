"""Writes a comparison as JSON, and reads its curves, so that a later comparison can include them without the runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verl_gsd.compare.comparison import Comparison
from verl_gsd.compare.curves import Curve
from verl_gsd.regular_files import read_regular
from verl_gsd.writing import atomic_write

#: The key that identifies such a file, and the version of its format.
_MARK, _VERSION = "verl_gsd_comparison", 1
#: JSON readers that use doubles represent integers exactly up to this value.
_LARGEST_INTEGER = 2**53


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write ``comparison`` to ``path``, atomically. Infinite ends of intervals become null.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    content = {_MARK: _VERSION, **dataclasses.asdict(comparison), "shortest": comparison.shortest.name}
    for curve in content["curves"]:
        del curve["settings"], curve["changes"]  # hundreds of keys per run, some of which may name this machine
    with atomic_write(path) as building:
        building.write_text(json.dumps(nonfinite_to_null(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_curves(path: Path) -> list[Curve]:
    """Return the curves of a file that ``write_comparison`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file, or it is damaged; the message names the file and the field.
    """
    try:
        content = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get(_MARK) != _VERSION:
        raise ValueError(
            f"{path}: not a comparison of this version ({_MARK}: {_VERSION}). Use a file that --output wrote"
        )
    if not isinstance(content.get("curves"), list):
        raise ValueError(f"{path}: curves: must be a list")
    return [_curve(entry, f"{path}: curves[{index}]") for index, entry in enumerate(content["curves"])]


def _is_text(value: Any) -> bool:
    # Unprintable characters could be control sequences, which a terminal would execute.
    return isinstance(value, str) and value.isprintable()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_INTEGER


def _is_number(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, float)


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (lambda value: _is_text(value) and value != "", "a name"),
    "seed": (_is_integer, "an integer"),
    "data_source": (_is_text, "a name"),
    "steps": (_list_of(_is_integer), "a list of integers"),
    "tokens": (_list_of(_is_integer), "a list of integers"),
    "accuracy": (_list_of(_is_number), "a list of numbers"),
    "run": (_is_text, "a folder"),
    "total_steps": (lambda value: value is None or _is_integer(value), "an integer or null"),
    "validation": (lambda value: isinstance(value, dict), "an object"),
    "trained": (_is_text, "a place"),
    "responses": (lambda value: value is None or (_is_integer(value) and value >= 1), "a positive integer or null"),
}
#: Fields that older files do not have.
_OPTIONAL = {"trained", "responses"}


def _curve(entry: Any, where: str) -> Curve:
    if not isinstance(entry, dict) or entry.keys() | _OPTIONAL != _FIELDS.keys():
        raise ValueError(f"{where}: must be an object with exactly the keys {', '.join(_FIELDS)}")
    for name, (accepts, expected) in _FIELDS.items():
        if name in entry and not accepts(entry[name]):
            raise ValueError(f"{where}.{name}={str(entry[name])[:80]!r}: must be {expected}")
    lists = {name: tuple(entry[name]) for name in ("steps", "tokens", "accuracy")}
    try:
        return Curve(**entry | lists)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def nonfinite_to_null(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, by None in nested dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: nonfinite_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nonfinite_to_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
