"""Checks data files against the format that verl 0.9.1 reads, so that others are rejected before Ray starts.

verl's dataset (verl/utils/dataset/rl_dataset.py) loads any Parquet or JSON file, whatever its columns. If columns are
missing, or prompts are not lists of messages, the run fails minutes later in a worker. Or verl trains the policy on
text to which no chat template was applied.

This module checks Parquet files without verl: the schema, the number of rows and the first ``FIRST_ROWS`` rows.
``prompt_lengths.py`` reads all prompts and checks the other rows and JSON files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd.preparation.commands import command_for_file
from verl_gsd.run.checks.data_sources import check_prepared_verifier, check_sources, reads_ground_truth
from verl_gsd.run.compose import Line

#: ``reward_model`` and ``extra_info`` are checked in this many rows at the start of a file.
FIRST_ROWS = 1000
#: The config keys that name data files, in the order in which problems are reported.
FILE_KEYS = ("data.train_files", "data.val_files")
SUFFIXES = (".parquet", ".json", ".jsonl")
TRUNCATIONS = ("error", "left", "right", "middle")


def files_of(config: DictConfig, key: str) -> list[str]:
    """The paths in ``key``, whose value is a path, a list of paths or null."""
    value = OmegaConf.select(config, key)
    return [str(file) for file in ([value] if value is None or isinstance(value, str) else value) if file is not None]


def has_own_dataset(config: DictConfig) -> bool:
    """Whether the user's own dataset class reads the files (data.custom_cls). verl's rules do not apply to it."""
    return OmegaConf.select(config, "data.custom_cls.path") is not None


def prompt_column(config: DictConfig) -> str:
    """The name of the column with the prompts."""
    return str(OmegaConf.select(config, "data.prompt_key") or "prompt")


def columns_read(config: DictConfig) -> tuple[str, ...]:
    """The columns that a file must have.

    verl's reward managers read data_source and reward_model. These columns may be missing if a discriminative reward
    model scores without a custom reward function, or if the user has a custom reward manager.
    """
    prompt = prompt_column(config)
    return ("data_source", prompt, "reward_model") if reads_ground_truth(config) else (prompt,)


def check_truncation(config: DictConfig, line: Line) -> Iterator[str]:
    """Report an invalid value of data.truncation. verl itself does not read the key."""
    if config.data.truncation not in TRUNCATIONS:
        values = f"{', '.join(TRUNCATIONS[:-1])} or {TRUNCATIONS[-1]}"
        yield f"data.truncation={config.data.truncation}: not a valid value. Set it to {values}."


#: Characters of patterns in the paths that ``datasets`` expands.
_PATTERN = re.compile(r"[*?\[\]{}]")


def check_data_file(key: str, file: str, config: DictConfig) -> Iterator[str]:
    """Check one local file, as far as this is possible without reading all of it.

    Args:
        key: the config key that names the file.
    """
    if has_own_dataset(config):
        return
    if file.startswith("~"):
        yield f"{key}={file}: verl does not expand ~ in this key. Set the full path."
        return
    if found := _PATTERN.search(file):
        yield (
            f"{key}={file}: verl takes a path with {found[0]} for a pattern, and may read other files than this one. "
            "Rename the file or its folder."
        )
        return
    path = Path(file)
    if not path.is_file():
        columns, command = ", ".join(columns_read(config)), command_for_file(path)
        make = f"Run `{command}` to create it" if command else "Run `verl-gsd prepare` to create one"
        yield (
            f"{key}={file}: the file does not exist. {make}, or set the key to a Parquet file with the columns "
            f"{columns}."
        )
    elif path.suffix not in SUFFIXES:
        yield (
            f"{key}={file}: verl reads only files whose names end in .parquet, .json or .jsonl. Convert the file, for "
            "example with `verl-gsd prepare`."
        )
    elif path.suffix == ".parquet":
        problems = list(_check_parquet(path, config)) or list(check_prepared_verifier(path, config))
        yield from (f"{key}={file}: {problem}" for problem in problems)


def _check_parquet(path: Path, config: DictConfig) -> Iterator[str]:
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            missing = list(check_columns(schema.names, config))
            if missing or not rows:
                yield from missing or [NO_ROWS]
            elif is_plain(schema):
                columns = [name for name in (*columns_read(config), "extra_info") if name in schema.names]
                first = next(file.iter_batches(FIRST_ROWS, columns=columns))
                yield from check_rows(first.to_pylist(), config)
                if "data_source" in columns:
                    sources = (batch.column(0) for batch in file.iter_batches(columns=["data_source"]))
                    yield from check_sources((each for batch in sources for each in batch.unique().to_pylist()), config)
    except (pa.ArrowException, OSError) as error:
        yield f"not a valid Parquet file ({str(error).splitlines()[0]}). Set the key to a complete Parquet file."


#: verl fails to load an empty file, even if other files have rows.
NO_ROWS = "the file has 0 rows, which verl fails to load. Set the key to files with rows."


def is_plain(schema: pa.Schema) -> bool:
    """Whether pyarrow reads the same values as ``datasets``. Columns in which ``datasets`` stored JSON text differ."""
    return b'"Json"' not in (schema.metadata or {}).get(b"huggingface", b"")


def check_columns(names: Iterable[str], config: DictConfig) -> Iterator[str]:
    """Check that the columns that verl reads are among ``names``."""
    present = list(names)
    missing = [name for name in columns_read(config) if name not in present]
    if not missing:
        return
    yield (
        f"no column {', '.join(missing)}. The file has {', '.join(present) or 'no columns'}. Rename its columns to "
        "those that verl reads (data.prompt_key names the column of prompts), or convert the file with `verl-gsd "
        "prepare`."
    )


def check_rows(rows: Iterable[Mapping[str, Any]], config: DictConfig, first: int = 0) -> Iterator[str]:
    """Report the first problem among ``rows``, if there is one.

    Args:
        first: number of the first of these rows in the file, counted from 0.
    """
    prompt, ground_truth = prompt_column(config), reads_ground_truth(config)
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
                f"row {number} (the first is 0): extra_info is not a record of named fields. Rename the column, or "
                "change "
                'it to records such as {"index": NUMBER}.'
            )
            return


def _has_ground_truth(value: Any) -> bool:
    return isinstance(value, Mapping) and "ground_truth" in value


#: The fix at the end of every message about an invalid prompt.
_FIX = 'Make it a list of messages such as [{"role": "user", "content": TEXT}].'


def prompt_problem(prompt: Any) -> str | None:
    """Why verl cannot apply a chat template to ``prompt``, with the fix; None if it can.

    A prompt is a list of messages. Each has a role and a content, which is text or a list of parts with a type. The
    content may be missing if a message has other fields, for example tool_calls.
    """
    if prompt is None:
        return f"is missing. {_FIX}"
    if isinstance(prompt, str):
        return f"is text, but verl applies a chat template to messages. {_FIX}"
    if not isinstance(prompt, list):
        return f"is a {type(prompt).__name__}. {_FIX}"
    if not prompt:
        return f"is an empty list. {_FIX}"
    for number, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            return f"has a message {number} that is a {type(message).__name__}. {_FIX}"
        if not (isinstance(message.get("role"), str) and message["role"]):
            return f"has a message {number} without a role. {_FIX}"
        if not _is_content(message):
            return f"has a message {number} whose content is neither text nor a list of parts. {_FIX}"
    return None


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if content is None:
        return any(value is not None for name, value in message.items() if name not in ("role", "content"))
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    return isinstance(content, str)
