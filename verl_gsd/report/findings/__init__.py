"""Findings: what went wrong in a run, with the config overrides that help."""

from verl_gsd.report.findings.collect import collect_findings
from verl_gsd.report.findings.finding import THRESHOLDS, Finding, FindingThresholds

__all__ = ["THRESHOLDS", "Finding", "FindingThresholds", "collect_findings"]
