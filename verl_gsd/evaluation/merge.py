"""Merges the shards of a verl checkpoint into the model that an evaluation loads, once for the same shards."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from verl_gsd.export.checkpoint import check_not_rehearsal, file_identities, open_checkpoint, shard_paths
from verl_gsd.export.weights import origins_of, write_model
from verl_gsd.plain_data import parse_json
from verl_gsd.regular_files import read_regular
from verl_gsd.run.trust import distrust, real_run
from verl_gsd.rundir import RunDirectory
from verl_gsd.writing import atomic_folder

#: File in a merged model's folder that lists the shards it was merged from.
SOURCE_FILE = "verl_gsd_made_of.json"
#: The precision that an evaluation on a GPU computes in.
_DTYPE = "bfloat16"


def shard_files(checkpoint: Path) -> dict[str, list[int]]:
    """The policy's files in RUN/global_step_N, in the format of ``file_identities``.

    Raises:
        ConfigError: see ``shard_paths``.
    """
    return file_identities(shard_paths(checkpoint))


def merge(checkpoint: Path, target: Path) -> None:
    """Merge RUN/global_step_N into ``target`` atomically. Does nothing if ``target`` was merged from the same shards.

    Raises:
        ConfigError: see ``write_model`` and ``real_run``.
        ValueError: the run's config cannot be read.
        OSError: the disk is full, or the process may not write there.
    """
    # Once, so that it is one and the same run that is examined and read.
    checkpoint = real_run(checkpoint.parent) / checkpoint.name
    shards = shard_files(checkpoint)
    with suppress(OSError, ValueError):  # missing or damaged: merge again
        if parse_json(read_regular(target / SOURCE_FILE, within=target)) == shards:
            return
    run = RunDirectory(checkpoint.parent)
    config = run.read_yaml(run.config)
    check_not_rehearsal(checkpoint, config)
    reason = distrust(run)
    with open_checkpoint(checkpoint, reason) as opened, atomic_folder(target) as building:
        write_model(opened, building, _DTYPE, origins_of(config, distrust=reason))
        (building / SOURCE_FILE).write_text(json.dumps(shards), encoding="utf-8")
