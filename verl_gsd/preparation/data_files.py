"""Keeps ``datasets`` from reading files outside a data set.

A data set's README.md (or .huggingface.yaml) names the data set's files. ``datasets`` resolves these names with fsspec:
absolute paths, ``..``, URLs, and chains such as ``reference://x::file:///y``. Some file systems of fsspec read further
files on the way, and releases before 2026.6 run code from them. The author of a data set is not trusted, so none of
these names is resolved here.

Some readers of ``datasets`` open further files in the folder of a data file, without resolving a name. Each of these
files could be a link to a private file. Such readers, and folders with links that lead out of them, are rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from verl_gsd.regular_files import read_regular

if TYPE_CHECKING:
    from datasets import DatasetBuilder

#: The files in which a data set names its files.
_DECLARATIONS = ("README.md", ".huggingface.yaml")
#: The readers of ``datasets`` that open only the files that it has resolved, and run no code of a file.
_READERS = ("arrow", "csv", "json", "parquet", "text")


def place_with_files(folder: Path) -> Path:
    """The folder that must contain the files of the downloaded data set ``folder``, without symbolic links.

    In the cache of Hugging Face's hub, files in datasets--OWNER--NAME/snapshots/REVISION are links to
    datasets--OWNER--NAME/blobs.
    """
    real = folder.resolve()
    repository = real.parent.parent
    is_cached = real.parent.name == "snapshots" and repository.name.startswith("datasets--")
    return repository if is_cached else real


def check_links(folder: Path) -> None:
    """Check all links in a data set's folder, also those that no data file is read through.

    Args:
        folder: the folder without symbolic links.

    Raises:
        ValueError: a link leads out of the data set.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                _check_file(folder, str(path))


def check_reader(place: str, builder: DatasetBuilder) -> None:
    """Check the reader that ``datasets`` has chosen by the names of a data set's files.

    Raises:
        ValueError: it may open other files than those that were checked.
    """
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _READERS or type(builder).__module__ != f"datasets.packaged_modules.{reader}.{reader}":
        raise ValueError(
            f"{place}: its files are of the kind {reader}, and reading them could open further files. They were not "
            f"read. Use {', '.join(_READERS[:-1])} or {_READERS[-1]} files"
        )


@contextmanager
def only_inside(place: Path | str) -> Iterator[None]:
    """While this is active, ``datasets`` finds only files in one data set.

    Args:
        place: the data set's folder without symbolic links, or the name of its repository on the hub.

    Raises:
        ValueError: the data set names a file outside it, or a link in it leads to one; or ``datasets`` reads a folder
            instead of the hub. If ``datasets`` does not pass the error on, it is raised at the end: after an error,
            ``datasets`` uses an older copy of the data set from its cache.
    """
    import datasets.data_files as module

    resolve = module.resolve_pattern
    problems: list[ValueError] = []

    def resolve_inside(pattern: str, base_path: str, *args: Any, **options: Any) -> list[str]:
        try:
            _check_name(place, pattern, base_path)
            files = resolve(pattern, base_path, *args, **options)
            for file in files:
                _check_file(place, file)
        except ValueError as problem:
            problems.append(problem)
            raise
        return files

    module.resolve_pattern = resolve_inside
    try:
        yield
    except Exception as error:
        if problems and error is not problems[0]:
            raise problems[0] from error
        raise
    finally:
        module.resolve_pattern = resolve
    if problems:
        raise problems[0]


def _check_name(place: Path | str, pattern: str, base_path: str) -> None:
    """Check the name of data files, and the folder ``base_path`` in which they are searched.

    Raises:
        ValueError: one of them leads out of the data set.
    """
    root = str(place) if isinstance(place, Path) else _hub_root(place, base_path)
    if root is None:
        raise ValueError(
            f"{place}: datasets would read {base_path} instead of the hub. Run the command in another folder, or set "
            "--input to that folder"
        )
    folder = base_path.rstrip("/")
    if folder != root and not folder.startswith(f"{root}/"):
        _raise_outside(place, "data_dir", base_path)
    if _leads_out(folder[len(root) :].lstrip("/")):
        _raise_outside(place, "data_dir", folder[len(root) + 1 :])
    if _leads_out(pattern):
        _raise_outside(place, "data_files", pattern)


def _check_file(place: Path | str, file: str) -> None:
    """Check a file that ``datasets`` has found.

    Raises:
        ValueError: it is outside the data set.
    """
    if isinstance(place, str):
        if _hub_root(place, file) is None:
            _raise_outside(place, "data_files", file)
        return
    if "::" in file.removeprefix(str(place)):
        raise ValueError(f"{file}: the name has ::, which datasets takes for a chain of file systems. Rename the file")
    if not (real := Path(file).resolve()).is_relative_to(place_with_files(place)):
        raise ValueError(
            f"{file}: a link leads to {real}, outside the data set {place}. It was not read. If the data set is yours, "
            "replace the link by what it leads to"
        )


def _hub_root(repository: str, path: str) -> str | None:
    """The part of ``path`` that names the repository and its revision; None if it is not of that repository."""
    root = re.match(rf"hf://datasets/{re.escape(repository)}@[^/]+", path)
    return root[0] if root else None


def _leads_out(name: str) -> bool:
    """Whether a name in a data set can stand for something outside it: an absolute path, ``..``, a URL or a chain."""
    return (
        name.startswith("/") or "::" in name or "://" in name or bool(urlparse(name).scheme) or ".." in name.split("/")
    )


def _raise_outside(place: Path | str, key: str, name: str) -> None:
    raise ValueError(
        f"{place}: {_declaration(place, name)} sets {key} to {name!r}, which can lead out of the data set. It was not "
        "read. Use a relative path without .., :: and ://, or set --input to a file"
    )


def _declaration(place: Path | str, name: str) -> str:
    """Where a data set names its files: a line of README.md, if it can be found."""
    for file in _DECLARATIONS if isinstance(place, Path) else ():
        try:
            text = read_regular(Path(place, file), within=place_with_files(Path(place))).decode(errors="replace")
        except OSError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if name in line:
                return f"{file}, line {number},"
    return _DECLARATIONS[0]
