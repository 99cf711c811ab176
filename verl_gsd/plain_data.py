"""Reads YAML and JSON of runs. Others may have made a run's files, so that a damaged or hostile one is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from verl_gsd.regular_files import read_regular

#: Files of runs are nested about 8 levels deep. Much deeper ones would end our recursive functions.
_DEEPEST = 100
#: In bytes. A config of verl has about 30 KB. Parsing 1 MB of YAML takes some seconds.
_LARGEST_YAML = 2 << 20


def read_yaml(path: Path, *, within: Path) -> Any:
    """Return the content of a YAML file as dicts, lists and scalars; None if the file does not exist.

    Args:
        within: the folder of the run. A file outside it, to which a link leads, is not read.

    Raises:
        ValueError: the file cannot be read, or ``parse_yaml`` rejects it; the message names it.
    """
    try:
        return parse_yaml(read_regular(path, within=within))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def parse_yaml(content: bytes) -> Any:
    """Return the value of a YAML text in UTF-8 as dicts, lists and scalars.

    Aliases are rejected. Files of runs have none, and with them a short text can stand for billions of entries, or for
    an entry that contains itself.

    Raises:
        ValueError: the text is not valid YAML, has an alias, is nested too deeply, or is too large.
    """
    if len(content) > _LARGEST_YAML:
        raise ValueError(f"it is larger than {_LARGEST_YAML:,} bytes")
    text = content.decode("utf-8")
    try:
        _check_structure(text)
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _check_structure(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{event.anchor}) in line {event.start_mark.line + 1}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not valid JSON, or is nested too deeply to be parsed.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
