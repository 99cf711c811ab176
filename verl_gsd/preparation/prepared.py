"""What was prepared: the files and the manifest of one data set.

DATA/NAME/train.parquet, test.parquet   verl's columns
DATA/NAME/manifest.json                 what they were made of and how, hashes, and what was left out
DATA/NAME/left_out_SPLIT.jsonl          each row left out for another reason than being a duplicate
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd.preparation.reading import sha256
from verl_gsd.writing import atomic_write

MANIFEST, LEFT_OUT = "manifest.json", "left_out_{split}.jsonl"
#: Words of a command line, and names beside benchmarks in an evaluation's folder.
_RESERVED = {"none", "model"}
#: Of the manifest; raised whenever rows are made otherwise from the same source.
FORMAT = 1


@dataclass(frozen=True)
class Prepared:
    """A data set that was prepared.

    Attributes:
        folder: DATA/NAME.
        splits: name -> what the manifest says of it: origin, settings, rows, read, sha256, left_out; and ``verifier``,
            the module whose ``compute_score`` verifies responses, null where a reward model judges.
    """

    folder: Path
    splits: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def file(self, split: str) -> Path:
        """The rows of ``split``.

        Raises:
            ValueError: it has no such split, or the file is not the one that was prepared.
        """
        if split not in self.splits:
            raise ValueError(f"{self.folder}: has no split {split}, only {', '.join(self.splits)}")
        path = self.folder / f"{split}.parquet"
        if not path.is_file() or sha256(path) != self.splits[split]["sha256"]:
            raise ValueError(f"{path}: is not what {MANIFEST} says. Run verl-gsd prepare {self.name} again")
        return path


def write(prepared: Prepared) -> None:
    """Write the manifest, whole or not at all."""
    manifest = {
        "format": FORMAT,
        "name": prepared.name,
        "splits": dict(prepared.splits),
    }
    with atomic_write(prepared.folder / MANIFEST) as building:
        building.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> Prepared | None:
    """What was prepared in ``folder``; None where nothing was.

    Raises:
        ValueError: its manifest is none of ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(
                f"{path}: of format {manifest['format']}, this package reads {FORMAT}. Write another NAME, or update it"
            )
        return Prepared(folder, {name: dict(split) for name, split in manifest["splits"].items()})
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a manifest of verl-gsd prepare ({error!r}). Remove it and prepare again"
        ) from error


def require_name(name: str) -> None:
    """Refuse what can be no data set's name: it becomes a folder's, and a word in a list.

    Raises:
        ValueError: it cannot.
    """
    if not name or name.startswith(".") or not all(letter.isalnum() or letter in "_-." for letter in name):
        raise ValueError(f"{name!r}: write a name of letters, digits, _, - and .")
    if name in _RESERVED or len(name) > 100:
        raise ValueError(f"{name:.100}: write another name")


def all_of(data: Path, on_damaged: Callable[[str], None]) -> list[Prepared]:
    """Those prepared below ``data``, by name; ``on_damaged`` is told of a folder whose manifest is none of ours."""
    found = []
    for path in sorted(data.glob(f"*/{MANIFEST}")):
        try:
            made = read(path.parent)
        except ValueError as error:
            on_damaged(str(error))
            continue
        if made is not None:
            found.append(made)
    return found
