"""Streams the rows of a data set from Hugging Face's hub, from a folder downloaded from it, or from a file.

The ``datasets`` library streams the hub, and finds the files of a split in a folder. Our own readers read files of JSON
lines, CSV and Parquet: if a column mixes texts and numbers, ``datasets`` 5.2 silently turns ``"033"`` into 33.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from verl_gsd.preparation.data_files import check_links, check_reader, only_inside, place_with_files
from verl_gsd.preparation.sources import Source
from verl_gsd.regular_files import open_regular
from verl_gsd.row_table import SUFFIXES, stream_rows

#: Bytes that are hashed at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Origin:
    """Where the rows of one split are read from.

    Attributes:
        path: a file, or the folder of a downloaded repository; None for the hub.
        repository: the repository on the hub.
        revision: its revision, pinned so that a resumed build reads the same rows.
        split: the repository's name for the split.
        within: the folder out of which no link may lead, for a file of a data set; None for a file that the user named.
    """

    path: Path | None
    repository: str | None
    revision: str | None
    split: str
    within: Path | None = None

    def describe(self) -> dict[str, Any]:
        """The manifest's entry: the repository and its revision, or the name and hash of the file or folder."""
        if self.path is None:
            return {"repository": self.repository, "revision": self.revision, "split": self.split}
        return {"path": self.path.name, "sha256": sha256(self.path), "split": self.split}

    def row_label(self, row: int) -> str:
        """The name of a row in messages."""
        where = str(self.path) if self.path else f"{self.repository}, split {self.split}"
        return f"{where}, row {row} (the first is 0)"


def locate(source: Source, path: Path | None, split: str) -> Origin:
    """Where the rows of ``split`` are: in ``path`` if it is given, else on the hub.

    Raises:
        ValueError: ``path`` does not exist or is of an unknown kind, or the hub is not reachable or denies access.
    """
    source_split = source.splits[split]
    if path is not None:
        if not path.exists():
            raise ValueError(f"--input {path}: the file does not exist. Set --input to an existing file or folder")
        if path.is_file() and path.suffix not in SUFFIXES:
            raise ValueError(
                f"--input {path}: unknown kind of file. Use a folder, or a file that ends in {', '.join(SUFFIXES)}"
            )
        return Origin(path, None, None, source_split)
    if source.repository is None:
        raise ValueError("--input is missing. Set it to the file that has the rows")
    if Path(source.repository).exists():  # datasets would read it, and the manifest would name the hub
        raise ValueError(
            f"{source.repository}: the current folder {Path.cwd()} has a folder or file of this name, which would be "
            "read instead of the data set on the hub. Run the command in another folder, or set --input to that folder"
        )
    revision = hub_revision("dataset", source.repository)
    return Origin(None, source.repository, revision, source_split)


def hub_revision(kind: Literal["dataset", "model"], name: str) -> str | None:
    """The newest revision of a repository on Hugging Face's hub.

    Raises:
        ValueError: the hub is not reachable or denies access; the message says what to do.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return (HfApi().dataset_info(name) if kind == "dataset" else HfApi().model_info(name)).sha
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: the hub gives access only after you accept the authors' conditions. Accept them on its page and "
            "run `hf auth login`, or download it and use the folder's path"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: cannot be read from Hugging Face's hub ({reason}). Download it on a machine that can reach the "
            f"hub, and {'set --input to the folder' if kind == 'dataset' else 'use the folder instead of the name'}"
        ) from error


def read_rows(source: Source, origin: Origin, skip: int = 0) -> Iterator[dict[str, Any]]:
    """The rows from number ``skip`` on, with the columns that ``source`` reads, and its level column if it is there.

    Raises:
        ValueError: a column is missing, or the data cannot be read.
    """
    if origin.path is not None and origin.path.is_file():
        rows = stream_rows(origin.path, within=origin.within)
        for number, row in enumerate(itertools.islice(rows, skip, None), start=skip):
            # Each row of a JSON lines file has its own keys. A missing key counts as null, except in the first row.
            if number == 0 or origin.path.suffix != ".jsonl":
                _check_columns(source, str(origin.path), list(row))
            yield {name: row.get(name) for name in _wanted(source, list(row))}
        return
    yield from itertools.islice(_streamed(source, origin), skip, None)


def _streamed(source: Source, origin: Origin) -> Iterator[dict[str, Any]]:
    place = str(origin.path or origin.repository)
    for config in source.configs:
        try:
            files, data = _open_config(place, config, origin, is_one_of_many=len(source.configs) > 1)
            if files is not None:
                within = place_with_files(Path(place))
                for file in files:
                    yield from read_rows(source, Origin(file, None, None, origin.split, within))
                continue
            names = data.column_names or list(next(iter(data), {}))
            _check_columns(source, place, names)
            _check_types(place, _wanted(source, names), data.features or {})
            yield from data.select_columns(_wanted(source, names))
        except Exception as error:  # datasets, its readers, and the YAML of a README raise errors of many types
            message = str(error) or type(error).__name__
            raise ValueError(message if place in message else f"{place}: cannot be read: {message}") from error


def _open_config(place: str, config: str | None, origin: Origin, is_one_of_many: bool) -> tuple[list[Path] | None, Any]:
    """One configuration's split: the files that our readers can read, or the rows that ``datasets`` streams."""
    import datasets

    from verl_gsd.media_cells import without_opened_files

    datasets.disable_progress_bars()
    folder = None if origin.path is None else origin.path.resolve()
    place = place if folder is None else str(folder)
    if folder is not None:
        check_links(folder)
    with only_inside(folder or place):
        files, rows = _resolve_config(place, config, origin, is_one_of_many)
    return files, None if rows is None else without_opened_files(rows)


