"""The commands that messages suggest: how to make a data set, and how to train on it.

The command line imports this module at its start. ``sources`` imports pyarrow, and is therefore imported in functions.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from verl_gsd.errors import USE_REWARD_MODEL
from verl_gsd.tasks.catalog import TASKS

if TYPE_CHECKING:
    from verl_gsd.preparation.manifest import PreparedDataset

#: The model that a suggested command trains, if the user named none.
EXAMPLE_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def data_folder() -> Path:
    """The folder of prepared data sets, which is also where recipes look for them."""
    return Path(os.environ.get("VERL_GSD_DATA") or Path.home() / "data")


def prepare_command(folder: Path, split: str = "train") -> str:
    """The command that makes ``split`` of the data set in ``folder``, DATA/NAME.

    A data set that ``verl-gsd prepare`` does not know is a table, for which FILE stands. If another split was prepared,
    its options are kept.
    """
    from verl_gsd.preparation.sources import SOURCES

    words = ["verl-gsd", "prepare", folder.name]
    if folder.parent != data_folder():
        words += ["--data", str(folder.parent)]
    if folder.name not in (*SOURCES, *TASKS):
        words += ["--input", "FILE", *(["--split", split] if split != "train" else [])]
    return shlex.join([*words, *_options(folder, split)])


def _options(folder: Path, split: str) -> list[str]:
    """The options with which ``split``, or else another split of the data set in ``folder``, was prepared."""
    from verl_gsd.preparation.manifest import read_manifest
    from verl_gsd.preparation.sources import table_options

    try:
        dataset = read_manifest(folder)
    except ValueError:  # the command reports a damaged manifest
        return []
    if dataset is None or not dataset.splits:
        return []
    entry = dataset.splits.get(split) or next(iter(dataset.splits.values()))
    words = table_options(entry)
    words += ["--model", entry["model"]] if entry.get("model") else []
    words += ["--max-prompt-length", str(entry["longest_prompt"])] if entry.get("longest_prompt") else []
    return words + (["--skip-unusable"] if entry.get("skip_unusable") else [])


def command_for_file(file: Path) -> str | None:
    """The command that makes a missing file DATA/NAME/SPLIT.parquet; None for other names."""
    from verl_gsd.preparation.sources import SOURCES

    if file.suffix != ".parquet" or file.stem not in ("train", "test"):
        return None
    source = SOURCES.get(file.parent.name)
    if source is None or file.stem in source.splits:
        return prepare_command(file.parent, file.stem)
    return None


def train_command(dataset: PreparedDataset, model: str | None) -> str:
    """The command that trains on a data set with a training split.

    Args:
        model: the model that the user named; None for ``EXAMPLE_MODEL``.
    """
    words = ["algo=grpo", f"data={dataset.folder.absolute()}", f"model={model or EXAMPLE_MODEL}", "hardware=gpu"]
    if "test" not in dataset.splits:
        words.append("data.val_files=FILE")
    if dataset.splits["train"]["verifier"] is None:
        words += USE_REWARD_MODEL
    return shlex.join(["verl-gsd", "train", *words])
