"""Which remote paths verl 0.9.1 reads, so that the others are rejected before Ray starts.

Models: verl copies ``hdfs://`` folders to the local disk (verl/utils/fs.py) and passes any other path to transformers,
which reads folders and names on the hub. Data files: verl copies ``hdfs://`` files in the same way and passes any other
path to ``datasets``, which reads every scheme that fsspec has a file system for. fsspec needs a further package for
most of them, for example s3fs for ``s3://``.
"""

from __future__ import annotations

import importlib.util
import re
import shutil

import fsspec

_HDFS = "hdfs"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(path: str) -> str | None:
    """``hdfs`` for ``hdfs://namenode/file``; None for a path on this machine and for a name on the hub."""
    match = _SCHEME.match(path)
    return match[1] if match else None


def model_never_read(path: str) -> str | None:
    """Why verl reads no model from the remote ``path`` on any machine, and the remedy; None if it does."""
    if scheme_of(path) == _HDFS:
        return None
    return (
        f"verl reads models from folders, from the hub and from {_HDFS}://. Download this one, or mount its storage, "
        "and set the key to the folder."
    )


def file_never_read(path: str) -> str | None:
    """Why verl reads no data from the remote ``path`` on any machine, and the remedy; None if it does."""
    if not path.endswith((".parquet", ".json", ".jsonl")):
        return "verl tells the format by the end of the path. Use a path that ends in .parquet, .json or .jsonl."
    scheme = scheme_of(path)
    if scheme == _HDFS or scheme in fsspec.available_protocols():
        return None
    return f"verl reads no {scheme}:// files. Download the file, or mount its storage, and set the key to the path."


def missing_here(path: str) -> str | None:
    """What this machine lacks for the remote ``path``, and the remedy; None if it lacks nothing."""
    scheme = scheme_of(path)
    if scheme == _HDFS:
        # hdfs_io is a package that verl prefers where there is one. Without both, verl runs "None dfs -get".
        if shutil.which("hdfs") or importlib.util.find_spec("hdfs_io"):
            return None
        return (
            "verl runs the command hdfs to copy it, and this machine has no such command. Install the Hadoop client "
            "and put hdfs on PATH, or download it and set the key to the local path."
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        return f"{error}, or download it and set the key to the local path."  # the error names the package to install
    except ValueError:  # no scheme that fsspec knows
        return None
    return None