def _resolve_config(
    place: str, config: str | None, origin: Origin, is_one_of_many: bool
) -> tuple[list[Path] | None, Any]:
    import datasets

    configs = datasets.get_dataset_config_names(place, revision=origin.revision)
    if config is not None and config not in configs:
        # If a folder's README names no configurations, all its files belong to the configuration "default".
        if origin.path is None or configs != ["default"] or is_one_of_many:
            raise ValueError(f"{place}: there is no configuration {config}, only {', '.join(configs)}")
        config = None
    builder = datasets.load_dataset_builder(place, config, revision=origin.revision)
    if origin.path is not None:
        files_by_split = builder.config.data_files or {}
        if origin.split not in files_by_split:
            splits = ", ".join(map(str, files_by_split))
            raise ValueError(
                f"{place}: there is no split {origin.split}, {f'only {splits}' if splits else 'and no data files'}"
            )
        files = [Path(file) for file in files_by_split[origin.split]]
        if all(file.is_file() and file.suffix in SUFFIXES for file in files):
            return files, None
    check_reader(place, builder)
    return None, builder.as_streaming_dataset(split=origin.split)


def _wanted(source: Source, names: list[str]) -> list[str]:
    """The columns that ``source`` reads of a table with the columns ``names``."""
    optional = source.level_column
    return [*source.columns, *([optional] if optional is not None and optional in names else [])]


def _check_columns(source: Source, place: str, names: list[str]) -> None:
    missing = [name for name in source.columns if name not in names]
    if missing:
        raise ValueError(
            f"{place}: column {missing[0]} is missing. The columns are: {', '.join(names) or 'none'}. "
            "For a table of your own, name its columns with --problem-column and --answer-column"
        )


def _check_types(place: str, names: list[str], features: Mapping[str, Any]) -> None:
    from verl_gsd.media_cells import media_type

    for name in names:
        if (kind := media_type(features.get(name))) is not None:
            raise ValueError(
                f"{place}: column {name} holds no text: its type is {kind}. Nothing that its cells name was opened. "
                "For a table of your own, name columns of text with --problem-column and --answer-column"
            )


def sha256(path: Path) -> str:
    """The hash of a file, or of the names and contents of all files in a folder except hidden ones.

    A link in a folder counts as the file to which it leads. If it leads out of the folder, the text of the link counts:
    manifests and model cards publish the hash, which would tell about a private file of the user to which somebody
    else's data set could lead. In the hub's cache, a folder includes the files of the same data set.

    Raises:
        OSError: a file cannot be read, or became a link out of the folder meanwhile.
    """
    if path.is_file():
        with path.open("rb") as content:
            return _digest(content)
    place = place_with_files(path)
    folder_digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative_path = file.relative_to(path)
        if any(part.startswith(".") for part in relative_path.parts):
            continue
        if file.is_symlink() and not file.resolve().is_relative_to(place):
            digest = hashlib.sha256(os.fsencode(file.readlink())).hexdigest()
        elif file.is_file():
            with open_regular(file, within=place) as content:
                digest = _digest(content)
        else:
            continue
        folder_digest.update(f"{relative_path.as_posix()}\0{digest}\n".encode())
    return folder_digest.hexdigest()


def _digest(content: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := content.read(_BLOCK):  # hashlib.file_digest came with Python 3.11
        digest.update(block)
    return digest.hexdigest()
