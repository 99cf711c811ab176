"""What extensions declare for a report: the order of their parts, and remedies for findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.declaration import Problem
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
        if problem in declaration.remedies and not _takes_part(declaration, config)
    ]


def _takes_part(declaration: Declaration, config: Mapping[str, Any]) -> bool:
    section = f"algorithm.gsd.{declaration.name}"
    return any(value is not None and (key == section or key.startswith(f"{section}.")) for key, value in config.items())
