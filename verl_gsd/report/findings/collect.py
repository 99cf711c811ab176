"""Runs all finders on a run: those of the package and those of extensions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from verl_gsd.extension import load
from verl_gsd.report.advice import accepted_overrides
from verl_gsd.report.extensions import in_report_order
from verl_gsd.report.findings import groups, policy, rewards, updates
from verl_gsd.report.findings.finding import Finder, Finding, has_every_acc
from verl_gsd.report.reading import Columns

logger = logging.getLogger(__name__)

#: In the order of the page: the most costly problems come first. The finders of extensions follow.
FINDERS: tuple[Finder, ...] = (*groups.FINDERS, *rewards.FINDERS, *policy.FINDERS, *updates.FINDERS)


def collect_findings(table: Columns, config: Mapping[str, Any], words: Collection[str] = ()) -> list[Finding]:
    """Return all findings of a run, with the overrides that its config accepts (``advice.accepted_overrides``).

    If an extension's finder raises an error, a finding names it, and all other finders run.

    Args:
        table: the run's ``steps.step_table``.
        config: dotted key -> value; empty if it is not known.
        words: the words of the run's command line; empty if they are not known.
    """
    findings = [finding for finder in FINDERS for finding in finder(table, config)]
    findings += _extension_findings(table, config)
    rated = has_every_acc(table)
    return [
        replace(finding, overrides=accepted_overrides(finding.overrides, config, words, is_rated=rated))
        for finding in findings
    ]


def _extension_findings(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    for declaration in in_report_order():
        if declaration.findings is None:
            continue
        try:
            finders = load(declaration.findings)
        except Exception as error:  # code of another package can raise anything
            yield _failure(declaration.name, declaration.findings, error)
            continue
        for finder in finders:
            try:
                yield from _checked(finder(table, config))
            except Exception as error:
                yield _failure(declaration.name, getattr(finder, "__name__", repr(finder)), error)


def _checked(results: Iterator[Finding]) -> list[Finding]:
    findings = list(results)
    for finding in findings:
        if not isinstance(finding, Finding):
            raise TypeError(f"it yields {finding!r}, and not a Finding")
    return findings


def _failure(extension: str, finder: str, error: Exception) -> Finding:
    logger.warning("extension %s: its finder %s failed", extension, finder, exc_info=error)
    return Finding(
        f"Extension {extension}: its finder {finder} failed",
        f"{type(error).__name__}: {error}. All other findings are shown.",
    )
