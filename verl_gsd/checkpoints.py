"""Checks whether the files of a verl checkpoint are complete, without reading weights or unpickling anything.

A run that is killed, or whose disk is full, can leave files that are missing, empty or truncated. A file written by
``torch.save`` is a zip archive whose table of contents is at the end and lists where each record begins.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import open_regular, read_regular
from verl_gsd.scalars import is_whole

_STEP = re.compile(r"global_step_(\d+)")
#: A rank's shard under FSDP: of the model, the optimizer, or the extra state.
_SHARD = re.compile(r"(?P<kind>\w+)_world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt")
#: We list the files of all ranks. More ranks than this would be a damaged file.
_MOST_RANKS = 100_000
#: The largest header in bytes of a safetensors file that its library reads.
_LARGEST_HEADER = 100_000_000
#: The first bytes of each record of a zip archive.
_RECORD_SIGNATURE = b"PK\x03\x04"


def step_of(checkpoint: Path) -> int | None:
    """The step N of a folder RUN/global_step_N; None for any other name."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def attempt_of(checkpoint: Path) -> int | None:
    """The attempt that saved a checkpoint (``run/lost_metrics.py``).

    None if it is unknown: verl's own trainers do not save it, and the file can be damaged.
    """
    try:
        return int(parse_json(read_regular(checkpoint / "gsd" / "metrics.json"))["attempt"])
    except (OSError, OverflowError, ValueError, KeyError, TypeError):
        return None


def damage(checkpoint: Path, all_ranks: bool = True) -> str | None:
    """The first problem with the files that verl wrote to RUN/global_step_N; None if they are complete.

    Args:
        all_ranks: whether the files of every rank and of the driver must exist. On several nodes without a shared disk,
            each node has only its own files.
    """
    return next(_problems(checkpoint, all_ranks), None)


def whole_checkpoints(run: Path, all_ranks: bool = True) -> Iterator[Path]:
    """The checkpoints of a run whose files are complete, newest first.

    A checkpoint of a later attempt is newer than any of an earlier attempt, whatever their steps. The later attempt may
    have resumed from an older checkpoint, which discards the steps after it.
    """
    paths = [path for path in run.glob("global_step_*") if step_of(path) is not None]
    for path in sorted(paths, key=lambda path: (attempt_of(path) or 0, step_of(path)), reverse=True):
        if damage(path, all_ranks) is None:
            yield path


def world_size(folder: Path) -> int:
    """The number of ranks that wrote the shards in ``folder``, for example RUN/global_step_N/actor.

    Raises:
        OSError: its file cannot be read.
        ValueError: its file is damaged.
    """
    content = parse_json(read_regular(folder / "fsdp_config.json"))
    ranks = content.get("world_size") if isinstance(content, dict) else None
    if not is_whole(ranks, 1) or ranks > _MOST_RANKS:
        raise ValueError(f"world_size={str(ranks)[:30]}: not a number of ranks from 1 to {_MOST_RANKS}")
    return ranks


def _problems(checkpoint: Path, all_ranks: bool) -> Iterator[str]:
    if not (checkpoint / "actor").is_dir():
        yield f"{checkpoint}: actor/ is missing, so there are no weights"
        return
    for role in ("actor", "critic"):
        if (checkpoint / role).is_dir():
            yield from _missing_shards(checkpoint / role) if all_ranks else ()
    if all_ranks and not (checkpoint / "data.pt").is_file():  # only the driver's node has it
        yield f"{checkpoint / 'data.pt'}: is missing, so verl would start again with the first prompts"
    for path in sorted(checkpoint.rglob("*")):
        if path.relative_to(checkpoint).parts[0] != "gsd" and (problem := _file_problem(path)):
            yield f"{path}: {problem}"


def _missing_shards(folder: Path) -> Iterator[str]:
    shards = [match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]
    if not shards:
        return  # Megatron's shards have other names
    try:
        world = world_size(folder)
    except (OSError, ValueError):
        yield f"{folder / 'fsdp_config.json'}: is missing or damaged, so the number of ranks is unknown"
        return
    kinds = sorted({match["kind"] for match in shards} | {"model"})
    for name in (f"{kind}_world_size_{world}_rank_{rank}.pt" for kind in kinds for rank in range(world)):
        if not (folder / name).is_file():
            yield f"{folder / name}: is missing"


def _file_problem(path: Path) -> str | None:
    if path.suffix not in (".pt", ".json", ".safetensors", ".pkl"):
        return None
    try:
        size = path.stat().st_size
        if not size:
            return "is empty"
        if path.suffix == ".pt":
            return None if _is_whole_archive(path) else "is truncated or overwritten: it is not a file of torch.save"
        if path.suffix == ".json":
            parse_json(read_regular(path))
        elif path.suffix == ".safetensors" and _safetensors_size(path) != size:
            return "is truncated: its size differs from the size in its header"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is truncated or overwritten"
    return None


def _is_whole_archive(path: Path) -> bool:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                file.seek(record.header_offset)
                if file.read(len(_RECORD_SIGNATURE)) != _RECORD_SIGNATURE:
                    return False
            return True
    except (zipfile.BadZipFile, NotImplementedError, struct.error):  # zipfile raises these for overwritten bytes
        return False


def _safetensors_size(path: Path) -> int:
    """The size in bytes of a safetensors file according to its header: the length field, the header and the tensors."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"its header of {length} bytes is larger than the file")
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, and the format allows {_LARGEST_HEADER}")
        header = parse_json(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
