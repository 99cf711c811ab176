"""All findings of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from verl_gsd.extension import load
from verl_gsd.report.extensions import in_report_order
from verl_gsd.report.findings import of_groups, of_policy, of_rewards
from verl_gsd.report.findings.finding import Finder, Finding
from verl_gsd.report.reading import Columns

logger = logging.getLogger(__name__)

#: In the order of a page: what costs most stands first. The findings of extensions follow.
FINDERS: tuple[Finder, ...] = (*of_groups.FINDERS, *of_rewards.FINDERS, *of_policy.FINDERS)


def findings(table: Columns, config: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a run.

    If an extension's finder raises, a finding says so, and the others are made all the same.

    Args:
        table: ``steps.by_step``.
        config: dotted key -> value; empty where it is not known.
    """
    found = [finding for finder in FINDERS for finding in finder(table, config)]
    return [*found, *_of_extensions(table, config)]


def _of_extensions(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    for declared in in_report_order():
        if declared.findings is None:
            continue
        try:
            finders = load(declared.findings)
        except Exception as error:  # somebody else's code: it may raise anything
            yield _failed(declared.name, declared.findings, error)
            continue
        for finder in finders:
            try:
                yield from _found(finder, table, config)
            except Exception as error:
                yield _failed(declared.name, getattr(finder, "__name__", repr(finder)), error)


def _found(finder: Finder, table: Columns, config: Mapping[str, Any]) -> list[Finding]:
    found = list(finder(table, config))
    for finding in found:
        if not isinstance(finding, Finding):
            raise TypeError(f"it yields {finding!r}, which is no Finding")
    return found


def _failed(extension: str, what: str, error: Exception) -> Finding:
    logger.warning("extension %s: its finding %s failed", extension, what, exc_info=error)
    return Finding(
        f"Extension {extension}: its finding {what} failed",
        f"{type(error).__name__}: {error}. All other findings are here.",
    )
