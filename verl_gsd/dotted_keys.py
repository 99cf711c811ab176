"""Read nested configs by dotted keys, as on verl's command line: ``actor_rollout_ref.rollout.n``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def dotted_items(config: Any, *, into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every entry of a nested dict. A section comes before its own entries.

    Args:
        config: plain dicts and lists, for example from ``OmegaConf.to_container``.
        into_lists: also yield the entries of lists, as ``key[position]``.
    """
    return _items(config, "", into_lists)


def dotted_leaves(config: Any, *, into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """The entries of ``dotted_items`` that have no entries of their own. An empty section is one of them."""
    nested = (dict, list) if into_lists else dict
    entries = dotted_items(config, into_lists=into_lists)
    return ((key, value) for key, value in entries if not (isinstance(value, nested) and value))


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict with these dotted keys; the inverse of ``dotted_leaves``."""
    config: dict[str, Any] = {}
    for key, value in leaves.items():
        *sections, name = key.split(".")
        node = config
        for section in sections:
            inner = node.get(section)
            node[section] = node = inner if isinstance(inner, dict) else {}
        node[name] = value
    return config


def value_at(config: Any, key: str) -> Any:
    """The value of a nested mapping at a dotted key; None if there is no such key."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _items(node: Any, prefix: str, into_lists: bool) -> Iterator[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    if isinstance(node, dict):
        entries = [(f"{prefix}.{name}" if prefix else str(name), value) for name, value in node.items()]
    elif into_lists and isinstance(node, list):
        entries = [(f"{prefix}[{position}]", value) for position, value in enumerate(node)]
    for key, value in entries:
        yield key, value
        yield from _items(value, key, into_lists)
