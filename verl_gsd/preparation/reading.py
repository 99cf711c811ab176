"""Rows of a data set, one by one, from the hub, from a folder downloaded from it, or from a file.

By the ``datasets`` library, streamed, which also says what files a folder has for a split. A file of JSON lines, CSV or
Parquet is read by our own readers: where a column holds texts and numbers, ``datasets`` 5.2 gives ``"033"`` back as 33
without a word.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl_gsd.preparation.sources import Source
from verl_gsd.row_table import SUFFIXES, stream_rows

#: Bytes of a file that are hashed at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where the rows of one split are read from.

    Attributes:
        path: a file, or a folder as one gets by downloading a repository; None for the hub.
        repository, revision: of the hub, pinned, so that what is resumed is what was begun.
        split: the repository's name of it.
    """

    path: Path | None
    repository: str | None
    revision: str | None
    split: str

    def described(self) -> dict[str, Any]:
        """For the manifest: the repository and its revision, or the file's or folder's name and hash."""
        if self.path is None:
            return {"repository": self.repository, "revision": self.revision, "split": self.split}
        return {"path": self.path.name, "sha256": sha256(self.path), "split": self.split}

    def name(self, row: int) -> str:
        """A row, in words, for a message."""
        where = str(self.path) if self.path else f"{self.repository}, split {self.split}"
        return f"{where}, row {row} (the first is 0)"


def find(source: Source, path: Path | None, split: str) -> Origin:
    """Where ``split`` of ``source`` is.

    Raises:
        ValueError: ``path`` is not there or of no kind that is read; or the hub does not answer, or refuses.
    """
    theirs = source.splits[split]
    if path is not None:
        if not path.exists():
            raise ValueError(f"--input {path}: is not there")
        if path.is_file() and path.suffix not in SUFFIXES:
            raise ValueError(f"--input {path}: write a folder, or a file that ends in {', '.join(SUFFIXES)}")
        return Origin(path, None, None, theirs)
    if source.repository is None:
        raise ValueError("--input: write the file that has the rows")
    revision = hub_revision("dataset", source.repository)
    return Origin(None, source.repository, revision, theirs)


def hub_revision(kind: Literal["dataset", "model"], name: str) -> str | None:
    """The newest revision of a repository on Hugging Face's hub.

    Raises:
        ValueError: the hub does not answer, or refuses; the message says what to do.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return (HfApi().dataset_info(name) if kind == "dataset" else HfApi().model_info(name)).sha
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: its authors ask for consent. Give it on its page, then `hf auth login`, or download it and name "
            "the folder"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: the hub does not give it ({reason}). Download it where it does, and name the folder"
            f"{' as --input' if kind == 'dataset' else ''}"
        ) from error


def rows(source: Source, origin: Origin, skip: int = 0) -> Iterator[dict[str, Any]]:
    """The rows from number ``skip`` on.

    Raises:
        ValueError: columns are not there, or the data is not readable.
    """
    if origin.path is not None and origin.path.is_file():
        for number, row in enumerate(itertools.islice(stream_rows(origin.path), skip, None), start=skip):
            # Of JSON lines each row has keys of its own; one that lacks a key has a null, as elsewhere.
            if number == 0 or origin.path.suffix != ".jsonl":
                _require_columns(source, str(origin.path), list(row))
            yield {name: row.get(name) for name in source.columns}
        return
    yield from itertools.islice(_streamed(source, origin), skip, None)


def _streamed(source: Source, origin: Origin) -> Iterator[dict[str, Any]]:
    place = str(origin.path or origin.repository)
    for config in source.configs:
        try:
            files, data = _split(place, config, origin, is_one_of_many=len(source.configs) > 1)
            if files is not None:
                for file in files:
                    yield from rows(source, Origin(file, None, None, origin.split))
                continue
            names = data.column_names or list(next(iter(data), {}))
            _require_columns(source, place, names)
            yield from data.select_columns(list(source.columns))
        except Exception as error:  # of datasets, of what it reads with, and of a README's YAML
            said = str(error) or type(error).__name__
            raise ValueError(said if place in said else f"{place}: not readable: {said}") from error


def _split(place: str, config: str | None, origin: Origin, is_one_of_many: bool) -> tuple[list[Path] | None, Any]:
    """One part's split: the files of a folder that are read as files are, or what ``datasets`` streams."""
    import datasets

    datasets.disable_progress_bars()
    configs = datasets.get_dataset_config_names(place, revision=origin.revision)
    if config is not None and config not in configs:
        # A folder whose README names no parts has all its files in one.
        if origin.path is None or configs != ["default"] or is_one_of_many:
            raise ValueError(f"{place}: no part {config}; it has {', '.join(configs)}")
        config = None
    if origin.path is not None:
        found = datasets.load_dataset_builder(place, config).config.data_files or {}
        if origin.split not in found:
            raise ValueError(
                f"{place}: no split {origin.split}; it has {', '.join(map(str, found)) or 'no data files'}"
            )
        files = [Path(file) for file in found[origin.split]]
        if all(file.is_file() and file.suffix in SUFFIXES for file in files):
            return files, None
    return None, datasets.load_dataset(place, config, split=origin.split, revision=origin.revision, streaming=True)


def _require_columns(source: Source, place: str, names: list[str]) -> None:
    missing = [name for name in source.columns if name not in names]
    if missing:
        raise ValueError(f"{place}: column {missing[0]} is not there. Columns are {', '.join(names) or 'none'}")


def sha256(path: Path) -> str:
    """Of a file, or of the names and contents of a folder's files, hidden ones aside."""
    if path.is_file():
        digest = hashlib.sha256()
        with path.open("rb") as content:
            while block := content.read(_BLOCK):  # hashlib.file_digest came with Python 3.11
                digest.update(block)
        return digest.hexdigest()
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inner.parts):
            whole.update(f"{inner.as_posix()}\0{sha256(file)}\n".encode())
    return whole.hexdigest()
