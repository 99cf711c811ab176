"""Which data files verl 0.9.1 reads, so that the others are rejected before Ray starts.

verl's dataset (verl/utils/dataset/rl_dataset.py) loads any Parquet or JSON file, whatever its columns. A file with
other columns, or with prompts that are no lists of messages, fails minutes later in a worker, or trains the policy on
text that no chat template was applied to.

A Parquet file is checked without verl: its schema, its number of rows and its first ``FIRST_ROWS`` rows. The prompts of
all other rows, and JSON files, are checked when ``prompt_lengths.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.compose import Line

#: Rows of a file whose ``reward_model`` and ``extra_info`` are looked at.
FIRST_ROWS = 1000
#: The keys that name files, in the order in which problems are reported.
FILE_KEYS = ("data.train_files", "data.val_files")
SUFFIXES = (".parquet", ".json", ".jsonl")
TRUNCATIONS = ("error", "left", "right", "middle")


def files_of(config: DictConfig, key: str) -> list[str]:
    """The paths that ``key`` names: one, a list of them, or none."""
    value = OmegaConf.select(config, key)
    return [str(file) for file in ([value] if value is None or isinstance(value, str) else value) if file is not None]


def has_own_dataset(config: DictConfig) -> bool:
    """Whether the user's own dataset class reads the files (data.custom_cls), so that verl's rules do not apply."""
    return OmegaConf.select(config, "data.custom_cls.path") is not None


def prompt_column(config: DictConfig) -> str:
    """The column of prompts."""
    return str(OmegaConf.select(config, "data.prompt_key") or "prompt")


def columns_read(config: DictConfig) -> tuple[str, ...]:
    """The columns that a file must have.

    verl's reward managers read data_source and reward_model. A discriminative reward model without a custom reward
    function, and a user's own reward manager, need not.
    """
    prompt = prompt_column(config)
    return ("data_source", prompt, "reward_model") if _reads_ground_truth(config) else (prompt,)


def _reads_ground_truth(config: DictConfig) -> bool:
    own_manager = OmegaConf.select(config, "reward.reward_manager.source") not in (None, "register")
    function = OmegaConf.select(config, "reward.custom_reward_function.path")
    by_model = bool(OmegaConf.select(config, "reward.reward_model.enable")) and function is None
    return not own_manager and not by_model


def check_truncation(config: DictConfig, line: Line) -> Iterator[str]:
    """A value of data.truncation that has no meaning. verl itself does not read the key."""
    if config.data.truncation not in TRUNCATIONS:
        yield f"data.truncation={config.data.truncation}: no such value. Set {', '.join(TRUNCATIONS[:-1])} or middle."


def file_problems(key: str, file: str, config: DictConfig) -> Iterator[str]:
    """What is wrong with one local file, as far as that can be told quickly.

    Args:
        key: the config key that names the file.
    """
    if has_own_dataset(config):
        return
    if file.startswith("~"):
        yield f"{key}={file}: verl does not expand ~ there. Set the full path."
        return
    path = Path(file)
    if not path.is_file():
        columns = ", ".join(columns_read(config))
        yield f"{key}={file}: no such file. Set the key to a Parquet file with columns {columns}."
    elif path.suffix not in SUFFIXES:
        yield (
            f"{key}={file}: verl reads files whose names end in .parquet, .json or .jsonl. Convert the file, for "
            "example with verl-gsd prepare."
        )
    elif path.suffix == ".parquet":
        yield from (f"{key}={file}: {problem}" for problem in _parquet_problems(path, config))


def _parquet_problems(path: Path, config: DictConfig) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            missing = list(missing_columns(schema.names, config))
            if missing or not rows:
                yield from missing or [NO_ROWS]
            elif is_plain(schema):
                columns = [name for name in (*columns_read(config), "extra_info") if name in schema.names]
                first = next(file.iter_batches(FIRST_ROWS, columns=columns))
                yield from row_problems(first.to_pylist(), config)
    except (pa.ArrowException, OSError) as error:
        yield f"no Parquet file ({str(error).splitlines()[0]}). Set the key to a whole one."


#: verl fails to load an empty file, among others too.
NO_ROWS = "the file has 0 rows, and verl fails to load it. Set the key to files with rows."


def is_plain(schema: pa.Schema) -> bool:
    """Whether pyarrow reads the values as ``datasets`` does; not so where ``datasets`` stored JSON text in a column."""
    return b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b"")


def missing_columns(names: Iterable[str], config: DictConfig) -> Iterator[str]:
    """A problem if columns that verl reads are not among ``names``."""
    there = list(names)
    missing = [name for name in columns_read(config) if name not in there]
    if not missing:
        return
    yield (
        f"no column {', '.join(missing)}. The file has {', '.join(there) or 'no columns'}. Rename its columns to those "
        "that verl reads (data.prompt_key names the column of prompts), or convert it with verl-gsd prepare."
    )


def row_problems(rows: Iterable[Mapping[str, Any]], config: DictConfig, first: int = 0) -> Iterator[str]:
    """The first problem among ``rows``, if there is one.

    Args:
        first: number of the first of the rows in its file; rows count from 0.
    """
    prompt, ground_truth = prompt_column(config), _reads_ground_truth(config)
    for number, row in enumerate(rows, start=first):
        if problem := prompt_problem(row.get(prompt)):
            yield f"row {number} (the first is 0): {prompt} {problem}"
            return
        if ground_truth and not _has_ground_truth(row.get("reward_model")):
            yield (
                f"row {number} (the first is 0): reward_model has no field ground_truth, which verl's reward manager "
                'passes to the reward function. Set it to {"ground_truth": ANSWER}.'
            )
            return
        if not isinstance(row.get("extra_info"), Mapping | type(None)):
            yield (
                f"row {number} (the first is 0): extra_info is no record of named fields. Rename the column, or make "
                'it one such as {"index": NUMBER}.'
            )
            return


def _has_ground_truth(value: Any) -> bool:
    return isinstance(value, Mapping) and "ground_truth" in value


#: What a prompt must be. The end of every message about one that is not.
_MESSAGES = 'Make it a list of messages such as [{"role": "user", "content": TEXT}].'


def prompt_problem(prompt: Any) -> str | None:
    """Why verl cannot apply a chat template to ``prompt``, and the remedy; None if it can.

    A prompt is a list of messages, each with a role and a content: text, or a list of parts with a type. A message with
    further fields, for example tool_calls, need not have a content.
    """
    if prompt is None:
        return f"is missing. {_MESSAGES}"
    if isinstance(prompt, str):
        return f"is text, and verl applies a chat template to messages. {_MESSAGES}"
    if not isinstance(prompt, list):
        return f"is a {type(prompt).__name__}. {_MESSAGES}"
    if not prompt:
        return f"is an empty list. {_MESSAGES}"
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            return f"has a message {number} that is a {type(message).__name__}. {_MESSAGES}"
        if not (isinstance(message.get("role"), str) and message["role"]):
            return f"has a message {number} without a role. {_MESSAGES}"
        if not _is_content(message):
            return f"has a message {number} whose content is neither text nor a list of parts. {_MESSAGES}"
    return None


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if content is None:
        return any(value is not None for name, value in message.items() if name not in ("role", "content"))
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    return isinstance(content, str)
