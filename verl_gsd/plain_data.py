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
    an entry that contains itself. A number to the base 60, such as 1:10, is a text.

    Raises:
        ValueError: the text is not valid YAML, has an alias, a value that does not fit its tag or an integer of more
            than 64 bits, is nested too deeply, or is too large.
    """
    if len(content) > _LARGEST_YAML:
        raise ValueError(f"it is larger than {_LARGEST_YAML:,} bytes")
    text = content.decode("utf-8")
    try:
        _check_structure(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # PyYAML raises errors of many types, for example KeyError for !!bool x
        raise ValueError(f"a value does not fit its tag ({error!r})") from error


class _Loader(yaml.CSafeLoader):
    """PyYAML's loader without numbers to the base 60 such as 1:10, for which it takes time without end."""


def _read_number(loader: _Loader, node: yaml.ScalarNode) -> str | float:
    text = loader.construct_scalar(node)
    if ":" in text:
        return text
    if node.tag.endswith("float"):
        return loader.construct_yaml_float(node)
    number = loader.construct_yaml_int(node)
    if number.bit_length() > 64:
        # Such numbers may be too long to be shown, and as keys they can have equal hashes, which makes a dict slow.
        raise ValueError(f"it has a number of more than 64 bits in line {node.start_mark.line + 1}")
    return number


for _type in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_type}", _read_number)


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
