"""What extensions declare for a report: the order of their parts, remedies for findings, and conflicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.declaration import WEIGHS, Problem
from verl_gsd.extension import Declaration, declarations


def in_report_order() -> list[Declaration]:
    """All registered extensions, in the order of their sections and findings."""
    return sorted(declarations(), key=lambda declaration: declaration.report_order)


def remedies(problem: Problem, config: Mapping[str, Any]) -> list[str]:
    """Config overrides against ``problem``, from extensions that take no part in the run.

    Args:
        config: dotted key -> value; empty if it is not known.
    """
    return [
        declaration.remedies[problem]
        for declaration in in_report_order()
        if problem in declaration.remedies
        and not _takes_part(declaration, config)
        and not is_rejected(f"algorithm.gsd.{declaration.name}", "", config)
        and not (declaration.weighs and _rejects_weights(config))
    ]


def is_rejected(key: str, value: str, config: Mapping[str, Any]) -> bool:
    """Whether an extension that takes part in the run declares a conflict with ``key=value``.

    ``Conflict.when`` is ignored: an override that may be rejected should not be suggested.

    Args:
        value: in YAML.
        config: dotted key -> value; empty if it is not known.
    """
    return any(
        _holds(conflict.setting, key, value)
        for declaration in declarations()
        if _takes_part(declaration, config)
        for conflict in declaration.conflicts
    )


def _rejects_weights(config: Mapping[str, Any]) -> bool:
    """Whether an extension that takes part in the run works with no other extension that weighs advantages."""
    return any(
        conflict.setting == WEIGHS
        for declaration in declarations()
        if _takes_part(declaration, config)
        for conflict in declaration.conflicts
    )


def _holds(setting: str, key: str, value: str) -> bool:
    """Whether ``key=value`` meets the condition ``setting`` (``declaration.Conflict``)."""
    name, has_values, values = setting.partition("=")
    if name.removesuffix("!") != key:
        return False
    return not has_values or (value in values.split("|")) != name.endswith("!")


def _takes_part(declaration: Declaration, config: Mapping[str, Any]) -> bool:
    section = f"algorithm.gsd.{declaration.name}"
    return any(value is not None and (key == section or key.startswith(f"{section}.")) for key, value in config.items())
