"""What extensions declare for a report, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.declaration import Problem
from verl_gsd.extension import Declaration, declarations


def in_report_order() -> list[Declaration]:
    """All registered extensions, in the order of their sections and findings."""
    return sorted(declarations(), key=lambda declared: declared.report_order)


def remedies(problem: Problem, config: Mapping[str, Any]) -> list[str]:
    """What to set against ``problem``, by extensions that take no part in the run.

    Args:
        config: dotted key -> value; empty where it is not known.
    """
    return [
        declared.remedies[problem]
        for declared in in_report_order()
        if problem in declared.remedies and not _takes_part(declared.name, config)
    ]


def _takes_part(name: str, config: Mapping[str, Any]) -> bool:
    section = f"algorithm.gsd.{name}"
    return any(value is not None and (key == section or key.startswith(f"{section}.")) for key, value in config.items())
