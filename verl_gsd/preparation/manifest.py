"""Prepared data sets on disk: the files and the manifest of each.

DATA/NAME/train.parquet, test.parquet   the rows in verl's columns
DATA/NAME/manifest.json                 per split: origin, settings, hashes, and how many rows are left out and why
DATA/NAME/left_out_SPLIT.jsonl          one line per row that is left out, except duplicates
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from verl_gsd.plain_data import parse_json
from verl_gsd.preparation.reading import sha256
from verl_gsd.regular_files import read_regular
from verl_gsd.writing import atomic_write

MANIFEST, LEFT_OUT = "manifest.json", "left_out_{split}.jsonl"
#: ``--against none`` means no set, and ``model`` is a folder beside the benchmarks in an evaluation's output.
_RESERVED = {"none", "model"}
#: The manifest's format. Increase it whenever the same source gives other rows.
FORMAT = 3
#: A module with a verifier of this package. The manifest may come from somebody else and must not name other code.
_VERIFIER = re.compile(r"verl_gsd\.tasks\.[a-z_]+")


_SPLIT = re.compile(r"\w+")
_Count = Annotated[int, Field(ge=0, le=2**40)]


class _Entry(BaseModel):
    """A split's entry in a manifest: the values that are read, as far as others may have damaged them."""

    model_config = ConfigDict(strict=True)

    sha256: str
    rows: _Count = 0
    read: _Count = 0
    suffix: str = ""
    reads: str | None = None
    model: str | None = None
    longest_prompt: _Count | None = None
    origin: dict[str, Any] = {}
    against: dict[str, str] = {}
    left_out: dict[str, _Count] = {}
    contaminated_by_set: dict[str, _Count] = {}
    not_compared: _Count = 0
    prompt_tokens: dict[str, _Count] = {}
    verifier: Any = None  # PreparedDataset.verifier checks it


@dataclass(frozen=True)
class PreparedDataset:
    """A data set that ``verl-gsd prepare`` has made.

    Attributes:
        folder: DATA/NAME.
        splits: split -> its entry in the manifest: ``made_by`` (the version of verl-gsd), origin, settings, rows, read,
            sha256, left_out, ``prompt_tokens`` (lengths of the kept prompts) and ``not_compared`` (rows; see
            ``build.SplitCounts`` for both), and ``verifier``: the module whose ``compute_score`` verifies responses,
            null if a reward model judges them.
    """

    folder: Path
    splits: Mapping[str, Mapping[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def file(self, split: str) -> Path:
        """The Parquet file of ``split``.

        Raises:
            ValueError: there is no such split, or the file has changed since it was prepared.
        """
        if split not in self.splits:
            raise ValueError(
                f"{self.folder}: there is no split {split}, only {', '.join(self.splits)}. Prepare that split first"
            )
        path = self.folder / f"{split}.parquet"
        if not path.is_file() or sha256(path) != self.splits[split]["sha256"]:
            raise ValueError(
                f"{path}: the file is missing or does not match {MANIFEST}. Run verl-gsd prepare {self.name} again"
            )
        return path

    def verifier(self, split: str) -> str | None:
        """The module whose ``compute_score`` verifies responses to ``split``; None if a reward model judges them.

        Raises:
            ValueError: the manifest names anything else than a module in ``verl_gsd.tasks``.
        """
        verifier = self.splits[split].get("verifier")
        if verifier is None or (isinstance(verifier, str) and _VERIFIER.fullmatch(verifier)):
            return verifier
        raise ValueError(
            f"{self.folder / MANIFEST}: the verifier of the {split} split, {verifier!r:.80}, is not a module in "
            "verl_gsd.tasks. A manifest cannot name other code"
        )


def write_manifest(dataset: PreparedDataset) -> None:
    """Write the manifest atomically."""
    manifest = {
        "format": FORMAT,
        "name": dataset.name,
        "splits": dict(dataset.splits),
    }
    with atomic_write(dataset.folder / MANIFEST) as building:
        building.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> PreparedDataset | None:
    """The prepared data set in ``folder``; None if there is none.

    Counts and settings that an entry lacks have the values of an empty one.

    Raises:
        ValueError: the manifest cannot be read, has another format, or has an entry that is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = parse_json(read_regular(path))
        made_in = manifest["format"]
        if not isinstance(made_in, int):
            raise TypeError(f"format {made_in!r}")
        splits = (
            {name: _checked(name, entry) for name, entry in manifest["splits"].items()} if made_in == FORMAT else {}
        )
    except Exception as error:  # others may have made it
        reason = " ".join(f"{error!r:.200}".split())
        raise ValueError(
            f"{path}: not a manifest of verl-gsd prepare ({reason}). Remove it and prepare the data set again"
        ) from error
    if made_in != FORMAT:
        fix = "Use another NAME, or install the latest verl-gsd"
        if made_in < FORMAT:
            again = f"run verl-gsd prepare {folder.name} again"
            fix = f"An older version of verl-gsd wrote it. Move the folder {folder} away, and {again}"
        raise ValueError(
            f"{path}: the manifest has format {made_in!r:.20}, and this version of verl-gsd reads format "
            f"{FORMAT}. {fix}"
        )
    return PreparedDataset(folder, splits)


def _checked(split: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry of a split, with values for what it lacks."""
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"{split!r} is no name of a split")
    return _Entry.model_validate(entry).model_dump() | entry


def check_name(name: str) -> None:
    """Check that ``name`` can name a data set: it becomes a folder and an entry of comma-separated lists.

    Raises:
        ValueError: it cannot.
    """
    if not name or name.startswith(".") or not all(letter.isalnum() or letter in "_-." for letter in name):
        raise ValueError(
            f"{name!r}: not a name for a data set. Use letters, digits, _, - and ., and start with no full stop"
        )
    if name in _RESERVED:
        raise ValueError(f"{name}: this name is reserved. Use another NAME")
    if len(name) > 100:
        raise ValueError(f"{name:.100}: the name is too long. Use at most 100 characters")


def list_prepared(data_folder: Path, on_damaged: Callable[[str], None]) -> list[PreparedDataset]:
    """All prepared data sets in ``data_folder``, sorted by name.

    Args:
        on_damaged: called with the error message of a manifest that cannot be read; its data set is skipped.
    """
    datasets = []
    for path in sorted(data_folder.glob(f"*/{MANIFEST}")):
        try:
            dataset = read_manifest(path.parent)
        except ValueError as error:
            on_damaged(str(error))
            continue
        if dataset is not None:
            datasets.append(dataset)
    return datasets
