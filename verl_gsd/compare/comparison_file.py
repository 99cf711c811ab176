"""A comparison as JSON: what was found, and the curves it was found from, with which another day's can go on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verl_gsd.compare.comparison import Comparison
from verl_gsd.compare.curves import Curve
from verl_gsd.writing import atomic_write

#: The key that tells such a file from another, and the version of its format.
_MARK, _VERSION = "verl_gsd_comparison", 1
#: Whole numbers up to here are the same in every reader of JSON.
_LARGEST = 2**53


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write ``comparison`` to ``path``, whole or not at all; an infinite end of an interval is null.

    Raises:
        OSError: there is no room, or no right to write.
    """
    content = {_MARK: _VERSION, **dataclasses.asdict(comparison), "shortest": comparison.shortest.name}
    with atomic_write(path) as building:
        building.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_curves(path: Path) -> list[Curve]:
    """The curves of a file that ``write_comparison`` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is another file, or damaged; the message names it and the field.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict) or content.get(_MARK) != _VERSION:
        raise ValueError(f"{path}: no comparison of this version ({_MARK}: {_VERSION}). Name what --output wrote")
    if not isinstance(content.get("curves"), list):
        raise ValueError(f"{path}: curves: write a list")
    return [_curve(entry, f"{path}: curves[{place}]") for place, entry in enumerate(content["curves"])]


def _is_text(value: Any) -> bool:
    # A terminal obeys what cannot be printed.
    return isinstance(value, str) and value.isprintable()


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(accepts, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (lambda value: _is_text(value) and value != "", "a name"),
    "seed": (_is_whole, "a whole number"),
    "data_source": (_is_text, "a name"),
    "steps": (_list_of(_is_whole), "a list of whole numbers"),
    "tokens": (_list_of(_is_whole), "a list of whole numbers"),
    "accuracy": (_list_of(_is_number), "a list of numbers"),
    "run": (_is_text, "a folder"),
    "total_steps": (lambda value: value is None or _is_whole(value), "a whole number or null"),
    "validation": (lambda value: isinstance(value, dict), "an object"),
}


def _curve(entry: Any, where: str) -> Curve:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS.keys():
        raise ValueError(f"{where}: write an object of {', '.join(_FIELDS)}")
    for name, (accepts, wanted) in _FIELDS.items():
        if not accepts(entry[name]):
            raise ValueError(f"{where}.{name}={str(entry[name])[:80]!r}: write {wanted}")
    lists = {name: tuple(entry[name]) for name in ("steps", "tokens", "accuracy")}
    try:
        return Curve(**entry | lists)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
